"""Darwin (macOS and iOS): sysctl, private ioctls by number, routing and kernel-event sockets."""

from bindsock.kernel.darwin.kernel import DarwinKernel

__all__ = ["DarwinKernel"]
