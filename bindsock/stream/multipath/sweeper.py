"""Removes the system's endpoints that were added for multipath connections, after the connections have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.netmon.runtime import Runtime

_FIRST, _LAST = 0.05, 10.0
"""Seconds between two attempts, because the kernel may still be sending the remaining data of a closed connection."""


class Sweeper:
    """Lets the path managers of one event loop clean up until nothing is left, once for all ended connections."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sweeps: dict[PathManager, Retry] = {}

    def sweep(self, paths: PathManager) -> None:
        """Clean up soon, and again until nothing is left. Does nothing if that is in progress."""
        if paths in self._sweeps:
            return

        def attempt() -> None:
            if paths.sweep():
                retry.schedule()
            else:
                del self._sweeps[paths]

        retry = self._sweeps[paths] = Retry(self._runtime, attempt, _FIRST, _LAST, jitter=0.0)
        retry.schedule()
