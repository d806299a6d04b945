"""Functions to wait for events in tests that run in real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until something is true. It is asked every millisecond at first, later every 20 ms.

    :param seconds: the time after which the test fails
    """
    delay = 0.001
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(delay)
            delay = min(delay * 1.02, 0.02)


async def settle() -> None:
    """Let scheduled callbacks run, and data sent over loopback arrive."""
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
