"""Many small pieces of work without holding up the event loop."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

BUDGET = 0.005
"""Seconds that the work of one turn of the loop may take together."""


class CallbackBudget:
    """Does work at once, or, when much of it comes in one turn of the loop, in the turns after, in order.

    :param runtime: the event loop
    :param clock: seconds
    """

    def __init__(self, runtime: Runtime, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._runtime = runtime
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

    def do_later(self, work: Callable[[], object]) -> None:
        """Do it in a later turn, so that what the program does in this one comes first. If it raises, that is logged."""
        self._queue.append(work)
        self._schedule()

    def _go_on(self) -> None:
        while self._queue and self._spent < BUDGET:
            begun = self._clock()
            try:
                self._queue[0]()
            except Exception:
                _logger.exception("a connection could not follow; the others go on")
            self._queue.popleft()
            self._spent += self._clock() - begun

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._runtime.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._spent = 0.0
        if self._queue:
            self._go_on()
            self._schedule()
