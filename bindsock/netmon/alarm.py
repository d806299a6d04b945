"""One timer whose time changes often."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime


class Alarm:
    """Calls something once, at a time that may be changed until then.

    A timer of the event loop that is too early is left as it is and set again when it comes. That is cheaper than a new one for
    each event.

    :param runtime: the event loop and its clock
    :param callback: what to call
    """

    __slots__ = ("_callback", "_due", "_runtime", "_timer", "_wanted")

    def __init__(self, runtime: Runtime, callback: Callable[[], object]) -> None:
        self._runtime = runtime
        self._callback = callback
        self._timer: Timer | None = None
        self._due = 0.0
        self._wanted = 0.0

    def set(self, when: float) -> None:
        """Call it at that time of the runtime's clock, instead of when it was to be called so far."""
        self._wanted = when
        if self._timer is None or when < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = when
            self._timer = self._runtime.call_at(when, self._ring)

    def bring_forward(self, when: float) -> None:
        """Call it no later than that."""
        if self._timer is None or when < self._wanted:
            self.set(when)

    def cancel(self) -> None:
        """Do not call it."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        if self._runtime.time() < self._wanted:
            self.set(self._wanted)
        else:
            self._callback()
