"""Waits for the old connection of a replacement: for data in flight on it, or for its path to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.reconnect.connection import Connection


class Patience:
    """The timers for the old connection.

    :param drain_timeout: how long to wait for data in flight, in seconds
    """

    def __init__(self, runtime: Runtime, drain_timeout: float) -> None:
        self._runtime = runtime
        self._drain_timeout = drain_timeout
        self._timer: Timer | None = None
        self._grace_over: float | None = None

    def stalled(self, grace: float) -> None:
        """The path is stalled.

        :param grace: seconds from the first such call after which it is not waited for, once a new connection is ready
        """
        over = self._runtime.time() + grace
        self._grace_over = over if self._grace_over is None else min(self._grace_over, over)

    def recovered(self) -> None:
        """The path is not stalled any more."""
        self._grace_over = None

    def hold_out(self, over: Callable[[], object]) -> None:
        """Wait for the path, as long as the grace lasts.

        :param over: called then, at once if it is over
        """
        self.stop()
        left = (self._grace_over or 0.0) - self._runtime.time()
        if left <= 0:
            over()
        else:
            self._timer = self._runtime.call_later(left, over)

    def drain(self, connection: Connection, drained: Callable[[], object]) -> None:
        """Half-close the connection, and wait until its peer has ended it too, or for the drain timeout.

        Over TLS the peer cannot be told that nothing more will come. There the connection counts as drained when it has been
        quiet for a quarter of that time.

        :param drained: called when it took too long, or when the connection is quiet; the end of the connection is its owner's
            to notice
        """
        self.stop()
        if connection.half_close():
            self._timer = self._runtime.call_later(self._drain_timeout, drained)
        else:
            self._wait_for_quiet(connection, self._runtime.time() + self._drain_timeout, drained)

    def stop(self) -> None:
        """Call nothing any more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _wait_for_quiet(self, connection: Connection, deadline: float, drained: Callable[[], object]) -> None:
        received = connection.received

        def check() -> None:
            if connection.received == received or self._runtime.time() >= deadline:
                drained()
            else:
                self._wait_for_quiet(connection, deadline, drained)

        wait = min(self._drain_timeout / 4, max(deadline - self._runtime.time(), 0.0))
        self._timer = self._runtime.call_later(wait, check)
