"""What runs a watcher on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.kernel import EventSource

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher


class Driver(Protocol):
    """What lets a watcher run on an event loop."""

    def start(self, watcher: Watcher) -> None:
        """From now on, call ``watcher.readable(source)`` when one of ``watcher.sources`` is readable and ``watcher.timer()``
        at ``watcher.deadline()``."""

    def rearm(self) -> None:
        """The deadline or the sources have changed."""

    def stop(self) -> None:
        """Call nothing any more. The sources are still open."""

    def create_future(self) -> asyncio.Future[None]:
        """Something of the event loop's that can be awaited, with asyncio's ``done()`` and ``set_result()``."""


class AsyncioDriver:
    """Runs a watcher on an asyncio loop, uvloop included: readers and one timer, no thread and no task.

    The loop is held weakly. Three things end it: the watcher itself when nobody needs it any more; ``asyncio.run``, which
    closes all asynchronous generators of its loop before the loop itself, ours among them; and, for a loop that is closed by
    hand, the finalizer that closes the descriptors.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._watcher: Watcher | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._reading: dict[int, EventSource] = {}
        self._sentinel: AsyncGenerator[None, None] | None = None
        self._finalizer: weakref.finalize[[Sequence[EventSource]], asyncio.AbstractEventLoop] | None = None

    def start(self, watcher: Watcher) -> None:
        loop = self._loop()
        assert loop is not None
        self._watcher = watcher
        self._finalizer = weakref.finalize(loop, _close_all, tuple(watcher.sources))
        self._finalizer.atexit = False
        self._sentinel = self._until_shutdown()
        _step(self._sentinel.asend(None))
        self.rearm()

    def rearm(self) -> None:
        loop, watcher = self._loop(), self._watcher
        if loop is None or watcher is None or loop.is_closed():
            return
        if watcher.sources != list(self._reading.values()):
            self._read_from(watcher, loop)
        when = loop.time() + watcher.deadline() - watcher.clock()
        # A timer that is due earlier than needed asks again when it comes: cheaper than a new one at each event.
        # (uvloop's handle of what is due at once does not tell when.)
        if self._timer is None or self._timer.cancelled() or when < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when, self._fire)
            self._due = when

    def _read_from(self, watcher: Watcher, loop: asyncio.AbstractEventLoop) -> None:
        wanted = {source.fileno(): source for source in watcher.sources}
        for fd in self._reading.keys() - wanted.keys():
            loop.remove_reader(fd)
            del self._reading[fd]
        for fd, source in wanted.items():
            if fd not in self._reading:
                loop.add_reader(fd, watcher.readable, source)
                self._reading[fd] = source

    def stop(self) -> None:
        loop = self._loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if loop is not None and not loop.is_closed():
            for fd in self._reading:
                loop.remove_reader(fd)
        self._reading.clear()
        self._watcher = None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        sentinel, self._sentinel = self._sentinel, None
        if sentinel is not None:
            _step(sentinel.aclose())

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def _fire(self) -> None:
        self._timer = None
        if self._watcher is not None:
            self._watcher.timer()

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        """An asynchronous generator that the loop closes in ``shutdown_asyncgens()``, as ``asyncio.run`` does at its end.

        A task would do, too, but a program that waits for all its tasks would then wait for ever.
        """
        try:
            yield
        finally:
            if self._watcher is not None:
                self._sentinel = None
                self._watcher.stop()


def _step(awaitable: Any) -> None:
    """Run an awaitable that never suspends."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        awaitable.send(None)
        raise RuntimeError("the generator was expected not to suspend")


def _close_all(sources: Sequence[EventSource]) -> None:
    for source in sources:
        source.close()
