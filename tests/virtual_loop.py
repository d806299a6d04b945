"""An event loop with a clock that only the test advances."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from bindsock.netmon.runtime import Runtime

T = TypeVar("T")


class VirtualLoop:
    """A :class:`bindsock.netmon.loop.Loop` that runs only when the test calls :meth:`turn` or :meth:`advance`.

    :ivar now: the time, in seconds
    :ivar readers: the callback for each descriptor that is watched for reading
    :ivar writers: the callback for each descriptor that is watched for writing
    :ivar errors: the contexts that were passed to :meth:`call_exception_handler`
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.readers: dict[int, Callable[[], object]] = {}
        self.writers: dict[int, Callable[[], object]] = {}
        self.errors: list[dict[str, Any]] = []
        self.runtime = Runtime(lambda: self, self.time, random=lambda: 0.0)
        self._closed = False
        self._order = itertools.count()
        self._timers: list[tuple[float, int, VirtualTimer]] = []

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._timers.clear()

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> VirtualTimer:
        return self.call_later(0.0, callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> VirtualTimer:
        return self.call_later(0.0, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> VirtualTimer:
        timer = VirtualTimer(lambda: callback(*args))
        heapq.heappush(self._timers, (self.now + delay, next(self._order), timer))
        return timer

    def create_future(self) -> VirtualFuture:
        return VirtualFuture(self)

    def create_task(self, coroutine: Coroutine[VirtualFuture, None, T]) -> VirtualTask[T]:
        """Run a coroutine until it waits, and resume it whenever its future is done."""
        return VirtualTask(coroutine)

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: Any) -> None:
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: int, /) -> bool:
        return self.readers.pop(fd, None) is not None

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: Any) -> None:
        self.writers[fd] = lambda: callback(*args)

    def remove_writer(self, fd: int, /) -> bool:
        return self.writers.pop(fd, None) is not None

    def call_exception_handler(self, context: dict[str, Any], /) -> None:
        self.errors.append(context)

    @property
    def timers(self) -> list[float]:
        """The times at which the timers are due, the next one first."""
        return sorted(when for when, _, timer in self._timers if not timer.cancelled)

    def turn(self) -> None:
        """Call the callbacks that are due now."""
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        """Advance the clock, and call each timer at its time."""
        end = self.now + seconds
        for _ in range(10_000):
            if not self._timers or self._timers[0][0] > end:
                self.now = end
                return
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            timer.run()
        raise AssertionError("the timers never rest")


class VirtualTimer:
    """A call that is scheduled on a :class:`VirtualLoop`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.cancelled = False
        self._call = call

    def cancel(self) -> None:
        self.cancelled = True

    def run(self) -> None:
        if not self.cancelled:
            self._call()


class VirtualFuture:
    """A future on a :class:`VirtualLoop`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.on_done: Callable[[], object] | None = None
        self._loop = loop
        self._done = False

    def __await__(self) -> Generator[Any, None, None]:
        while not self._done:
            yield self

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None, /) -> None:
        self._done = True
        if self.on_done is not None:
            self._loop.call_soon(self.on_done)


class VirtualTask(Generic[T]):
    """A coroutine that runs on a :class:`VirtualLoop`.

    :ivar done: whether it has returned or raised
    """

    def __init__(self, coroutine: Coroutine[VirtualFuture, None, T]) -> None:
        self.done = False
        self._coroutine = coroutine
        self._result: T | None = None
        self._error: Exception | None = None
        self._step()

    def result(self) -> T | None:
        """The coroutine's result. Raises the coroutine's exception."""
        assert self.done
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Cancel the coroutine: it cleans up and ends."""
        self._coroutine.close()

    def _step(self) -> None:
        try:
            self._coroutine.send(None).on_done = self._step
        except StopIteration as end:
            self.done, self._result = True, end.value
        except Exception as error:  # noqa: BLE001 - for the test that asks for the result
            self.done, self._error = True, error
