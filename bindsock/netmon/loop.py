"""What bindsock needs of an event loop.

The methods are asyncio's, so asyncio's loops and uvloop's have them already. For trio, :class:`bindsock.anyio._trio.TrioLoop` has
them.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Monotonic seconds."""


class Timer(Protocol):
    """A call that is scheduled."""

    def cancel(self) -> object:
        """Do not make the call. Harmless if it has been made."""


class Future(Protocol):
    """Something that one coroutine waits for."""

    def __await__(self) -> Generator[Any, None, Any]: ...

    def done(self) -> bool:
        """Whether it has a result, or nobody waits for it any more."""

    def set_result(self, result: None, /) -> object:
        """Wake the coroutine that waits."""


class Loop(Protocol):
    """An event loop. Each method does what asyncio's method of that name does."""

    def time(self) -> float: ...

    def is_closed(self) -> bool: ...

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...

    def create_future(self) -> Future: ...

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: Any) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: Any) -> object: ...

    def remove_writer(self, fd: int, /) -> object: ...

    def call_exception_handler(self, context: dict[str, Any], /) -> object: ...


def clock_of(loop: Loop) -> Clock:
    """The clock of a loop's timers, as a function that does not keep the loop alive.

    asyncio's clock is the system's monotonic one. So is uvloop's, but its ``time()`` is that of the beginning of the turn, in
    whole milliseconds (libuv's ``uv_now()``). Other loops, such as a test's with a clock of its own, are asked. ``time`` may be
    a function put there, as Home Assistant puts ``time.monotonic``.
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
