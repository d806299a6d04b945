"""Linux: rtnetlink, ``SO_BINDTOIFINDEX`` and multipath TCP. No privilege, no thread."""

from bindsock.kernel.linux.kernel import LinuxKernel
from bindsock.kernel.linux.rtnetlink import links

__all__ = ["LinuxKernel", "links"]
