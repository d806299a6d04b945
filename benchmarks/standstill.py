"""How long the event loop is blocked: the longest time between two of its turns.

Python's garbage collector blocks the loop, too, and longer the more objects the program has. Its time is counted separately.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

_GOING_ROUND = 5e-5
"""The longest processor time, in seconds, of a turn in which nothing is done."""


@dataclass(slots=True)
class Standstill:
    """The longest turn so far, and the sum of all turns."""

    seconds: float = 0.0
    """The longest turn by the wall clock: on a busy machine it may include other processes."""
    computing: float = 0.0
    """The longest processor time of the loop's thread in one turn, in seconds."""
    collecting: float = 0.0
    """The processor time of the longest garbage collection, in seconds; only the first figure includes it."""
    busy: float = 0.0
    """The processor time of all turns in which something was done, in seconds."""

    def forget(self) -> None:
        self.seconds = self.computing = self.collecting = self.busy = 0.0


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[Standstill]:
    """Measure each turn of the loop, and record the longest."""
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
