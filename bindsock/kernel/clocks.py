"""How long the machine has slept: what two of the system's clocks differ by."""

from __future__ import annotations

import time

_AT_ONCE = 0.01
"""Seconds within which both clocks must have been read."""
_TRIES = 10


def asleep(total: int, awake: int) -> float:
    """How many seconds the machine has slept since it was started.

    A busy machine may stop the thread between the two clocks for any time, which must not count as a sleep.

    :param total: the clock that counts the sleep
    :param awake: the clock that does not
    """
    found: list[tuple[float, float]] = []
    for _ in range(_TRIES):
        before = time.clock_gettime(awake)
        slept = time.clock_gettime(total) - before
        span = time.clock_gettime(awake) - before
        if span < _AT_ONCE:
            return slept
        found.append((span, slept))
    return min(found)[1]
