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
        self._again: set[PathManager] = set()
        """Those to be swept once more after the sweep that is being made."""

    def sweep(self, paths: PathManager) -> None:
        """Clean up soon, and again until nothing is left."""
        retry = self._sweeps.get(paths)
        if retry is None:
            retry = self._sweeps[paths] = Retry(self._runtime, lambda: self._attempt(paths), _FIRST, _LAST, jitter=0.0)
            retry.schedule()
        elif not retry.scheduled:
            self._again.add(paths)

    def _attempt(self, paths: PathManager) -> None:
        paths.sweep(lambda waiting: self._attempted(paths, waiting))

    def _attempted(self, paths: PathManager, waiting: bool) -> None:
        if waiting or paths in self._again:
            self._again.discard(paths)
            self._sweeps[paths].schedule()
        else:
            del self._sweeps[paths]
