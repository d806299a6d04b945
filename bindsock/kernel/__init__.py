"""The seam to the operating system. Everything that asks the system about its network, or binds a socket, is below here."""

from bindsock.kernel.base import Administration, EventSource, Kernel, Mender, PathManager, RemovalReason, Repairs
from bindsock.kernel.system import current

__all__ = ["Administration", "EventSource", "Kernel", "Mender", "PathManager", "RemovalReason", "Repairs", "current"]
