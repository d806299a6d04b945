"""Calls back when an asyncio event loop ends, without a task that the program would have to wait for."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any


def call_at_end(loop: Callable[[], object], callback: Callable[[], None]) -> AsyncGenerator[None, None]:
    """Call back when the running loop is shut down, and again when it is freed.

    ``asyncio.run`` closes the asynchronous generators of its loop before the loop, so a generator can call back then. A loop that
    is closed by hand does not close them; it calls back when it is freed.

    :param loop: returns the running loop
    :param callback: the function to call
    :return: the generator, which must be kept until then
    """
    owner = loop()
    if owner is not None:
        finalizer = weakref.finalize(owner, callback)
        finalizer.atexit = False
    sentinel = _until_shutdown(callback)
    hooks = sys.get_asyncgen_hooks()
    # Without this, the generator would hold the loop by its finalizer, a method of the loop, and the loop would never be freed.
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
