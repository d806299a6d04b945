"""How to know that an asyncio event loop ends, without a task that a program would have to wait for."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any


def call_at_end(loop: Callable[[], object], callback: Callable[[], None]) -> AsyncGenerator[None, None]:
    """Call something when the running loop is shut down, and again when it is freed.

    ``asyncio.run`` closes all asynchronous generators of its loop before the loop itself, so one of them does it. A loop that is
    closed by hand is known to have ended when it is freed.

    :param loop: returns the loop, which runs
    :return: the generator, which must be kept until then
    """
    owner = loop()
    if owner is not None:
        finalizer = weakref.finalize(owner, callback)
        finalizer.atexit = False
    sentinel = _until_shutdown(callback)
    hooks = sys.get_asyncgen_hooks()
    # The generator would hold the loop by its finalizer, which is a method of the loop, and so the loop would never be freed.
    sys.set_asyncgen_hooks(firstiter=hooks.firstiter, finalizer=None)
    try:
        _step(sentinel.asend(None))
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return sentinel


async def _until_shutdown(callback: Callable[[], None]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        callback()


def _step(awaitable: Any) -> None:
    """Run an awaitable that never suspends."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        awaitable.send(None)
        raise RuntimeError("the generator was expected not to suspend")
