"""The one owner of everything that exists once for each event loop.

Code that needs the loop, the clock or a timer takes the :class:`Runtime`. It holds the loop weakly. Once the loop is closed or
freed, the methods of the runtime do nothing, so that callers need not check.
"""

from __future__ import annotations

import contextlib
import functools
import random
import socket
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from bindsock.netmon.loop import Clock, Future, Loop, Timer, clock_of
from bindsock.netmon.shutdown import call_at_end

T = TypeVar("T")

_SHORTEST = 0.001
"""The shortest delay that uvloop does not take for none, in seconds."""


class Runtime:
    """The clock, the timers and the descriptors of one event loop, and the objects that are shared on it.

    :param loop: returns the loop, or ``None`` once it is freed
    :param clock: the clock of the loop's timers, in monotonic seconds
    :param until_end: takes a function to call when the loop ends, and returns an object that must be kept until then
    :param random: returns a random number between 0 and 1, for jitter
    """

    def __init__(
        self,
        loop: Callable[[], Loop | None],
        clock: Clock,
        *,
        until_end: Callable[[Callable[[], None]], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.time = clock
        """The loop's clock, in monotonic seconds."""
        self.random = random
        self._loop = loop
        self._until_end = until_end
        self._sentinel: object = None
        self._at_end: set[weakref.WeakMethod[Callable[[], object]]] = set()
        self._shared: dict[Callable[[Runtime], Any], Any] = {}

    @property
    def loop(self) -> Loop | None:
        """The loop; ``None`` once it is closed or freed."""
        loop = self._loop()
        return loop if loop is not None and not loop.is_closed() else None

    @property
    def closed(self) -> bool:
        """Whether the loop is closed or freed, so that it makes no more calls."""
        return self.loop is None

    def shared(self, kind: Callable[[Runtime], T]) -> T:
        """The object of a class that is shared on this loop. It is made on first use.

        :param kind: the class, which is called with the runtime
        """
        found: T | None = self._shared.get(kind)
        if found is None:
            found = self._shared[kind] = kind(self)
        return found

    def at_end(self, method: Callable[[], object]) -> None:
        """Call a bound method once when the loop ends. Its object is held weakly.

        A loop ends at the end of ``asyncio.run`` or of a trio run. A loop that is closed by hand ends when it is freed.
        """
        if self._sentinel is None and self._until_end is not None:
            self._sentinel = self._until_end(self._end)
        self._at_end.add(weakref.WeakMethod(method, self._at_end.discard))

    def _end(self) -> None:
        at_end, self._at_end = self._at_end, set()
        for reference in at_end:
            method = reference()
            if method is not None:
                method()
        self._sentinel = None

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back in the next iteration of the loop."""
        loop = self.loop
        if loop is not None:
            loop.call_soon(callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back in the next iteration of the loop. Can be called from any thread."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back after so many seconds.

        :return: the timer, which can be cancelled
        """
        loop = self.loop
        return _TimerReference(loop.call_later(delay, callback, *args)) if loop is not None else _NEVER

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back at a time of :attr:`time`.

        :return: the timer, which can be cancelled
        """
        return self.call_later(max(0.0, when - self.time()), callback, *args)

    def call_after_reading(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back after so many seconds, once the loop has read what had arrived by then.

        uvloop that was busy until then calls timers before it looks at sockets.

        :return: the timer, which can be cancelled
        """
        return _AfterReading(self, delay, functools.partial(callback, *args))

    def create_future(self) -> Future:
        """Make a future that a coroutine on this loop can await.

        :raises RuntimeError: the loop is closed
        """
        loop = self.loop
        if loop is None:
            raise RuntimeError("Event loop is closed")
        return loop.create_future()

    def add_reader(self, sock: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        """Call back whenever the descriptor is readable."""
        loop = self.loop
        if loop is not None:
            loop.add_reader(_descriptor(sock), callback, *args)

    def remove_reader(self, sock: int | socket.socket) -> None:
        """Remove the reader. Does nothing if the descriptor is closed or was not registered."""
        loop, descriptor = self.loop, _descriptor(sock)
        if loop is not None and descriptor != -1:
            loop.remove_reader(descriptor)

    def add_writer(self, sock: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        """Call back whenever the descriptor is writable."""
        loop = self.loop
        if loop is not None:
            loop.add_writer(_descriptor(sock), callback, *args)

    def remove_writer(self, sock: int | socket.socket) -> None:
        """Remove the writer. Does nothing if the descriptor is closed or was not registered."""
        loop, descriptor = self.loop, _descriptor(sock)
        if loop is not None and descriptor != -1:
            loop.remove_writer(descriptor)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that cannot be raised to any caller."""
        loop = self.loop
        if loop is not None:
            loop.call_exception_handler(context)


class _TimerReference(weakref.ref[Timer]):
    """A weak reference to a timer of the loop. asyncio's timers hold their loop, and the loop holds them until they are due."""

    __slots__ = ()

    def cancel(self) -> None:
        timer = self()
        if timer is not None:
            timer.cancel()


class _AfterReading:
    """A timer with a second, very short one behind it: between two timers a loop looks at its sockets."""

    def __init__(self, runtime: Runtime, delay: float, callback: Callable[[], object]) -> None:
        self._runtime = runtime
        self._callback = callback
        self._timer = runtime.call_later(delay, self._due)

    def cancel(self) -> None:
        self._timer.cancel()

    def _due(self) -> None:
        self._timer = self._runtime.call_later(_SHORTEST, self._callback)


class _Never:
    """A timer for a closed loop, which never fires."""

    def cancel(self) -> None:
        pass


_NEVER = _Never()


def _descriptor(sock: int | socket.socket) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


_runtimes: weakref.WeakKeyDictionary[object, Runtime] = weakref.WeakKeyDictionary()
"""The runtime of each loop, for as long as the loop lives. This is bindsock's only registry at module level."""


def runtime_of(loop: Loop) -> Runtime:
    """The runtime of an event loop. It is made on first use."""
    runtime = _runtimes.get(loop)
    if runtime is not None:
        return runtime

    def make() -> Runtime:
        held = weakref.ref(loop)
        return Runtime(held, clock_of(loop), until_end=functools.partial(call_at_end, held))

    return find_runtime(loop, make)


def runtimes() -> list[tuple[object, Runtime]]:
    """All event loops that have a runtime, with their runtimes. Can be called from any thread."""
    pairs = ((run, _runtimes.get(run)) for reference in _runtimes.keyrefs() if (run := reference()) is not None)
    return [(run, runtime) for run, runtime in pairs if runtime is not None]


def find_runtime(run: object, make: Callable[[], Runtime]) -> Runtime:
    """The runtime of an event loop, or of the object that identifies a trio run.

    :param run: the loop or the object, held weakly; the runtime must not hold it
    :param make: makes the runtime if there is none yet
    """
    runtime = _runtimes.get(run)
    if runtime is None:
        runtime = _runtimes[run] = make()
    return runtime
