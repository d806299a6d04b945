"""The time that the machine has slept, from two clocks that cannot be read at the same time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from bindsock.kernel import clocks

if TYPE_CHECKING:
    from collections.abc import Iterator

TOTAL, AWAKE = 7, 1


def stopped(*pauses: float) -> Iterator[float]:
    """The thread is stopped for so many seconds after each reading of a clock, and not any more afterwards."""
    yield from pauses
    while True:
        yield 0.0


@pytest.mark.parametrize("pauses", [(), (5.0,), (0.0, 5.0), (0.0, 0.0, 5.0), (5.0, 5.0, 5.0, 5.0)])
def test_a_thread_that_is_stopped_between_the_clocks_has_not_slept_any_longer(
    monkeypatch: pytest.MonkeyPatch, pauses: tuple[float, ...]
) -> None:
    now, stops = 100.0, stopped(*pauses)

    def clock_gettime(clock: int) -> float:
        nonlocal now
        shown = now + (50.0 if clock == TOTAL else 0.0)
        now += next(stops)
        return shown

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    assert clocks.asleep(TOTAL, AWAKE) == 50.0
