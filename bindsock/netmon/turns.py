"""Many small pieces of work without holding up the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("bindsock")

BUDGET = 0.01
"""Seconds that the work of one turn of the loop may take together."""


class CallbackBudget:
    """Does work at once, or, when much of it comes in one turn of the loop, in the turns after, in order.

    :param loop: the event loop; held weakly
    :param clock: seconds
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = weakref.ref(loop)
        self._clock = clock
        self._queue: deque[Callable[[], object]] = deque()
        self._spent = 0.0
        self._scheduled = False

    def do(self, work: Callable[[], object]) -> None:
        """Do it now or soon. If it raises, that is logged."""
        self._queue.append(work)
        if len(self._queue) == 1:
            self._go_on()
        self._schedule()

    def _go_on(self) -> None:
        while self._queue and self._spent < BUDGET:
            begun = self._clock()
            try:
                self._queue[0]()
            except Exception:
                logger.exception("a connection could not follow; the others go on")
            self._queue.popleft()
            self._spent += self._clock() - begun

    def _schedule(self) -> None:
        loop = self._loop()
        if not self._scheduled and loop is not None and not loop.is_closed():
            self._scheduled = True
            loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._spent = 0.0
        if self._queue:
            self._go_on()
            self._schedule()


_pacers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CallbackBudget] = weakref.WeakKeyDictionary()


def callback_budget(loop: asyncio.AbstractEventLoop) -> CallbackBudget:
    """The loop's own pacer."""
    pacer = _pacers.get(loop)
    if pacer is None:
        pacer = _pacers[loop] = CallbackBudget(loop)
    return pacer
