"""Functions to wait for events in tests that run in real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until something is true.

    :param seconds: the time after which the test fails
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let scheduled callbacks run, and data sent over loopback arrive."""
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
