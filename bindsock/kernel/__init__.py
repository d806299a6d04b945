"""The interface to the operating system: only this package asks it about its network and binds sockets."""

from bindsock.kernel.base import Administration, Background, EventSource, Kernel, PathManager, RemovalReason, Repairer, Repairs
from bindsock.kernel.system import current

__all__ = [
    "Administration",
    "Background",
    "EventSource",
    "Kernel",
    "PathManager",
    "RemovalReason",
    "Repairer",
    "Repairs",
    "current",
]
