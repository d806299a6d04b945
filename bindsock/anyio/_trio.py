"""What bindsock needs of an event loop, on trio: readers, writers and timers. And the driver that runs a watcher with them.

All of it is done by system tasks, which are nobody's children and end with the run.
"""

from __future__ import annotations

import functools
import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import trio

from bindsock.netmon.runtime import Runtime, find_runtime

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Generator

    from bindsock.kernel import EventSource
    from bindsock.netmon.watcher import Watcher

logger = logging.getLogger("bindsock")


class TrioLoop:
    """The few methods of an asyncio event loop by which watchers, guards and datagram transports live, for one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = weakref.ref(token)
        self._readers: dict[int, _Registration] = {}
        self._writers: dict[int, _Registration] = {}

    def is_closed(self) -> bool:
        """Whether the run is over, or another one than this."""
        try:
            return trio.lowlevel.current_trio_token() is not self._token()
        except RuntimeError:
            return True

    def time(self) -> float:
        return trio.current_time()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(_safely, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> TrioTimer:
        return self.call_at(trio.current_time() + delay, callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> TrioTimer:
        timer = TrioTimer(when)
        trio.lowlevel.spawn_system_task(timer.run, callback, args, name="bindsock timer")
        return timer

    def create_future(self) -> TrioFuture:
        return TrioFuture()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        logger.error(context["message"], exc_info=context.get("exception"))

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
        # It wakes whoever waits for the descriptor, which may be closed next. A waiter that is still registered waits again.
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
    """The runtime of the trio run that this is called in."""
    token = trio.lowlevel.current_trio_token()

    def make() -> Runtime:
        loop = TrioLoop(token)
        return Runtime(lambda: loop, trio.current_time)

    return find_runtime(token, make)


@dataclass(slots=True, eq=False)
class _Registration:
    """What to call when a descriptor is ready."""

    call: Callable[[], object]


class TrioTimer:
    """What ``call_later`` returns."""

    def __init__(self, when: float) -> None:
        self._when = when
        self._scope = trio.CancelScope()
        self._cancelled = False

    def when(self) -> float:
        return self._when

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        self._scope.cancel()

    async def run(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        with self._scope:
            await trio.sleep_until(self._when)
            _safely(callback, *args)


class TrioFuture:
    """What :meth:`TrioLoop.create_future` returns: it is awaited once, and never gets but ``None``."""

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


class TrioDriver:
    """Runs a watcher on trio. A :class:`bindsock.netmon.watcher.Driver`.

    The watcher's clock must be :func:`trio.current_time`, so that it keeps pace with a test's ``MockClock``.
    """

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._watcher: Watcher | None = None
        self._reading: dict[int, EventSource] = {}
        self._timer: TrioTimer | None = None
        self._sentinel: trio.CancelScope | None = None

    def start(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._sentinel = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._until_end, watcher, self._sentinel, name="bindsock watcher")
        self.rearm()

    def rearm(self) -> None:
        watcher = self._watcher
        if watcher is None:
            return
        wanted = {source.fileno(): source for source in watcher.sources}
        for fd in self._reading.keys() - wanted.keys():
            self._loop.remove_reader(fd)
            del self._reading[fd]
        for fd, source in wanted.items():
            if fd not in self._reading:
                self._loop.add_reader(fd, watcher.readable, source)
                self._reading[fd] = source
        when = self._loop.time() + watcher.deadline() - watcher.clock()
        # A timer that is due earlier than needed asks again when it comes: cheaper than a new one at each event.
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._fire)

    def stop(self) -> None:
        self._watcher = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for fd in self._reading:
            self._loop.remove_reader(fd)
        self._reading.clear()
        if self._sentinel is not None:
            self._sentinel.cancel()
            self._sentinel = None

    def create_future(self) -> asyncio.Future[None]:
        return cast("asyncio.Future[None]", self._loop.create_future())

    def _fire(self) -> None:
        self._timer = None
        if self._watcher is not None:
            self._watcher.timer()

    async def _until_end(self, watcher: Watcher, sentinel: trio.CancelScope) -> None:
        """System tasks are cancelled when the run ends: the watcher must close its descriptors."""
        try:
            with sentinel:
                await trio.sleep_forever()
        finally:
            if self._sentinel is sentinel:
                watcher.stop()


def _safely(function: Callable[..., object], *args: Any) -> None:
    """An exception in a system task would take the whole run with it."""
    try:
        function(*args)
    except Exception:
        logger.exception("a callback failed")
