"""Waits for the old connection of a replacement: for its data in flight, or for its path to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.reconnect.connection import Connection


class Draining:
    """The timers for the old connection.

    :param drain_timeout: how long to wait for data in flight, in seconds
    """

    def __init__(self, runtime: Runtime, drain_timeout: float) -> None:
        self._runtime = runtime
        self._drain_timeout = drain_timeout
        self._timer: Timer | None = None
        self._grace_over: float | None = None

    def stalled(self, grace: float) -> None:
        """Record that the path is stalled.

        :param grace: how long to wait for the path, in seconds from the first such call
        """
        over = self._runtime.time() + grace
        self._grace_over = over if self._grace_over is None else min(self._grace_over, over)

    def recovered(self) -> None:
        """Record that the path is not stalled any more."""
        self._grace_over = None

    def wait_for_path(self, over: Callable[[], object]) -> None:
        """Wait for the path until the grace is over.

        :param over: called when the grace is over, which may be at once
        """
        self.stop()
        left = (self._grace_over or 0.0) - self._runtime.time()
        if left <= 0:
            over()
        else:
            self._timer = self._runtime.call_later(left, over)

    def drain(self, connection: Connection, drained: Callable[[], object]) -> None:
        """Half-close the connection, and wait until the peer has ended it, too, or for the drain timeout.

        TLS connections cannot be half-closed. They count as drained when no data has arrived for a quarter of the drain timeout.

        :param drained: called after the timeout, or when no more data arrives. The owner of the connection must notice its end
            by itself
        """
        self.stop()
        if connection.half_close():
            self._timer = self._runtime.call_after_reading(self._drain_timeout, drained)
        else:
            self._wait_for_quiet(connection, self._runtime.time() + self._drain_timeout, drained)

    def stop(self) -> None:
        """Cancel the timer."""
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
        self._timer = self._runtime.call_after_reading(wait, check)
