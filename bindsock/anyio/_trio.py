"""Implements the event loop protocol of :mod:`bindsock.netmon.loop` on trio: readers, writers and timers.

They are system tasks, which belong to no nursery of the program and end with the run.
"""

from __future__ import annotations

import functools
import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from bindsock.netmon.runtime import Runtime, find_runtime

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator


_logger = logging.getLogger("bindsock")


class TrioLoop:
    """Implements :class:`bindsock.netmon.loop.Loop` for one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = weakref.ref(token)
        self._readers: dict[int, _Registration] = {}
        self._writers: dict[int, _Registration] = {}

    def is_closed(self) -> bool:
        """Whether the run has ended, or another run is the current one."""
        try:
            return trio.lowlevel.current_trio_token() is not self._token()
        except RuntimeError:
            return True

    def time(self) -> float:
        return trio.current_time()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(_safely, callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        token = self._token()
        if token is not None:
            token.run_sync_soon(_safely, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> TrioTimer:
        timer = TrioTimer()
        trio.lowlevel.spawn_system_task(timer.run, trio.current_time() + delay, callback, args, name="bindsock timer")
        return timer

    def create_future(self) -> TrioFuture:
        return TrioFuture()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        _logger.error(context["message"], exc_info=context.get("exception"))

    def add_reader(self, fd: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        self._add(self._readers, trio.lowlevel.wait_readable, fd, callback, args)

    def add_writer(self, fd: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        self._add(self._writers, trio.lowlevel.wait_writable, fd, callback, args)

    def remove_reader(self, fd: int | socket.socket) -> bool:
        return self._remove(self._readers, fd)

    def remove_writer(self, fd: int | socket.socket) -> bool:
        return self._remove(self._writers, fd)

    def _add(
        self,
        registry: dict[int, _Registration],
        wait: Callable[[int], Any],
        fd: int | socket.socket,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        registration = registry.get(number)
        if registration is not None:
            registration.call = functools.partial(callback, *args)
            return
        registration = registry[number] = _Registration(functools.partial(callback, *args))
        trio.lowlevel.spawn_system_task(self._call_when_ready, registry, registration, wait, number, name="bindsock reader")

    def _remove(self, registry: dict[int, _Registration], fd: int | socket.socket) -> bool:
        number = fd if isinstance(fd, int) else fd.fileno()
        if registry.pop(number, None) is None:
            return False
        # This wakes all tasks that wait for the descriptor, because it may be closed next. Registered ones wait again.
        trio.lowlevel.notify_closing(number)
        return True

    async def _call_when_ready(
        self, registry: dict[int, _Registration], registration: _Registration, wait: Callable[[int], Any], fd: int
    ) -> None:
        while registry.get(fd) is registration:
            try:
                await wait(fd)
            except trio.ClosedResourceError:
                continue
            if registry.get(fd) is registration:
                _safely(registration.call)


def trio_runtime() -> Runtime:
    """The runtime of the current trio run."""
    token = trio.lowlevel.current_trio_token()

    def make() -> Runtime:
        loop = TrioLoop(token)
        return Runtime(lambda: loop, trio.current_time, until_end=_spawn_until_end)

    return find_runtime(token, make)


@dataclass(slots=True, eq=False)
class _Registration:
    """The callback for a descriptor that becomes ready."""

    call: Callable[[], object]


class TrioTimer:
    """The timer that ``call_later`` returns."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        self._scope.cancel()

    async def run(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        with self._scope:
            await trio.sleep_until(when)
            _safely(callback, *args)


class TrioFuture:
    """The future that :meth:`TrioLoop.create_future` returns. It is awaited once, and its result is ``None``."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def done(self) -> bool:
        return self._event.is_set()

    def cancelled(self) -> bool:
        return False

    def set_result(self, result: None) -> None:
        self._event.set()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()


def _spawn_until_end(callback: Callable[[], None]) -> object:
    """
    :return: an object that does not hold the run, because the runtime must not keep the run alive
    """
    trio.lowlevel.spawn_system_task(_until_end, callback, name="bindsock")
    return True


async def _until_end(callback: Callable[[], None]) -> None:
    """Call back when the run ends, which cancels its system tasks."""
    try:
        await trio.sleep_forever()
    finally:
        callback()


def _safely(function: Callable[..., object], *args: Any) -> None:
    """Call a function and log its exception, which would otherwise crash the whole run."""
    try:
        function(*args)
    except Exception:
        _logger.exception("a callback of bindsock failed")
