"""Ends many objects after a lifetime. All objects with the same lifetime share one timer of the event loop."""

from __future__ import annotations

import functools
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

_BATCH = 4
"""How many objects end before the time budget is checked again."""


class Expiring(Protocol):
    """An object with a lifetime."""

    until: float | None
    """When it ends, in monotonic seconds; ``None`` if it does not end."""

    def expire(self) -> None:
        """End, because the lifetime is over."""


class Expiry:
    """The objects with a lifetime on one event loop.

    :param runtime: the event loop
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._budget = runtime.shared(CallbackBudget)
        self._waiting: dict[float, deque[Expiring]] = {}
        """The objects by lifetime in seconds, the oldest first."""

    def add(self, expiring: Expiring, seconds: float) -> None:
        """End an object after so many seconds."""
        expiring.until = self._runtime.time() + seconds
        waiting = self._waiting.get(seconds)
        if waiting is None:
            waiting = self._waiting[seconds] = deque()
            self._runtime.call_after_reading(seconds, self._end_due, seconds)
        waiting.append(expiring)

    def _end_due(self, seconds: float) -> None:
        waiting, now = self._waiting[seconds], self._runtime.time()
        ended = 0
        while waiting and ended < _BATCH:
            expiring = waiting[0]
            if expiring.until is not None and expiring.until > now:
                self._runtime.call_after_reading(expiring.until - now, self._end_due, seconds)
                return
            waiting.popleft()
            if expiring.until is not None:
                ended += 1
                self._end(expiring)
        if waiting:
            self._budget.do(functools.partial(self._end_due, seconds))
        else:
            del self._waiting[seconds]

    def _end(self, expiring: Expiring) -> None:
        expiring.until = None
        try:
            expiring.expire()
        except Exception:
            _logger.exception("an object failed to end; the others are not affected")
