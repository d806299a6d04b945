"""Keeps one stable transport connected: feeds :mod:`bindsock.reconnect.machine` with what happens, and does what it says."""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import logging
import random
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bindsock.errors import InterfaceChanged
from bindsock.netmon.turns import callback_budget
from bindsock.options import DRAIN_TIMEOUT, RECONNECT_TIMEOUT, BetterPath
from bindsock.reconnect.connection import Attach, CloseMode, Connection, Dial
from bindsock.reconnect.machine import Action, Event, Machine, State, pause
from bindsock.reconnect.transport import ReplaceableTransport
from bindsock.stream.follower import PathFollower
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.viability import Viability

if TYPE_CHECKING:
    from bindsock.model.change import Cause
    from bindsock.netmon.watcher import Watcher
    from bindsock.reconnect.hooks import Hook
    from bindsock.routing.effective import Decider

logger = logging.getLogger("bindsock")

_ATTEMPTS = 5
MAX_CONCURRENT_REDIALS = 32
"""How many connections of one event loop are dialled anew at the same time."""

_PATH_ERRORS = frozenset(
    {
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
        errno.ENODEV,
        errno.ENXIO,
    }
)
"""With these a connection ends when its path is dead. A peer that has closed or was restarted is the application's affair."""


@dataclass(frozen=True, slots=True)
class Replacing:
    """How connections are replaced."""

    dial: Dial
    attach: Attach
    hook: Hook
    interface: str | None = None
    """The name of the interface to which the connection is pinned."""
    better_path: BetterPath = "auto"
    """``"keep"`` leaves a connection that works where it is; otherwise it goes where a new one would."""
    drain_timeout: float = DRAIN_TIMEOUT
    """Seconds for which what is on its way over the old connection is waited for."""
    reconnect_timeout: float | None = RECONNECT_TIMEOUT
    """Seconds after which a replacement is given up; ``None`` for never."""
    dead_after: float | None = None
    """Seconds of silence that a multipath connection may keep."""
    handshake: bool = True
    """Whether ``attach`` waits for the peer, as TLS does: then the path is watched meanwhile."""


