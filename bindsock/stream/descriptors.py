"""Streams that another thread uses: ended when their path is gone, by the event loop that follows the network.

The other thread may close its socket at any moment, and the system may give the descriptor's number to another file. So nothing
is kept open and nothing is trusted: to act on the connection its descriptor is duplicated, which pins whatever it is, and the
addresses of the duplicate tell whether that is still the connection. TLS changes nothing about that: ``SSLContext.wrap_socket``
takes the descriptor over and keeps its number.
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
from bindsock.errors import InterfaceChanged
from bindsock.model.change import Cause
from bindsock.model.network import unmapped
from bindsock.stream import viability
from bindsock.stream.plan import Facts, Orders, Requirement, Step, plan
from bindsock.stream.viability import Countdown, Viability, location_of

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
"""Seconds between two looks at whether the connection is still there, for those whose end nobody tells."""


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
    """Let a loop end a connection when it can no longer work and another interface can. Can be called from any thread.

    The error is put into the socket's attribute ``error``, if it has one.

    :param loop: the event loop that follows it
    :param watcher: gives the loop's watcher; called on the loop
    :param sock: a stream socket that has its local address
    :param target: the peer's address
    :param path: the path on which it was dialled
    :param better_path: what to do when it works but the effective interface is another one
    :param interface: the name of the interface to which the connection is pinned
    :return: stops following; can be called from any thread
    :raises OSError: the socket is closed
    """
    guard = DescriptorGuard(loop, watcher, sock, Requirement(target, interface, better_path), path)
    guard.call(guard.start)
    return guard.release


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """A descriptor's number, and the addresses that tell whether it is still the connection's."""

    number: int
    local: SockAddr
    peer: SockAddr | None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[socket.socket | None]:
        """The connection while the block lasts; ``None`` if it has been closed."""
        try:
            descriptor = os.dup(self.number)
        except OSError:
            yield None
            return
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)  # the number is that of a file now
            yield None
            return
        with sock:
            yield sock if self._is_the_one(sock) else None

    def _is_the_one(self, sock: socket.socket) -> bool:
        try:
            local, peer = sock.getsockname(), peer_of(sock)
        except OSError:
            return False
        # While it connects it has no peer yet, and none any more once it has been reset.
        return bool(local == self.local) and (peer is None or self.peer is None or peer == self.peer)


class DescriptorGuard:
    """Follows one connection by its descriptor. All but :meth:`call` and :meth:`release` runs on the loop.

    Beginning to follow takes no system call where the watcher runs already: with other busy threads each would let go of the
    interpreter's lock, and a loop that needs it back a dozen times for every connection would fall behind.
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
        self._patience: Timer | None = None
        self._waited = False
        self._sampling: Timer | None = None
        self._countdown: Countdown | None = None
        self._checking: Timer | None = None
        self._released = False

    def release(self) -> None:
        """The connection is over. Can be called from any thread."""
        self._released = True
        self.call(self.close)

    def call(self, function: Callable[[], object]) -> None:
        """Call a method on the loop, if that still runs. Can be called from any thread."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has been closed: nothing follows any more
                loop.call_soon_threadsafe(function)

    def start(self) -> None:
        """Begin to follow."""
        if self._released:
            return
        try:
            self._watcher = watcher = self._make_watcher()
            watcher.follow(self)
            local = unmapped(address_of(self._connection.local))
            decider = watcher.latest
            self._place = location_of(decider.network, self._path.interface, self._path.index, local)
            # What was read between the dial and now raises no further event.
            self.network_changed(decider, Cause.STARTED)
        except OSError as error:
            _logger.warning("the connection to %s is not followed: %s", self._requirement.target, error)
            self.close()
            return
        if watcher.follows(self):
            self._checking = watcher.runtime.call_later(_STILL_THERE, self._check)

    def close(self) -> None:
        """Stop following. The connection stays as it is."""
        if self._watcher is not None:
            self._watcher.unfollow(self)
        self._stop_counting()
        self._stop_waiting()
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """End the connection if it is dead and something else is usable; else wait, or count down, or leave it alone."""
        if self._place is None or self._watcher is None:
            return  # start() looks afterwards
        orders = self._plan(self._watcher, self._place, decider)
        if orders.found.viability is not Viability.STALLED:
            self._stop_waiting()
            self._waited = False
        elif self._patience is None and not self._waited:
            self._patience = self._watcher.runtime.call_later(viability.STALL_GRACE, self._has_waited)
        if orders.step in (Step.END, Step.LEAVE):
            self._end(orders)
        elif orders.step is not Step.LEAVE_WHEN_IDLE:
            self._stop_counting()
        elif self._countdown is None:
            self._sample(first=True)

    def _plan(self, watcher: Watcher, place: Location, decider: Decider) -> Orders:
        requirement, kernel = self._requirement, watcher.kernel
        target = requirement.target
        decider = decider.with_pin(requirement.pin)

        def routed(interface: Interface) -> bool:
            return kernel.has_route(interface, target)

        decision = decider.decide(target)
        facts = Facts(requirement, place, decider.network, decision, decider.preferences, routed, self._waited, immovable=True)
        return plan(facts)

    def _has_waited(self) -> None:
        self._patience = None
        self._waited = True
        self._look()

    def _look(self) -> None:
        if self._watcher is not None and self._watcher.follows(self):
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _sample(self, *, first: bool = False) -> None:
        """Look whether data moves over a connection that is to leave a path once it is idle."""
        self._sampling = None
        watcher = self._watcher
        if watcher is None or self._place is None or not watcher.follows(self):
            return
        with self._connection.borrowed() as sock:
            activity = watcher.kernel.activity(sock) if sock is not None else None
        if sock is None:
            self.close()
        elif first or self._countdown is None:
            self._countdown = Countdown(watcher.runtime.time(), activity)
            self._sampling = watcher.runtime.call_later(viability.SAMPLE, self._sample)
        elif self._countdown.due(watcher.runtime.time(), activity):
            decider = watcher.refresh()
            if self._countdown is not None:  # the newest reading may have ended it already, or made it stay
                self._end(self._plan(watcher, self._place, decider))
        else:
            self._sampling = watcher.runtime.call_later(viability.SAMPLE, self._sample)

    def _check(self) -> None:
        """Let go of a connection that has been closed without a word."""
        self._checking = None
        with self._connection.borrowed() as sock:
            pass
        if sock is None:
            self.close()
        elif self._watcher is not None and self._watcher.follows(self):
            self._checking = self._watcher.runtime.call_later(_STILL_THERE, self._check)

    def _end(self, orders: Orders) -> None:
        watcher, found = self._watcher, orders.found
        assert watcher is not None
        self.close()
        successor = found.target.name if found.target is not None else None
        connection = f"the connection to {self._requirement.target} over {self._path.interface}"
        error = InterfaceChanged(
            f"{connection} was ended: {found.reason}", interface=self._path.interface, new_interface=successor
        )
        with self._connection.borrowed() as sock:
            if sock is None:
                return
            user = self._sock()
            if user is not None and hasattr(user, "error"):
                user.error = error
            watcher.statistics.ended += 1
            _logger.info("%s is ended: %s", connection, found.reason)
            try:
                watcher.kernel.abort(sock)
            except OSError as failure:
                if failure.errno != errno.EBUSY:
                    _logger.info("a socket could not be aborted: %s", failure)
                    return
                # Linux 6.4 to 6.6 refuse to disconnect a socket on which a thread waits (net/ipv4/tcp.c, tcp_disconnect).
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_counting(self) -> None:
        self._countdown = None
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
