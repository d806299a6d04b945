"""Undoes what was done to the system for multipath connections that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.netmon.runtime import Runtime

_FIRST, _LAST = 0.05, 10.0
"""Seconds between two attempts: the kernel may take a while to send what a closed connection still has."""


class Sweeper:
    """Asks the path managers of one event loop until nothing is left, once for all connections that have ended."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sweeps: dict[PathManager, Retry] = {}

    def sweep(self, paths: PathManager) -> None:
        """Sweep soon, and again until nothing is left. Does nothing if that is under way."""
        if paths in self._sweeps:
            return

        def attempt() -> None:
            if paths.sweep():
                retry.schedule()
            else:
                del self._sweeps[paths]

        retry = self._sweeps[paths] = Retry(self._runtime, attempt, _FIRST, _LAST, jitter=0.0)
        retry.schedule()
