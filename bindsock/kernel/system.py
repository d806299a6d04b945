"""Chooses the backend for the running system. This is the only place that reads ``sys.platform``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bindsock.errors import UnsupportedSystem

if TYPE_CHECKING:
    from bindsock.kernel.base import Kernel


def current() -> Kernel:
    """The backend of the running system.

    :raises UnsupportedSystem: there is no backend for ``sys.platform``
    """
    if sys.platform == "linux":
        from bindsock.kernel.linux import LinuxKernel

        return LinuxKernel()
    if sys.platform in ("darwin", "ios"):
        from bindsock.kernel.darwin import DarwinKernel

        return DarwinKernel()
    raise UnsupportedSystem(f"bindsock runs on Linux, macOS and iOS, not on {sys.platform}")
