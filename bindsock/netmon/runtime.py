"""What there is once for each event loop, in one place.

Whatever needs the loop, the clock or a timer takes the :class:`Runtime`. It does not keep the loop alive. Once the loop is
closed or gone, its methods do nothing, so that callers need not check.
"""

from __future__ import annotations

import functools
import random
import socket
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from bindsock.netmon.loop import Clock, Future, Loop, Timer, clock_of
from bindsock.netmon.shutdown import call_at_end

T = TypeVar("T")


class Runtime:
    """One event loop's clock, timers and descriptors, and the objects that everything on that loop shares.

    :param loop: returns the loop, or ``None`` when there is none any more
    :param clock: monotonic seconds, of the loop's timers
    :param until_end: calls what it is given when the loop ends, and returns what must be kept until then
    :param random: a number between 0 and 1, for delays that are not to coincide
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
        """The loop's clock, in seconds. It only ever goes forward."""
        self.random = random
        self._loop = loop
        self._until_end = until_end
        self._sentinel: object = None
        self._at_end: set[weakref.WeakMethod[Callable[[], object]]] = set()
        self._shared: dict[Callable[[Runtime], Any], Any] = {}

    @property
    def loop(self) -> Loop | None:
        """The loop, ``None`` once it is closed or gone."""
        loop = self._loop()
        return loop if loop is not None and not loop.is_closed() else None

    @property
    def closed(self) -> bool:
        """Whether the loop is closed or gone, so that nothing will be called any more."""
        return self.loop is None

    def shared(self, kind: Callable[[Runtime], T]) -> T:
        """The one object of a kind on this loop, made when it is first asked for.

        :param kind: its class, which is called with the runtime
        """
        found: T | None = self._shared.get(kind)
        if found is None:
            found = self._shared[kind] = kind(self)
        return found

    def at_end(self, method: Callable[[], object]) -> None:
        """Call a method once when the loop ends. It is held weakly, as its object is.

        ``asyncio.run`` ends a loop, a trio run ends by itself, and a loop that is closed by hand ends when it is freed.
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
        """Call it in the next turn of the loop."""
        loop = self.loop
        if loop is not None:
            loop.call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it after some seconds.

        :return: what cancels it
        """
        loop = self.loop
        return _TimerReference(loop.call_later(delay, callback, *args)) if loop is not None else _NEVER

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it at a time of :attr:`time`.

        :return: what cancels it
        """
        return self.call_later(max(0.0, when - self.time()), callback, *args)

    def create_future(self) -> Future:
        """Something that a coroutine on this loop can wait for.

        :raises RuntimeError: the loop is closed
        """
        loop = self.loop
        if loop is None:
            raise RuntimeError("Event loop is closed")
        return loop.create_future()

    def add_reader(self, sock: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        """Call it whenever the descriptor has something to read."""
        loop = self.loop
        if loop is not None:
            loop.add_reader(_descriptor(sock), callback, *args)

    def remove_reader(self, sock: int | socket.socket) -> None:
        """Stop that. Harmless if the descriptor is closed or was not registered."""
        loop, descriptor = self.loop, _descriptor(sock)
        if loop is not None and descriptor != -1:
            loop.remove_reader(descriptor)

    def add_writer(self, sock: int | socket.socket, callback: Callable[..., object], *args: Any) -> None:
        """Call it whenever the descriptor takes something."""
        loop = self.loop
        if loop is not None:
            loop.add_writer(_descriptor(sock), callback, *args)

    def remove_writer(self, sock: int | socket.socket) -> None:
        """Stop that. Harmless if the descriptor is closed or was not registered."""
        loop, descriptor = self.loop, _descriptor(sock)
        if loop is not None and descriptor != -1:
            loop.remove_writer(descriptor)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody can be told of otherwise."""
        loop = self.loop
        if loop is not None:
            loop.call_exception_handler(context)


class _TimerReference(weakref.ref[Timer]):
    """A timer of a loop, which holds it until it is due. asyncio's timers hold their loop, so they are held weakly."""

    __slots__ = ()

    def cancel(self) -> None:
        timer = self()
        if timer is not None:
            timer.cancel()


class _Never:
    """The timer of a loop that is closed."""

    def cancel(self) -> None:
        pass


_NEVER = _Never()


def _descriptor(sock: int | socket.socket) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


_runtimes: weakref.WeakKeyDictionary[object, Runtime] = weakref.WeakKeyDictionary()
"""The only registry at module level: each loop's runtime, for as long as the loop lives."""


def runtime_of(loop: Loop) -> Runtime:
    """The runtime of an event loop, made when it is first asked for."""
    runtime = _runtimes.get(loop)
    if runtime is not None:
        return runtime

    def make() -> Runtime:
        held = weakref.ref(loop)
        return Runtime(held, clock_of(loop), until_end=functools.partial(call_at_end, held))

    return find_runtime(loop, make)


def runtimes() -> list[tuple[object, Runtime]]:
    """Each event loop that has a runtime, with it. Can be called from any thread."""
    pairs = ((run, _runtimes.get(run)) for reference in _runtimes.keyrefs() if (run := reference()) is not None)
    return [(run, runtime) for run, runtime in pairs if runtime is not None]


def find_runtime(run: object, make: Callable[[], Runtime]) -> Runtime:
    """The runtime of whatever stands for an event loop that runs.

    :param run: held weakly; the runtime must not hold it
    :param make: called when there is no runtime yet
    """
    runtime = _runtimes.get(run)
    if runtime is None:
        runtime = _runtimes[run] = make()
    return runtime
