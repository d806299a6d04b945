"""Spreads many small callbacks over several iterations of the event loop, so that they do not block it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

BUDGET = 0.003
"""How many seconds the callbacks may take in one iteration of the loop, all together."""


class CallbackBudget:
    """Makes callbacks at once until the budget is spent, and the others in later iterations of the loop, in order.

    :param runtime: the event loop
    :param clock: returns seconds
    """

    def __init__(self, runtime: Runtime, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._runtime = runtime
        self._clock = clock
        self._queue: deque[Callable[[], object]] = deque()
        self._spent = 0.0
        self._scheduled = False

    def do(self, work: Callable[[], object]) -> None:
        """Do it now or soon. An exception is logged."""
        self._queue.append(work)
        if len(self._queue) == 1:
            self._work()
        self._schedule()

    def do_later(self, work: Callable[[], object]) -> None:
        """Do it in a later iteration, so that the program goes first in this one. An exception is logged."""
        self._queue.append(work)
        self._schedule()

    def _work(self) -> None:
        while self._queue and self._spent < BUDGET:
            begun = self._clock()
            try:
                self._queue[0]()
            except Exception:
                _logger.exception("a connection could not follow the network; the others are not affected")
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
            self._work()
            self._schedule()
