"""How long the event loop stands still: the longest time between two of its turns.

Python's garbage collector stops the loop as well, for the longer the more objects the program has, whoever made them. Its time is
counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
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
    collecting: float = 0.0
    """Seconds of the processor's time of the longest garbage collection; it is in no other figure but the first."""
    busy: float = 0.0
    """Seconds of the processor's time in all turns in which more was done than to go round."""

    def forget(self) -> None:
        self.seconds = self.computing = self.collecting = self.busy = 0.0


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[Standstill]:
    """Take a turn of the loop after the other, and note the longest."""
    longest = Standstill()
    over = False
    collected = begun = 0.0

    def note(phase: str, _: object) -> None:
        nonlocal begun, collected
        if phase == "start":
            begun = time.thread_time()
        else:
            took = time.thread_time() - begun
            collected += took
            longest.collecting = max(longest.collecting, took)

    async def tick() -> None:
        nonlocal collected
        last, computed = time.perf_counter(), time.thread_time()
        while not over:
            await asyncio.sleep(0)
            now, computing = time.perf_counter(), time.thread_time()
            took, collected = computing - computed - collected, 0.0
            longest.seconds = max(longest.seconds, now - last)
            longest.computing = max(longest.computing, took)
            if took > _GOING_ROUND:
                longest.busy += took
            last, computed = now, computing

    gc.callbacks.append(note)
    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    try:
        yield longest
    finally:
        over = True
        gc.callbacks.remove(note)
        await ticking
