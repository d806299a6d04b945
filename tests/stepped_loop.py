"""A real event loop whose timers run only when the test advances the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bindsock.netmon.loop import Future, Timer
from bindsock.netmon.runtime import Runtime
from tests.virtual_loop import VirtualLoop


class SteppedLoop:
    """A :class:`bindsock.netmon.loop.Loop` on top of a real event loop, with a clock that only the test advances.

    Real sockets and transports work as usual, but bindsock's timers run only in :meth:`advance`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime = Runtime(lambda: self, self.time, random=lambda: 0.0)
        self._loop = loop
        self._virtual = VirtualLoop()

    def time(self) -> float:
        return self._virtual.now

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:
        return self._loop.call_soon(callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object:
        return self._loop.call_soon_threadsafe(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        if delay <= 0:
            return self._loop.call_later(0, callback, *args)
        return self._virtual.call_later(delay, callback, *args)

    def create_future(self) -> Future:
        return self._loop.create_future()

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: Any) -> None:
        self._loop.add_reader(fd, callback, *args)

    def remove_reader(self, fd: int, /) -> bool:
        return self._loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: Any) -> None:
        self._loop.add_writer(fd, callback, *args)

    def remove_writer(self, fd: int, /) -> bool:
        return self._loop.remove_writer(fd)

    def call_exception_handler(self, context: dict[str, Any], /) -> None:
        self._loop.call_exception_handler(context)

    @property
    def timers(self) -> list[float]:
        """The times at which the timers are due, the next one first."""
        return self._virtual.timers

    def advance(self, seconds: float) -> None:
        """Advance the clock, and call each timer at its time."""
        self._virtual.advance(seconds)
