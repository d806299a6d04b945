"""Calls of the system that may take long: the end of an event loop does not wait for them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")
_LOOK = 0.2
"""Seconds after which a wait begins again: a signal that arrives just before a wait begins does not end it."""


class AbandonedThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, for which nobody waits at the end: not the event loop, not the interpreter.

    An event loop only takes a :class:`ThreadPoolExecutor` as its default executor.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001, the future has it
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, name=f"bindsock {getattr(fn, '__name__', 'call')}", daemon=True).start()
        return future


def interruptible(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of the system so that Ctrl-C ends the wait for it."""
    future = AbandonedThreads().submit(function, *args, **kwargs)
    while not future.done():
        wait([future], _LOOK)
    return future.result()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as :func:`asyncio.run` does. Its end does not wait for a name server."""

    async def run_main() -> T:
        asyncio.get_running_loop().set_default_executor(AbandonedThreads())
        return await main

    return asyncio.run(run_main())
