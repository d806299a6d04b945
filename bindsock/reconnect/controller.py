"""Keeps one stable transport connected: feeds events to :mod:`bindsock.reconnect.machine` and carries out its actions."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bindsock.errors import InterfaceChanged
from bindsock.netmon.crowd import in_turns
from bindsock.reconnect.connecting import Connecting, ReconnectSettings
from bindsock.reconnect.connection import CloseMode, Connection
from bindsock.reconnect.draining import Draining
from bindsock.reconnect.machine import Action, Event, Machine, State
from bindsock.reconnect.resuming import Resuming
from bindsock.reconnect.transport import ReplaceableTransport
from bindsock.stream.follower import PathFollower
from bindsock.stream.plan import Orders, Step

if TYPE_CHECKING:
    from bindsock.model.change import Cause
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

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
"""The errors of a connection whose path is dead. Other errors come from the peer and are passed to the program."""


@dataclass(slots=True)
class _Removal:
    """Why and how the current connection will be dropped."""

    reason: str = ""
    mode: CloseMode = "orderly"


class Controller:
    """Owns the connections of one stable transport."""

    def __init__(self, watcher: Watcher, loop: asyncio.AbstractEventLoop, settings: ReconnectSettings) -> None:
        self.transport: ReplaceableTransport
        self._watcher = watcher
        self._settings = settings
        self._machine = Machine()
        self._events: deque[Event] = deque()
        self._connection: Connection | None = None
        self._new: Connection | None = None
        self._connecting = Connecting(watcher, loop, settings, self)
        self._resuming = Resuming(loop, settings.hook, self)
        self._draining = Draining(watcher.runtime, settings.options.drain_timeout)
        self._deadline: Timer | None = None
        self._removal = _Removal()
        self._follower = _WeakFollower(self)
        self._crowd = in_turns(watcher)
        weakref.finalize(self, self._crowd.unfollow, self._follower).atexit = False

    async def start(self, protocol: asyncio.BaseProtocol) -> ReplaceableTransport:
        """Connect for the first time.

        :raises OSError: the dial or the handshake failed
        """
        connection = self._connection = await self._connecting.connect()
        self._follow(connection)
        self.transport = ReplaceableTransport(self._watcher.runtime, protocol, self, connection)
        try:
            self._crowd.follow(self._follower)
            protocol.connection_made(self.transport)
        except BaseException:
            self.abort()
            raise
        connection.deliver_to(self.transport.deliver)
        if connection.ended or connection.finished:
            self._feed_end(connection)
        self.refresh()
        return self.transport

    @property
    def state(self) -> State:
        return self._machine.state

    def close(self) -> None:
        """Close the current connection, because all data has been written."""
        self.feed(Event.CLOSE)

    def abort(self) -> None:
        """End all connections at once."""
        self._removal.mode = "abrupt"
        self.feed(Event.ABORT)

    def refresh(self) -> None:
        """Process the newest reading of the network."""
        if self._crowd.follows(self._follower):
            self.update(self._watcher.refresh())

    def update(self, decider: Decider) -> None:
        """Feed the events that follow from a reading of the network."""
        state = self._machine.state
        if state is State.RECONNECTING:
            decision = decider.with_pin(self._settings.options.interface).decide(self._current.dialled.address)
            if decision.interface is not None or decision.unbound:
                self.feed(Event.USABLE)
            return
        if state in (State.WAITING, State.DRAINING, State.RESUMING) and self._new is not None:
            orders = _orders(self._new, decider)
            if orders is not None and (orders.step is Step.END or (orders.overdue and orders.found.usable)):
                self._removal.reason = orders.found.reason
                self.feed(Event.NEW_LOST)
        if state not in (State.RECONNECTING, State.RESUMING, State.CLOSED):
            orders = _orders(self._current, decider)
            if orders is not None:
                self._feed_orders(orders)

    def _feed_orders(self, orders: Orders) -> None:
        """Feed the event that follows from the orders for the current connection."""
        reason = orders.found.reason
        if orders.step is Step.WAIT:
            self._draining.stalled(orders.found.grace)
            if orders.found.usable:
                self._removal.reason = reason
                self.feed(Event.STALLED)
                if orders.overdue:
                    self.feed(Event.OVERDUE)
            return
        self._draining.recovered()
        if orders.step is Step.END:
            self._removal = _Removal(reason, "reset")
            self.feed(Event.LOST)
        elif orders.step is Step.STAY:
            self._removal.reason = ""
            self.feed(Event.STAYS)
        elif orders.step is Step.LEAVE and not self.transport.busy:
            self._removal.reason = reason
            self.feed(Event.BETTER)

    def connection_finished(self, connection: Connection) -> None:
        """See :class:`bindsock.reconnect.connection.ConnectionOwner`."""
        if connection is self._connection:
            self.feed(Event.FINISHED)

    def connection_ended(self, connection: Connection) -> None:
        """See :class:`bindsock.reconnect.connection.ConnectionOwner`."""
        if connection is self._connection:
            self.feed(Event.BROKE if _is_path_error(connection.error) else Event.ENDED)
        elif connection is self._new and (connection.error is not None or self._machine.state is not State.RESUMING):
            self._connecting.failed(connection.error)
            self.feed(Event.NEW_LOST)
        # If the new connection ends without an error while the hook runs, the hook may still have all the data that it needs.

    def connection_full(self, connection: Connection) -> None:
        """See :class:`bindsock.reconnect.connection.ConnectionOwner`."""
        if connection is self._connection:
            self.transport.balance()

    def connected(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        """See :class:`bindsock.reconnect.connecting.ConnectingUser`."""
        self._new = connection
        self._resuming.begin_hosting()
        try:
            self.feed(Event.DIALLED)
        finally:
            go_on = self._resuming.end_hosting()
        # The events since the dial have passed already. By then the hook, which may wait for ever, has started.
        self._watcher.runtime.call_soon(self._follow_and_refresh, connection)
        return go_on

    def dial_failed(self) -> None:
        """See :class:`bindsock.reconnect.connecting.ConnectingUser`."""
        _logger.debug("%s: a dial has failed: %s", self, self._connecting.last_error)
        self.feed(Event.DIAL_FAILED)

    def dial_again(self) -> None:
        """See :class:`bindsock.reconnect.connecting.ConnectingUser`."""
        self.feed(Event.RETRY)

    def resumed(self) -> None:
        """See :class:`bindsock.reconnect.resuming.ResumingUser`."""
        self.feed(Event.RESUMED)

    def connection_failed(self, error: BaseException) -> None:
        """See :class:`bindsock.reconnect.resuming.ResumingUser`."""
        self._connecting.failed(error)
        self.feed(Event.NEW_LOST)

    def hook_failed(self, error: BaseException) -> None:
        """See :class:`bindsock.reconnect.resuming.ResumingUser`."""
        self._connecting.failed(error)
        self.feed(Event.HOOK_FAILED)

    def feed(self, event: Event) -> None:
        """Process an event, and carry out its actions. Events that the actions cause are processed afterwards."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            try:
                self._take(self._events[0])
            except Exception as error:  # noqa: BLE001 - the program's protocol raised; handled as in asyncio's transports
                self._fail(error)
            finally:
                self._events.popleft()
        if self._machine.state is State.CLOSED:
            self._crowd.unfollow(self._follower)

    def _take(self, event: Event) -> None:
        before = self._machine.state
        actions = self._machine.feed(event)
        if self._machine.state is not before and _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("%s: %s, %s -> %s", self, event.value, before.value, self._machine.state.value)
        for action in actions:
            _ACTIONS[action](self)

    def _fail(self, error: Exception) -> None:
        context = {"message": "Fatal error: a protocol failed while its connection was replaced", "exception": error}
        protocol = self.transport.get_protocol()
        self._watcher.runtime.call_exception_handler(context | {"transport": self.transport, "protocol": protocol})
        self.transport.end(error)
        self._events.append(Event.ABORT)

    @property
    def _current(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def _cut(self) -> None:
        _logger.info("replacing %s: %s", self, self._removal.reason or self._current.error)
        self._removal.mode = "orderly" if self._machine.state is State.DRAINING else "reset"
        self.transport.cut()

    def _dial(self) -> None:
        self._connecting.dial(self._current.dialled.address)

    def _pause(self) -> None:
        self._connecting.pause()

    def _end_pause(self) -> None:
        self._connecting.end_pause()

    def _stop_dialling(self) -> None:
        self._connecting.stop()

    def _start_clock(self) -> None:
        self._stop_clock()
        timeout = self._settings.options.reconnect_timeout
        if timeout is not None:
            self._deadline = self._watcher.runtime.call_later(timeout, self.feed, Event.EXPIRED)

    def _stop_clock(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _wait_for_path(self) -> None:
        self._draining.wait_for_path(functools.partial(self.feed, Event.GRACE_OVER))

    def _drain(self) -> None:
        self._draining.drain(self._current, functools.partial(self.feed, Event.DRAINED))

    def _stop_waiting(self) -> None:
        self._draining.stop()

    def _drop(self) -> None:
        self._resuming.unread += self._current.read_rest()
        soon = self._machine.state is State.RESUMING
        self._current.drop(self._watcher.kernel, self._removal.mode, self._watcher.runtime, soon=soon)

    def _drop_new(self) -> None:
        connection, self._new = self._new, None
        if connection is not None:
            connection.drop(self._watcher.kernel, "reset", self._watcher.runtime)

    def _run_hook(self) -> None:
        assert self._new is not None
        self._resuming.start(self._new, self.transport)

    def _stop_hook(self) -> None:
        self._resuming.stop()

    def _switch(self) -> None:
        assert self._new is not None
        connection = self._connection = self._new
        self._new = None
        self._connecting.succeeded()
        self._draining.recovered()
        self._removal = _Removal()
        self._watcher.statistics.reconnected += 1
        _logger.info("replaced by %s", self)
        self.transport.replace(connection, self._resuming.take_first())
        self._feed_end(connection)

    def _tell_finished(self) -> None:
        connection = self._current
        connection.keep_open = self.transport.finish()
        if not connection.keep_open:
            # If the event is processed late, eof_received() has returned already.
            self._watcher.runtime.call_soon(connection.transport.close)

    def _close(self) -> None:
        self._current.transport.close()

    def _tell_ended(self) -> None:
        self.transport.end(self._current.error)

    def _tell_closed(self) -> None:
        self.transport.end(None)

    def _give_up(self) -> None:
        reason = self._removal.reason or self._current.error or "a better path"
        error = InterfaceChanged(
            f"{self} was lost ({reason}) and could not be replaced",
            interface=self._current.interface,
        )
        last_error = self._connecting.last_error
        error.__cause__ = last_error or TimeoutError(errno.ETIMEDOUT, "there was no new connection in time")
        _logger.info("%s; the last error: %s", error, last_error)
        self._watcher.statistics.ended += 1
        self.transport.end(error)

    def _follow(self, connection: Connection) -> None:
        """Start to follow a connection.

        :raises OSError: it has ended
        """
        dialled = connection.dialled
        if dialled.path is not None:
            requirement = self._settings.requirement(dialled.address, replaceable=True)
            connection.follower = PathFollower(self._watcher, connection.sock, requirement, dialled.path, self)

    def _follow_and_refresh(self, connection: Connection) -> None:
        if connection.dropped or connection.ended:
            return
        try:
            self._follow(connection)
        except OSError as error:
            # A closing transport reports its end itself.
            if not connection.transport.is_closing():
                self._connecting.failed(error)
                self.feed(Event.NEW_LOST if connection is self._new else Event.BROKE)
        else:
            self.refresh()

    def _feed_end(self, connection: Connection) -> None:
        """Feed the events of a connection from before it was the current one."""
        if connection.finished:
            self.connection_finished(connection)
        if connection.ended:
            self.connection_ended(connection)

    def __str__(self) -> str:
        return f"the connection to {self._current.dialled.address} over {self._current.interface}"


_ACTIONS: dict[Action, Callable[[Controller], None]] = {
    Action.CUT: Controller._cut,
    Action.DIAL: Controller._dial,
    Action.PAUSE: Controller._pause,
    Action.END_PAUSE: Controller._end_pause,
    Action.STOP_DIALLING: Controller._stop_dialling,
    Action.START_CLOCK: Controller._start_clock,
    Action.STOP_CLOCK: Controller._stop_clock,
    Action.WAIT_FOR_PATH: Controller._wait_for_path,
    Action.DRAIN: Controller._drain,
    Action.STOP_WAITING: Controller._stop_waiting,
    Action.DROP: Controller._drop,
    Action.RUN_HOOK: Controller._run_hook,
    Action.STOP_HOOK: Controller._stop_hook,
    Action.DROP_NEW: Controller._drop_new,
    Action.SWITCH: Controller._switch,
    Action.REFRESH: Controller.refresh,
    Action.TELL_FINISHED: Controller._tell_finished,
    Action.CLOSE: Controller._close,
    Action.TELL_ENDED: Controller._tell_ended,
    Action.TELL_CLOSED: Controller._tell_closed,
    Action.GIVE_UP: Controller._give_up,
}


class _WeakFollower:
    """Holds the controller weakly for the watcher. The controller lives only as long as its transport."""

    def __init__(self, controller: Controller) -> None:
        self._controller = weakref.ref(controller)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        controller = self._controller()
        if controller is not None:
            controller.update(decider)


def _orders(connection: Connection, decider: Decider) -> Orders | None:
    """The orders for a connection; ``None`` if it is not followed or has ended."""
    if connection.follower is None or connection.ended or connection.sock.fileno() == -1:
        return None
    return connection.follower.update(connection.sock, decider)


def _is_path_error(error: Exception | None) -> bool:
    return isinstance(error, OSError) and error.errno in _PATH_ERRORS
