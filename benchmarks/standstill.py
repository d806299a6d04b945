"""How long the event loop stands still: the longest time between two of its turns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

_GOING_ROUND = 5e-5
"""Seconds of the processor's time that a turn takes at most in which nothing is done."""


@dataclass(slots=True)
class Standstill:
    """The longest turn so far, and what all took."""

    seconds: float = 0.0
    """By the clock on the wall: on a busy machine, another process may have had the processor meanwhile."""
    computing: float = 0.0
    """Seconds of the processor's time that the loop's thread took in one turn: what the loop itself did."""
    busy: float = 0.0
    """Seconds of the processor's time in all turns in which more was done than to go round."""

    def forget(self) -> None:
        self.seconds = self.computing = self.busy = 0.0


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[Standstill]:
    """Take a turn of the loop after the other, and note the longest."""
    longest = Standstill()
    over = False

    async def tick() -> None:
        last, computed = time.perf_counter(), time.thread_time()
        while not over:
            await asyncio.sleep(0)
            now, computing = time.perf_counter(), time.thread_time()
            longest.seconds = max(longest.seconds, now - last)
            longest.computing = max(longest.computing, computing - computed)
            if computing - computed > _GOING_ROUND:
                longest.busy += computing - computed
            last, computed = now, computing

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    try:
        yield longest
    finally:
        over = True
        await ticking
