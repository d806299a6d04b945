"""The protocol of an event loop: the methods that bindsock needs.

They are asyncio's, so the loops of asyncio and uvloop implement them already. :class:`bindsock.anyio._trio.TrioLoop` implements
them for trio.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Returns the time in monotonic seconds."""


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> object:
        """Cancel the call. Does nothing if it has been made."""


class Future(Protocol):
    """A result that one coroutine awaits."""

    def __await__(self) -> Generator[Any, None, Any]: ...

    def done(self) -> bool:
        """Whether it has a result or was cancelled."""

    def set_result(self, result: None, /) -> object:
        """Wake the waiting coroutine."""


class Loop(Protocol):
    """An event loop. Each method does the same as asyncio's method of that name."""

    def time(self) -> float: ...

    def is_closed(self) -> bool: ...

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...

    def create_future(self) -> Future: ...

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: Any) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: Any) -> object: ...

    def remove_writer(self, fd: int, /) -> object: ...

    def call_exception_handler(self, context: dict[str, Any], /) -> object: ...


def clock_of(loop: Loop) -> Clock:
    """The clock of a loop's timers, as a function that holds the loop weakly.

    asyncio uses the system's monotonic clock. So does uvloop, but its ``time()`` returns the time at which the iteration of the
    loop started, in whole milliseconds (libuv's ``uv_now()``). Other loops, such as a test's loop with a virtual clock, are asked
    for the time. ``loop.time`` may also be a plain function: Home Assistant sets it to ``time.monotonic``.
    """
    if isinstance(loop, asyncio.BaseEventLoop):
        if getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time:
            return time.monotonic
    elif isinstance(loop, asyncio.AbstractEventLoop):
        return time.monotonic
    held = weakref.ref(loop)

    def now() -> float:
        alive = held()
        return alive.time() if alive is not None else time.monotonic()

    return now
