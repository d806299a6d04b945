"""Looks again later, ever more rarely, at a socket that could not be moved."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

FIRST_RETRY = 0.05
LAST_RETRY = 5.0
"""Seconds between two attempts, doubling, with jitter."""


class Retry:
    """One timer, whose delay doubles until :meth:`reset`.

    :param loop: the event loop; held weakly
    """

    __slots__ = ("_delay", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._timer: asyncio.TimerHandle | None = None
        self._delay = FIRST_RETRY

    def later(self, callback: Callable[[], object]) -> float | None:
        """Call back after the delay, unless :meth:`cancel` comes first.

        :return: the delay, in seconds; ``None`` if there is no event loop any more
        """
        self.cancel()
        loop = self._loop()
        if loop is None or loop.is_closed():
            return None
        delay = self._delay * random.uniform(0.5, 1.0)
        self._delay = min(2 * self._delay, LAST_RETRY)
        self._timer = loop.call_later(delay, callback)
        return delay

    def cancel(self) -> None:
        """Do not call back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reset(self) -> None:
        """It worked: begin with the first delay the next time."""
        self._delay = FIRST_RETRY
