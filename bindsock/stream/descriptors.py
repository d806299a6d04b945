"""Follows blocking streams that other threads use: an event loop ends them when their path is gone.

The other thread may close its socket at any time, and the system may reuse the descriptor's number for another file. So the guard
keeps no descriptor open. To act on a connection, it duplicates the descriptor, and checks by the addresses of the duplicate that
it is still the same connection. This works with TLS, too: ``SSLContext.wrap_socket`` takes over the descriptor with its number.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import peer_of
from bindsock.model.change import Cause
from bindsock.model.network import unmapped
from bindsock.stream.plan import Facts, Orders, Requirement, Step, plan
from bindsock.stream.viability import Viability, location_of
from bindsock.stream.waiting import IdleWait, StallGrace

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from bindsock.dial.resolving import SockAddr
    from bindsock.model.decision import Path
    from bindsock.model.network import Interface, IPAddress
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.watcher import Watcher
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Decider
    from bindsock.stream.viability import Location

_logger = logging.getLogger("bindsock")

_STILL_THERE = 60.0
"""Seconds between two checks whether the connection still exists, because not every socket reports its close."""


def follow_descriptor(
    loop: asyncio.AbstractEventLoop,
    watcher: Callable[[], Watcher],
    sock: socket.socket,
    target: IPAddress,
    path: Path,
    *,
    better_path: BetterPath = "auto",
    interface: str | None = None,
) -> Callable[[], None]:
    """End a connection, by an event loop, when it cannot work any more and another interface can. Can be called from any thread.

    If the socket has an attribute ``error``, it is set to the error.

    :param loop: the event loop that follows the connection
    :param watcher: returns the loop's watcher; called on the loop
    :param sock: a stream socket that already has its local address
    :param target: the address of the peer
    :param path: the path on which it was dialled
    :param better_path: what to do with a working connection when another interface is better
    :param interface: the name of the interface to which the connection is pinned
    :return: stops following; can be called from any thread
    :raises OSError: the socket is closed
    """
    guard = DescriptorGuard(loop, watcher, sock, Requirement(target, interface, better_path), path)
    guard.call(guard.start)
    return guard.release


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """The number of a descriptor, and the addresses by which its connection is recognised."""

    number: int
    local: SockAddr
    peer: SockAddr | None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[socket.socket | None]:
        """Duplicate the descriptor for the block; ``None`` if the connection has been closed."""
        try:
            descriptor = os.dup(self.number)
        except OSError:
            yield None
            return
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)  # the number belongs to a file now
            yield None
            return
        with sock:
            yield sock if self._is_same(sock) else None

    def _is_same(self, sock: socket.socket) -> bool:
        try:
            local, peer = sock.getsockname(), peer_of(sock)
        except OSError:
            return False
        # A socket has no peer while it connects, or after a reset.
        return bool(local == self.local) and (peer is None or self.peer is None or peer == self.peer)


class DescriptorGuard:
    """Follows one connection by its descriptor. All methods except :meth:`call` and :meth:`release` run on the loop.

    If the watcher runs already, :meth:`start` makes no system call. Each one would release the interpreter's lock, and among busy
    threads the loop would have to wait for the lock a dozen times per connection.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watcher: Callable[[], Watcher],
        sock: socket.socket,
        requirement: Requirement,
        path: Path,
    ) -> None:
        self._loop = weakref.ref(loop)
        self._make_watcher = watcher
        self._watcher: Watcher | None = None
        self._sock = weakref.ref(sock)
        self._connection = _Descriptor(sock.fileno(), sock.getsockname(), peer_of(sock))
        self._requirement = requirement
        self._path = path
        self._place: Location | None = None
        self._grace: StallGrace | None = None
        self._idle: IdleWait | None = None
        self._checking: Timer | None = None
        self._released = False
        self._finished = False
        """It is kept because the peer has ended it."""

    def release(self) -> None:
        """Stop following, because the connection is closed. Can be called from any thread."""
        self._released = True
        self.call(self.close)

    def call(self, function: Callable[[], object]) -> None:
        """Call a method on the loop, if it is still running. Can be called from any thread."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(function)

    def start(self) -> None:
        """Start to follow."""
        if self._released:
            return
        try:
            self._watcher = watcher = self._make_watcher()
            watcher.follow(self)
            local = unmapped(address_of(self._connection.local))
            decider = watcher.latest
            self._place = location_of(decider.network, self._path.interface, self._path.index, local)
            # The events since the dial have passed already.
            self.network_changed(decider, Cause.STARTED)
        except OSError as error:
            _logger.warning("cannot follow the connection to %s: %s", self._requirement.target, error)
            self.close()
            return
        if watcher.follows(self):
            self._checking = watcher.runtime.call_later(_STILL_THERE, self._check)

    def close(self) -> None:
        """Stop following. The connection is not changed."""
        if self._watcher is not None:
            self._watcher.unfollow(self)
        self._stop_idle_wait()
        self._stop_waiting()
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Plan what to do with the connection, and do it: end it, wait, or nothing."""
        if self._place is None or self._watcher is None:
            return  # start() calls this again
        orders = self._plan(self._watcher, self._place, decider)
        self._finished = orders.finished
        if orders.found.viability is not Viability.STALLED:
            self._stop_waiting()
        elif self._grace is None:
            self._grace = StallGrace(self._watcher.runtime, self._update)
        if orders.step in (Step.END, Step.LEAVE):
            self._end(orders)
        elif orders.step is not Step.LEAVE_WHEN_IDLE:
            self._stop_idle_wait()
        elif self._idle is None:
            self._idle = IdleWait(self._watcher.runtime, self._activity, self._leave_idle)
            self._idle.start()

    def _plan(self, watcher: Watcher, place: Location, decider: Decider) -> Orders:
        requirement, kernel = self._requirement, watcher.kernel
        target = requirement.target
        decider = decider.with_pin(requirement.pin)

        def routed(interface: Interface) -> bool:
            return kernel.has_route(interface, target)

        def finished() -> bool:
            with self._connection.borrowed() as sock:
                return sock is not None and kernel.has_finished(sock)

        decision = decider.decide(target)
        waited = self._grace is not None and self._grace.over
        known = decider.network, decision, decider.preferences
        return plan(Facts(requirement, place, *known, routed, waited, finished, immovable=True))

    def _update(self) -> None:
        if self._watcher is not None and self._watcher.follows(self):
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _activity(self) -> object:
        with self._connection.borrowed() as sock:
            if sock is not None and self._watcher is not None and self._watcher.follows(self):
                return self._watcher.kernel.activity(sock)
        self.close()
        return None

    def _leave_idle(self) -> None:
        if self._watcher is None or self._place is None:
            return
        decider = self._watcher.refresh()
        if self._idle is None:
            return  # refresh() has ended the connection, or found that it need not leave
        orders = self._plan(self._watcher, self._place, decider)
        if orders.finished:
            self._stop_idle_wait()
        else:
            self._end(orders)

    def _check(self) -> None:
        """Stop following if the connection has been closed without notice."""
        self._checking = None
        with self._connection.borrowed() as sock:
            pass
        if sock is None:
            self.close()
        elif self._watcher is not None and self._watcher.follows(self):
            self._checking = self._watcher.runtime.call_later(_STILL_THERE, self._check)
            if self._finished:
                self._update()  # the program may have written again, by a path that is lost

    def _end(self, orders: Orders) -> None:
        watcher = self._watcher
        assert watcher is not None
        self.close()
        error = orders.found.ended(self._requirement.target, self._path.interface)
        with self._connection.borrowed() as sock:
            if sock is None:
                return
            user = self._sock()
            if user is not None and hasattr(user, "error"):
                user.error = error
            watcher.statistics.ended += 1
            _logger.info("%s", error.message)
            try:
                watcher.kernel.abort(sock)
            except OSError as failure:
                if failure.errno != errno.EBUSY:
                    _logger.info("cannot abort a socket: %s", failure)
                    return
                # Linux 6.4 to 6.6 refuse to disconnect a socket on which a thread waits (net/ipv4/tcp.c, tcp_disconnect).
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _stop_waiting(self) -> None:
        if self._grace is not None:
            self._grace.stop()
            self._grace = None

    def _stop_idle_wait(self) -> None:
        if self._idle is not None:
            self._idle.stop()
            self._idle = None