class Controller:
    """Stands behind one stable transport."""

    def __init__(self, watcher: Watcher, loop: asyncio.AbstractEventLoop, how: Replacing) -> None:
        self.transport: ReplaceableTransport
        self._watcher = watcher
        self.loop = loop
        self._how = how
        self._machine = Machine()
        self._events: deque[Event] = deque()
        self._leg: Connection | None = None
        self._new: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._hook: asyncio.Task[None] | None = None
        self._hooks: set[asyncio.Task[None]] = set()
        """Those that have not ended."""
        self._dialler: asyncio.Task[None] | None = None
        self._resuming_next: Coroutine[Any, Any, None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._last_error: BaseException | None = None
        self._reason = ""
        self._attempt = 0
        self._rest = b""
        self._first = b""
        self._farewell: CloseMode = "kind"
        self._keep_open: bool | None = None
        self._follower = _Follower(self)
        weakref.finalize(self, watcher.unfollow, self._follower).atexit = False

    async def start(self, protocol: asyncio.BaseProtocol) -> ReplaceableTransport:
        """Connect for the first time.

        :raises OSError: the dial or the handshake failed
        """
        leg = self._leg = await self._connect()
        self._stand(leg)
        self.transport = ReplaceableTransport(self.loop, protocol, self, leg)
        try:
            self._watcher.follow(self._follower)
            protocol.connection_made(self.transport)
        except BaseException:
            self.abort()
            raise
        leg.pour(self.transport.deliver)
        if leg.ended or leg.finished:
            self._feed_end(leg)
        self.look()
        return self.transport

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def _current(self) -> Connection:
        assert self._leg is not None
        return self._leg

    # What the stable transport calls

    def close(self) -> None:
        self.feed(Event.CLOSE)

    def abort(self) -> None:
        self._farewell = "none"
        self.feed(Event.ABORT)

    def look(self) -> None:
        """Compare with the newest reading of the network."""
        if self._watcher.follows(self._follower):
            self.judge(self._watcher.refresh())

    # What the watcher calls

    def judge(self, decider: Decider) -> None:
        """Feed what a reading of the network means for the connections."""
        state = self._machine.state
        if state is State.RECONNECTING:
            decision = decider.with_pin(self._how.interface).decide(self._current.address)
            if decision.interface is not None or decision.unbound:
                self.feed(Event.USABLE)
            return
        if state in (State.DRAINING, State.RESUMING) and self._new is not None:
            self._judge_leg(self._new, decider, Event.NEW_LOST)
        if state in (State.LIVE, State.DIALLING, State.DRAINING, State.FINISHING):
            self._judge_leg(self._current, decider, Event.LOST)

    def _judge_leg(self, leg: Connection, decider: Decider, lost: Event) -> None:
        if leg.standing is None or leg.ended or leg.sock.fileno() == -1:
            return
        found = leg.standing.judge(leg.sock, decider)
        if found.viability is Viability.DEAD:
            if found.usable:
                self._reason = found.reason
                if lost is Event.LOST:
                    self._farewell = "reset"
                self.feed(lost)
        elif found.viability is Viability.WORKS and lost is Event.LOST:
            if found.better is None:
                self.feed(Event.STAYS)
            elif self._how.better_path != "keep" and not self.transport.busy:
                self._reason = found.reason
                self.feed(Event.BETTER)

    # What the legs call

    def leg_finished(self, leg: Connection) -> bool | None:
        if leg is not self._leg:
            return True
        self._keep_open = True
        self.feed(Event.FINISHED)
        return self._keep_open

    def leg_ended(self, leg: Connection) -> None:
        if leg is self._leg:
            self.feed(Event.BROKE if _of_the_path(leg.error) else Event.ENDED)
        elif leg is self._new and (leg.error is not None or self._machine.state is not State.RESUMING):
            self._failures += 1
            self._last_error = leg.error or self._last_error
            self.feed(Event.NEW_LOST)
        # The new one has ended in good order while the hook runs: it may have got all that it wanted.

    def leg_full(self, leg: Connection, full: bool) -> None:
        if leg is self._leg:
            self.transport.balance()

    # The machine

    def feed(self, event: Event) -> None:
        """Take an event in, and do what comes of it. What happens while that is done comes after it."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            try:
                self._take(self._events[0])
            except Exception as error:  # noqa: BLE001 - the application's protocol; asyncio's transports treat it likewise
                self._fail(error)
            finally:
                self._events.popleft()
        if self._machine.state is State.CLOSED:
            self._watcher.unfollow(self._follower)

    def _take(self, event: Event) -> None:
        before = self._machine.state
        actions = self._machine.feed(event)
        if self._machine.state is not before and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %s, %s -> %s", self, event.value, before.value, self._machine.state.value)
        for action in actions:
            _DO[action](self)

    def _fail(self, error: Exception) -> None:
        context = {"message": "Fatal error: a protocol failed while its connection was replaced", "exception": error}
        self.loop.call_exception_handler(context | {"transport": self.transport, "protocol": self.transport.get_protocol()})
        self.transport.end(error)
        self._events.append(Event.ABORT)

    def _cut(self) -> None:
        logger.info("%s is replaced: %s", self, self._reason or self._current.error)
        self._farewell = "kind" if self._machine.state is State.DRAINING else "reset"
        self.transport.cut()

    def _dial(self) -> None:
        self._task = _start(self.loop, self._dialling(), f"bindsock dial {self._current.address}")

    def _pause(self) -> None:
        self._timer = self.loop.call_later(pause(self._failures, random.random()), self._retry)

    def _retry(self) -> None:
        self._timer = None
        self.feed(Event.RETRY)

    def _hurry(self) -> None:
        if self._task is None and self._timer is not None:
            self._stop_timer()
            self.feed(Event.RETRY)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_dialling(self) -> None:
        self._stop_timer()
        self._failures = 0
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _start_clock(self) -> None:
        self._stop_clock()
        if self._how.reconnect_timeout is not None:
            self._clock = self.loop.call_later(self._how.reconnect_timeout, self.feed, Event.EXPIRED)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _drain(self) -> None:
        if self._current.half_close():
            self._timer = self.loop.call_later(self._how.drain_timeout, self._drained)
        else:
            self._wait_for_quiet(self._current.received, self.loop.time() + self._how.drain_timeout)

    def _wait_for_quiet(self, received: int, deadline: float) -> None:
        """Over TLS the peer cannot be told that nothing more will come, and need not end; until it is quiet for a while, then."""
        wait = min(self._how.drain_timeout / 4, max(deadline - self.loop.time(), 0.0))

        def look() -> None:
            if self._current.received == received or self.loop.time() >= deadline:
                self._drained()
            else:
                self._wait_for_quiet(self._current.received, deadline)

        self._timer = self.loop.call_later(wait, look)

    def _drained(self) -> None:
        self._timer = None
        self.feed(Event.DRAINED)

    def _drop(self) -> None:
        self._stop_timer()
        self._rest += self._current.rest()
        soon = self._machine.state is State.RESUMING
        self._current.drop(self._watcher.kernel, self._farewell, self.loop, soon=soon)

    def _drop_new(self) -> None:
        leg, self._new = self._new, None
        if leg is not None:
            leg.drop(self._watcher.kernel, "reset", self.loop)

    def _run_hook(self) -> None:
        assert self._new is not None
        self._attempt += 1
        resuming = self._resuming(self._new, self._attempt)
        if self._dialler is not None:
            self._hook, self._resuming_next = self._dialler, resuming
        else:
            self._hook = _start(self.loop, resuming, _hook_name(self._new))
        self._hooks.add(self._hook)
        self._hook.add_done_callback(self._hooks.discard)

    def _stop_hook(self) -> None:
        self._attempt += 1
        if self._hook is not None:
            self._hook.cancel()

    def _go_on(self) -> None:
        assert self._new is not None
        leg = self._leg = self._new
        self._new = self._hook = self._last_error = None
        self._failures = 0
        self._farewell = "kind"
        self._rest, first, self._first = b"", self._first, b""
        self._watcher.statistics.reconnected += 1
        logger.info("%s goes on", self)
        self.transport.replace(leg, first)
        self._feed_end(leg)

    def _tell_finished(self) -> None:
        self._keep_open = self.transport.finish()

    def _close(self) -> None:
        self._current.transport.close()

    def _tell_ended(self) -> None:
        self.transport.end(self._current.error)

    def _tell_closed(self) -> None:
        self.transport.end(None)

    def _give_up(self) -> None:
        error = InterfaceChanged(
            f"{self} was lost ({self._reason or self._current.error or 'a better path'}) and could not be replaced",
            interface=self._current.interface,
        )
        error.__cause__ = self._last_error or TimeoutError(errno.ETIMEDOUT, "there was no new connection in time")
        logger.info("%s; the last obstacle: %s", error, self._last_error)
        self._watcher.statistics.ended += 1
        self.transport.end(error)

    # The new connection

    async def _connect(self) -> Connection:
        """Dial until the handshake is done; a path that goes away meanwhile does not count as a failure."""
        how, watcher = self._how, self._watcher
        for attempts in itertools.count(1):
            leg = Connection(self, await how.dial())
            guard = self._guard(leg) if how.handshake else None
            try:
                leg.transport = await how.attach(leg, leg.sock)
                if leg.ended:
                    raise leg.error or ConnectionResetError(errno.ECONNRESET, "the connection ended as soon as it was made")
            except OSError:
                if guard is None or guard.error is None or attempts == _ATTEMPTS:
                    raise
                watcher.statistics.redialled += 1
            else:
                return leg
            finally:
                if guard is not None:
                    guard.close()
        raise AssertionError("the last attempt returns or raises")

    def _stand(self, leg: Connection) -> None:
        """Follow a new connection.

        :raises OSError: it has ended
        """
        if leg.path is not None:
            leg.standing = PathFollower(
                self._watcher,
                leg.sock,
                leg.address,
                self._how.interface,
                leg.path,
                self.loop,
                self.look,
                stays=self._how.better_path == "keep",
                dead_after=self._how.dead_after,
            )

    def _stand_and_look(self, leg: Connection) -> None:
        if leg.dropped or leg.ended:
            return
        try:
            self._stand(leg)
        except OSError as error:
            # One that is closing will say so itself.
            if not leg.transport.is_closing():
                self._failures += 1
                self._last_error = error
                self.feed(Event.NEW_LOST if leg is self._new else Event.BROKE)
        else:
            self.look()

    def _guard(self, leg: Connection) -> StreamGuard:
        """Ends the connection, and with it the handshake, when its path goes away."""
        how = self._how
        return follow_stream(
            self._watcher,
            leg.sock,
            leg.address,
            better_path="keep",
            interface=how.interface,
            dead_after=how.dead_after,
            path=leg.path,
            loop=self.loop,
        )

    async def _dialling(self) -> None:
        task = asyncio.current_task()
        try:
            async with _slots(self.loop):
                leg = await self._connect()
        except asyncio.CancelledError as error:
            # Not by this: by somebody who cancels all tasks there are.
            failure: BaseException = error
            if self._task is not task:
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the cause that the application is told in the end
            failure = error
        else:
            if self._task is not task:
                leg.drop(self._watcher.kernel, "reset", self.loop)
                return
            self._task = None
            self._new = leg
            # If it is the hook's turn, that goes on in this task, without another turn of the loop in between.
            self._dialler = task
            try:
                self.feed(Event.DIALLED)
            finally:
                self._dialler = None
            # What happened to the path meanwhile raises no further event; the hook, which may wait for ever, has begun by then.
            self.loop.call_soon(self._stand_and_look, leg)
            resuming, self._resuming_next = self._resuming_next, None
            if resuming is not None:
                if task is not None:
                    task.set_name(_hook_name(leg))
                await resuming
            return
        if self._task is task:
            logger.debug("%s: a dial has failed: %s", self, failure)
            self._task = None
            self._failures += 1
            self._last_error = failure
            self.feed(Event.DIAL_FAILED)

    async def _resuming(self, leg: Connection, attempt: int) -> None:
        # One that was stopped may not have noticed yet; two at a time would be one too many for the application.
        while len(self._hooks) > 1 and (before := self._hooks - {self._hook, asyncio.current_task()}):
            await asyncio.wait(before)
        if attempt != self._attempt:
            return
        try:
            first = await self._how.hook.run(leg, self.transport, self._rest)
        except (Exception, asyncio.CancelledError) as error:
            if attempt != self._attempt:
                return
            self._last_error = error
            if (leg.ended or leg.finished) and isinstance(error, (OSError, EOFError)):
                self._failures += 1
                self.feed(Event.NEW_LOST)
            else:
                self.feed(Event.HOOK_FAILED)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            if attempt == self._attempt:
                self._first = first
                self.feed(Event.RESUMED)

    def _feed_end(self, leg: Connection) -> None:
        """Feed what befell a connection before it was anybody's."""
        if leg.finished:
            self.feed(Event.FINISHED)
            if not self._keep_open and not leg.ended:
                leg.transport.close()
        if leg.ended:
            self.feed(Event.BROKE if _of_the_path(leg.error) else Event.ENDED)

    def __str__(self) -> str:
        return f"the connection to {self._current.address} over {self._current.interface}"


_DO: dict[Action, Callable[[Controller], None]] = {
    Action.CUT: Controller._cut,
    Action.DIAL: Controller._dial,
    Action.PAUSE: Controller._pause,
    Action.HURRY: Controller._hurry,
    Action.STOP_DIALLING: Controller._stop_dialling,
    Action.START_CLOCK: Controller._start_clock,
    Action.STOP_CLOCK: Controller._stop_clock,
    Action.DRAIN: Controller._drain,
    Action.DROP: Controller._drop,
    Action.RUN_HOOK: Controller._run_hook,
    Action.STOP_HOOK: Controller._stop_hook,
    Action.DROP_NEW: Controller._drop_new,
    Action.GO_ON: Controller._go_on,
    Action.LOOK: Controller.look,
    Action.TELL_FINISHED: Controller._tell_finished,
    Action.CLOSE: Controller._close,
    Action.TELL_ENDED: Controller._tell_ended,
    Action.TELL_CLOSED: Controller._tell_closed,
    Action.GIVE_UP: Controller._give_up,
}


class _Follower:
    """What the watcher holds: the connection itself lives only as long as its transport does."""

    def __init__(self, replacer: Controller) -> None:
        self._replacer = weakref.ref(replacer)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        replacer = self._replacer()
        if replacer is not None:
            callback_budget(replacer.loop).do(functools.partial(replacer.judge, decider))


def _start(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that begins in a later turn of the loop, when the caller has stored it.

    ``loop.create_task()`` runs the coroutine at once where the program has set ``asyncio.eager_task_factory``.
    """
    return asyncio.Task(coroutine, loop=loop, name=name)


def _hook_name(leg: Connection) -> str:
    return f"bindsock hook {leg.address} {leg.interface}"


def _of_the_path(error: Exception | None) -> bool:
    return isinstance(error, OSError) and error.errno in _PATH_ERRORS


_all_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _slots(loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
    slots = _all_slots.get(loop)
    if slots is None:
        slots = _all_slots[loop] = asyncio.Semaphore(MAX_CONCURRENT_REDIALS)
    return slots
