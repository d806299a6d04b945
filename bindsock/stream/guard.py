"""Ends stream connections with an error as soon as they cannot work any more.

TCP does not survive the loss of its local address, and does not notice it: on Linux a reader waits for 15 minutes, or for ever if
no data was unacknowledged. The program uses the event loop's own transport, without a wrapper.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import weakref
from typing import TYPE_CHECKING

from bindsock.dial.followed_socket import FollowedSocket, watch_end
from bindsock.errors import InterfaceChanged
from bindsock.model.change import Cause
from bindsock.model.decision import Path
from bindsock.netmon.crowd import in_turns
from bindsock.netmon.turns import CallbackBudget
from bindsock.stream.follower import PathFollower
from bindsock.stream.plan import Orders, Requirement, Step
from bindsock.stream.waiting import IdleWait

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel import Kernel
    from bindsock.model.network import IPAddress
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

__all__ = ["StreamGuard", "StreamGuards", "end_transport", "follow_stream"]

_logger = logging.getLogger("bindsock")


def follow_stream(
    watcher: Watcher,
    sock: socket.socket,
    requirement: Requirement,
    path: Path | None,
    *,
    local: IPAddress | None = None,
    decider: Decider | None = None,
) -> StreamGuard:
    """End a connected socket with :class:`InterfaceChanged` when it cannot work any more and another interface can.

    Following ends when the socket is closed or freed.

    :param requirement: what the program requires of the connection
    :param path: the path on which it was dialled; ``None`` if it is unbound, then it is not followed
    :param local: its local address, if it is known
    :param decider: the decider that chose the path, if it is known
    :raises OSError: the socket is closed
    """
    guard = StreamGuard(watcher, sock, requirement, path)
    if path is not None:
        guard.start(sock, path, local, decider)
    return guard


class StreamGuard:
    """Follows one stream socket. The crowd holds the guard, which holds the socket and the transport weakly."""

    __slots__ = (
        "__weakref__",
        "_crowd",
        "_deadline",
        "_drain_timeout",
        "_follower",
        "_idle",
        "_kept_transport",
        "_on_leaving",
        "_path",
        "_requirement",
        "_sock",
        "_transport",
        "_watcher",
        "error",
    )

    def __init__(self, watcher: Watcher, sock: socket.socket, requirement: Requirement, path: Path | None) -> None:
        self.error: InterfaceChanged | None = None
        """Why the connection was ended; ``None`` if it was not."""
        self._watcher = watcher
        self._crowd = in_turns(watcher)
        self._requirement = requirement
        self._path = path
        self._follower: PathFollower | None = None
        self._sock: weakref.ref[socket.socket] | None = weakref.ref(sock)
        self._transport: weakref.ref[asyncio.WriteTransport] | None = None
        self._kept_transport: asyncio.WriteTransport | None = None
        self._idle: IdleWait | None = None
        self._drain_timeout = 0.0
        self._on_leaving: Callable[[], object] | None = None
        self._deadline: Timer | None = None

    @property
    def interface(self) -> str | None:
        """The name of the interface that the connection uses; ``None`` if it is unbound."""
        if self._follower is not None:
            return self._follower.place.interface
        return self._path.interface if self._path is not None else None

    @property
    def following(self) -> bool:
        """Whether the connection is still followed."""
        return self._crowd.follows(self)

    @property
    def leaving(self) -> bool:
        """Whether the connection works, but will end soon: see :meth:`drain`."""
        return self._deadline is not None

    def is_viable(self) -> bool:
        """Whether the connection can still work, taking into account the pending events of the kernel."""
        if self.following:
            self._watcher.refresh()
            self._crowd.catch_up(self)
        return self.error is None

    def start(self, sock: socket.socket, path: Path, local: IPAddress | None = None, decider: Decider | None = None) -> None:
        """Start to follow. See :func:`follow_stream`.

        :raises OSError: the socket is closed
        """
        self._crowd.follow(self)
        try:
            self._follower = PathFollower(self._watcher, sock, self._requirement, path, self, local)
            self._sock = watch_end(sock, self.close)
            if decider is not self._watcher.latest:
                # The events since the dial have passed already.
                self.refresh()
        except BaseException:
            self.close()
            raise

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Set the transport of the socket, so that its protocol gets the error when the connection is ended."""
        if self.error is not None:
            end_transport(transport, self.error)
            return
        sock = self._socket()
        if sock is None:
            return
        try:
            self._transport = weakref.ref(transport)
        except TypeError:
            # uvloop's TLS transport has no weak references. It lives as long as the socket, so the socket may hold it.
            if isinstance(sock, FollowedSocket):
                sock.transport = transport
            else:
                self._kept_transport = transport

    def drain(self, timeout: float, on_leaving: Callable[[], object]) -> None:
        """Before a working connection is ended for a better path, let its owner receive the data in flight.

        :param timeout: seconds after which the connection is ended in any case
        :param on_leaving: called when the time starts; :attr:`error` is the reason
        """
        self._drain_timeout = timeout
        self._on_leaving = on_leaving

    def close(self) -> None:
        """Stop following. The connection is not changed."""
        self._crowd.unfollow(self)
        self._stop_idle_wait()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._on_leaving = None
        if self._follower is not None:
            self._follower.close()
        self._sock = None
        self._transport = None
        self._kept_transport = None

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Plan what to do with the connection, and do it: end it, drain it, wait until it is idle, or nothing."""
        sock = self._socket()
        if sock is None:
            self.close()
            return
        if self._follower is None:
            return  # start() refreshes the watcher before it makes the follower, and calls this again
        orders = self._follower.update(sock, decider)
        if self.leaving:
            if orders.step is Step.END:
                self._end(sock, orders)
        elif orders.step is Step.LEAVE and self._on_leaving is not None and self._drain_timeout > 0:
            self._leave(orders, self._on_leaving)
        elif orders.step in (Step.END, Step.LEAVE):
            self._end(sock, orders)
        elif orders.step is not Step.LEAVE_WHEN_IDLE:
            self._stop_idle_wait()
        elif self._idle is None:
            self._idle = IdleWait(self._watcher.runtime, self._activity, self._leave_idle)
            self._idle.start()

    def refresh(self) -> None:
        """Process the newest reading of the network."""
        if self.following:
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _activity(self) -> object:
        sock = self._socket()
        if sock is not None and self.following:
            return self._watcher.kernel.activity(sock)
        self._stop_idle_wait()
        return None

    def _leave_idle(self) -> None:
        decider = self._watcher.refresh()
        self._crowd.catch_up(self)
        sock = self._socket()
        # The newest reading may have ended the connection, or need no longer be left for.
        if self._idle is None or self._follower is None or sock is None:
            return
        orders = self._follower.update(sock, decider)
        if orders.finished:
            self._stop_idle_wait()
        else:
            self._end(sock, orders)

    def _stop_idle_wait(self) -> None:
        if self._idle is not None:
            self._idle.stop()
            self._idle = None

    def _leave(self, orders: Orders, on_leaving: Callable[[], object]) -> None:
        self._stop_idle_wait()
        self._explain(orders)
        self._deadline = self._watcher.runtime.call_after_reading(self._drain_timeout, self._expire)
        on_leaving()

    def _expire(self) -> None:
        sock = self._socket()
        if sock is not None:
            self._abort(sock)

    def _end(self, sock: socket.socket, orders: Orders) -> None:
        if not self.leaving:
            self._explain(orders)
        self._abort(sock)

    def _explain(self, orders: Orders) -> None:
        self.error = orders.found.ended(self._requirement.target, self.interface)
        self._watcher.statistics.ended += 1
        _logger.info("%s; a new connection leaves by %s", self.error.message, self.error.new_interface or "any interface")

    def _abort(self, sock: socket.socket) -> None:
        assert self.error is not None
        transport = self._attached(sock)
        self.close()
        budget = self._watcher.runtime.shared(CallbackBudget)
        budget.do(functools.partial(_end, self._watcher.kernel, sock, transport, self.error))

    def _attached(self, sock: socket.socket) -> asyncio.WriteTransport | None:
        if self._transport is not None:
            return self._transport()
        return sock.transport if isinstance(sock, FollowedSocket) else self._kept_transport

    def _socket(self) -> socket.socket | None:
        sock = self._sock() if self._sock is not None else None
        return sock if sock is not None and sock.fileno() != -1 else None


class StreamGuards:
    """The guards of one event loop, whichever factory made them.

    :param runtime: the event loop, whose shared object this is
    """

    def __init__(self, runtime: Runtime) -> None:
        self._guards: weakref.WeakKeyDictionary[socket.socket, StreamGuard] = weakref.WeakKeyDictionary()
        self._attaching: set[socket.socket] = set()

    def find(self, sock: socket.socket) -> StreamGuard | None:
        """The guard that follows a stream socket or has ended it; ``None`` if there is none."""
        if isinstance(sock, FollowedSocket):
            return sock.guard if isinstance(sock.guard, StreamGuard) else None
        return self._guards.get(sock)

    def add(self, sock: socket.socket, guard: StreamGuard) -> StreamGuard:
        """Remember the guard of a socket.

        :return: the guard
        """
        if isinstance(sock, FollowedSocket):
            sock.guard = guard
        else:
            self._guards[sock] = guard
        return guard

    def begin_attaching(self, sock: socket.socket) -> None:
        """Record that a transport is being made for the socket."""
        self._attaching.add(sock)

    def end_attaching(self, sock: socket.socket) -> None:
        """Record that the transport has been made, or could not be made."""
        self._attaching.discard(sock)

    def is_attaching(self, sock: socket.socket) -> bool:
        """Whether a transport is being made for the socket now. :class:`bindsock.EventLoop` leaves such a socket alone."""
        return sock in self._attaching


def _end(kernel: Kernel, sock: socket.socket, transport: asyncio.WriteTransport | None, error: InterfaceChanged) -> None:
    if transport is not None:
        end_transport(transport, error)
    if sock.fileno() == -1:
        return
    # This is needed even if there is a transport: asyncio's abort() does not wake a sendfile(), and the peer must get a reset, so
    # that it does not take half a message for a complete one.
    try:
        kernel.abort(sock)
    except OSError as failure:
        _logger.info("cannot abort a socket: %s", failure)


def end_transport(transport: asyncio.WriteTransport, error: InterfaceChanged) -> None:
    """Abort a transport so that the ``connection_lost()`` of its protocol gets the error.

    ``transport.abort()`` alone looks like a clean end of file: it calls ``connection_lost(None)``, and ``readline()`` returns
    ``b""``. So another protocol is put in between, which passes the error. After ``start_tls()``, it is put between the raw
    transport and the TLS protocol, which passes the error to the program's protocol. If the program is already closing the
    transport, it gets no error.
    """
    if not transport.is_closing():
        transport.set_protocol(_Ending(transport.get_protocol(), error))
        transport.abort()


class _Ending(asyncio.Protocol):
    """Calls ``connection_lost()`` of the real protocol with an error. After abort(), no other method is called."""

    __slots__ = ("_error", "_protocol")

    def __init__(self, protocol: asyncio.BaseProtocol, error: InterfaceChanged) -> None:
        self._protocol = protocol
        self._error = error

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(self._error)
