"""Exponential back-off: growing delays between attempts. All retries of bindsock use it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime


class Backoff:
    """Delays that grow by a factor, with jitter so that many waiters do not all try again at the same time.

    :param first: the first delay, in seconds
    :param last: the longest delay, in seconds
    :param factor: the ratio of a delay to the one before
    :param jitter: the random part of a delay, between 0 and 1
    :param random: returns a random number between 0 and 1
    """

    __slots__ = ("_delay", "_factor", "_first", "_jitter", "_last", "_random")

    def __init__(
        self,
        first: float,
        last: float,
        *,
        factor: float = 2.0,
        jitter: float = 0.5,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._last = last
        self._factor = factor
        self._jitter = jitter
        self._random = random
        self._delay = first

    def next(self) -> float:
        """The delay before the next attempt, in seconds."""
        delay = self._delay
        self._delay = min(delay * self._factor, self._last)
        return delay * (1.0 - self._jitter * self._random())

    def reset(self) -> None:
        """Start with the first delay again, after an attempt has succeeded."""
        self._delay = self._first


class Retry:
    """Calls back after the next delay of a back-off.

    :param runtime: the event loop and its clock
    :param callback: makes the attempt; it calls :meth:`schedule` if another attempt is needed
    :param first: the first delay, in seconds
    :param last: the longest delay, in seconds
    """

    __slots__ = ("_backoff", "_callback", "_runtime", "_timer")

    def __init__(
        self,
        runtime: Runtime,
        callback: Callable[[], object],
        first: float,
        last: float,
        *,
        factor: float = 2.0,
        jitter: float = 0.5,
    ) -> None:
        self._runtime = runtime
        self._callback = callback
        self._backoff = Backoff(first, last, factor=factor, jitter=jitter, random=runtime.random)
        self._timer: Timer | None = None

    @property
    def scheduled(self) -> bool:
        """Whether an attempt is scheduled."""
        return self._timer is not None

    def schedule(self) -> float:
        """Schedule the attempt after the next delay, instead of an attempt scheduled before.

        :return: the delay, in seconds
        """
        self.cancel()
        delay = self._backoff.next()
        self._timer = self._runtime.call_later(delay, self._call)
        return delay

    def cancel(self) -> None:
        """Cancel the scheduled attempt. The next delay stays as it is."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def reset(self) -> None:
        """Cancel the scheduled attempt and start with the first delay again, after an attempt has succeeded."""
        self.cancel()
        self._backoff.reset()

    def _call(self) -> None:
        self._timer = None
        self._callback()
