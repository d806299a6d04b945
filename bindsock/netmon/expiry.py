"""Ends many things that each have the same time to live: all of them with one timer of the event loop."""

from __future__ import annotations

import functools
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

_PIECE = 4
"""Things that end between two looks at the clock."""
_SHORTEST = 0.001
"""Seconds between two looks at a thing that is not due yet: a loop's timers may come a little early."""


class Expiring(Protocol):
    """A thing that ends by itself."""

    until: float | None
    """When it ends, on the runtime's clock; set it to ``None`` and it does not."""

    def expire(self) -> None:
        """Its time is over."""


class Expiry:
    """The things that end by themselves on one event loop.

    :param runtime: the event loop
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._budget = runtime.shared(CallbackBudget)
        self._waiting: dict[float, deque[Expiring]] = {}
        """By the seconds that they have: those that came first end first."""

    def add(self, thing: Expiring, seconds: float) -> None:
        """End a thing after some seconds."""
        thing.until = self._runtime.time() + seconds
        waiting = self._waiting.get(seconds)
        if waiting is None:
            waiting = self._waiting[seconds] = deque()
            self._runtime.call_later(seconds, self._look, seconds)
        waiting.append(thing)

    def _look(self, seconds: float) -> None:
        waiting, now = self._waiting[seconds], self._runtime.time()
        ended = 0
        while waiting and ended < _PIECE:
            thing = waiting[0]
            if thing.until is not None and thing.until > now:
                self._runtime.call_later(max(thing.until - now, _SHORTEST), self._look, seconds)
                return
            waiting.popleft()
            if thing.until is not None:
                ended += 1
                self._end(thing)
        if waiting:
            self._budget.do(functools.partial(self._look, seconds))
        else:
            del self._waiting[seconds]

    def _end(self, thing: Expiring) -> None:
        thing.until = None
        try:
            thing.expire()
        except Exception:
            _logger.exception("something failed to end; the others end all the same")
