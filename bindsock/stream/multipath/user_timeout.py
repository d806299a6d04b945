"""The user timeout of multipath connections: notices a silent peer. For plain TCP the kernel does this."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.watcher import Watcher


class UserTimeout:
    """The user timeout (RFC 5482) of one multipath connection.

    Linux has no TCP_USER_TIMEOUT for multipath sockets (``net/mptcp/sockopt.c``); it only sends keep-alive probes on idle ones.

    :param seconds: seconds without an answer, while data is unacknowledged, after which the timeout expires
    :param update: called when it has expired
    """

    def __init__(
        self, watcher: Watcher, paths: PathManager, sock: socket.socket, seconds: float, update: Callable[[], object]
    ) -> None:
        self.seconds = seconds
        self.expired: bool = False
        """Whether the timeout has expired."""
        self._paths = paths
        self._runtime = watcher.runtime
        self._sock = weakref.ref(sock)
        self._update = weakref.WeakMethod(update)
        self._answered = watcher.runtime.time()
        """When the peer had last answered everything, in monotonic seconds."""
        self._timer: Timer | None = None
        self._wait()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._runtime.call_later(min(self.seconds / 8, 1.0), self._check)

    def _check(self) -> None:
        self._timer = None
        sock, update = self._sock(), self._update()
        if sock is None or sock.fileno() == -1 or update is None:
            return
        now = self._runtime.time()
        silence = self._paths.silence(sock)
        if not silence:
            self._answered = now
        # On an idle connection the last answer may be long ago, although no data has been unanswered since.
        if min(silence, now - self._answered) >= self.seconds:
            self.expired = True
            update()
            return
        self._wait()
