"""A timer whose time changes often."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime


class Alarm:
    """Calls back once, at a time that can be changed until then.

    If the time moves back, the timer of the event loop stays as it is, and is set again when it fires. That is cheaper than a new
    timer for each event.

    :param runtime: the event loop and its clock
    :param callback: the function to call
    """

    __slots__ = ("_callback", "_due", "_runtime", "_timer", "_wanted")

    def __init__(self, runtime: Runtime, callback: Callable[[], object]) -> None:
        self._runtime = runtime
        self._callback = callback
        self._timer: Timer | None = None
        self._due = 0.0
        self._wanted = 0.0

    def set(self, when: float) -> None:
        """Call back at this time of the runtime's clock, instead of the time set before."""
        self._wanted = when
        if self._timer is None or when < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = when
            self._timer = self._runtime.call_at(when, self._fire)

    def bring_forward(self, when: float) -> None:
        """Call back no later than this."""
        if self._timer is None or when < self._wanted:
            self.set(when)

    def cancel(self) -> None:
        """Do not call back."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        if self._runtime.time() < self._wanted:
            self.set(self._wanted)
        else:
            self._callback()
