"""Linux: rtnetlink, ``SO_BINDTOIFINDEX`` and multipath TCP; no privilege, no thread."""

from bindsock.kernel.linux.kernel import LinuxKernel

__all__ = ["LinuxKernel"]
