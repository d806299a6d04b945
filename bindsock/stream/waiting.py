"""Waits before a connection is ended: for a stalled path to come back, or for a working connection to be idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.stream import viability
from bindsock.stream.viability import Countdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime


class StallGrace:
    """The time in which the carrier or the route of a stalled connection may come back. It begins at once.

    :param runtime: the event loop
    :param on_over: called when the time is over
    """

    __slots__ = ("_on_over", "_timer", "over")

    def __init__(self, runtime: Runtime, on_over: Callable[[], object]) -> None:
        self.over: bool = False
        """Whether the time is over."""
        self._on_over: Callable[[], object] | None = on_over
        self._timer: Timer | None = runtime.call_later(viability.STALL_GRACE, self._end)

    def stop(self) -> None:
        """Do not call back."""
        self._on_over = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        on_over = self._on_over
        self.over = True
        self._on_over = self._timer = None
        if on_over is not None:
            on_over()


class IdleWait:
    """Waits until a working connection is idle, or until its :class:`Countdown` says that it has waited long enough.

    :param runtime: the event loop
    :param activity: returns the ``Kernel.activity`` of the socket; it may call :meth:`stop`
    :param on_idle: called at the end
    """

    __slots__ = ("_activity", "_countdown", "_on_idle", "_runtime", "_timer")

    def __init__(self, runtime: Runtime, activity: Callable[[], object], on_idle: Callable[[], object]) -> None:
        self._runtime = runtime
        self._activity: Callable[[], object] | None = activity
        self._on_idle = on_idle
        self._countdown: Countdown | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Take the first sample."""
        self._sample()

    def stop(self) -> None:
        """Do not call back."""
        self._activity = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sample(self) -> None:
        self._timer = None
        activity = self._activity() if self._activity is not None else None
        if self._activity is None:
            return
        now = self._runtime.time()
        if self._countdown is None:
            self._countdown = Countdown(now, activity)
        elif self._countdown.due(now, activity):
            self._on_idle()
            return
        self._timer = self._runtime.call_later(viability.SAMPLE, self._sample)
