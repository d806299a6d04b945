"""Finding out that the peer of a multipath connection has fallen silent: of plain TCP the kernel tells."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from bindsock.kernel import PathManager
    from bindsock.netmon.watcher import Watcher


class UserTimeout:
    """Watches one multipath connection.

    Linux has no TCP_USER_TIMEOUT for it (``net/mptcp/sockopt.c``), and only probes one that is at rest.

    :param seconds: of silence, with something unacknowledged, that are too many
    :param found: called when they have passed
    """

    def __init__(
        self,
        watcher: Watcher,
        paths: PathManager,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        found: Callable[[], object],
    ) -> None:
        self.seconds = seconds
        self._paths = paths
        self._clock = watcher.runtime.time
        self._sock = weakref.ref(sock)
        self._loop = weakref.ref(loop)
        self._found = weakref.WeakMethod(found)
        self._answered = watcher.runtime.time()
        """When nothing was left unanswered for the last time."""
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def close(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            self._timer = loop.call_later(min(self.seconds / 8, 1.0), self._listen)

    def _listen(self) -> None:
        self._timer = None
        sock, found = self._sock(), self._found()
        if sock is None or sock.fileno() == -1 or found is None:
            return
        now = self._clock()
        silence = self._paths.silence(sock)
        if not silence:
            self._answered = now
        # After a long rest the last answer is long ago, and yet nobody has been kept waiting.
        if min(silence, now - self._answered) >= self.seconds:
            found()
        else:
            self._wait()
