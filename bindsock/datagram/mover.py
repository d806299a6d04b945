"""Moves the sockets beneath a datagram transport.

Where the old interface is dead, the socket is bound anew in place: same descriptor, same port. Where it still works and another
is better, a second socket takes over: what is sent goes by the new one at once, and the old one receives for ``overlap`` seconds
more, or until its interface is gone, so that replies in flight are not lost either. A socket that changed its interface and comes
back meanwhile is not bound again: the old one takes over.

Everything is level-triggered: each reading of the network is compared with where the socket is. What fails is tried again, ever
more rarely; until it succeeds what is sent is held, unless the old path still works.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import socket
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bindsock.datagram.drop_counter import DropCounter, device_drops
from bindsock.datagram.plan import UNBOUND, LocalAddressGone, Placement, Requirement, Step, alive, step
from bindsock.dial.resolving import SockAddr, address_of
from bindsock.errors import InterfaceChanged, NoRoute
from bindsock.model.change import Cause
from bindsock.model.decision import Path
from bindsock.model.network import Interface, IPAddress, Network, unmapped

if TYPE_CHECKING:
    from bindsock.datagram.socket_spec import SocketSpec
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

logger = logging.getLogger("bindsock")

FIRST_RETRY = 0.05
LAST_RETRY = 5.0
"""Seconds between two attempts, doubling, with jitter."""
MAX_OLD = 4
"""Old sockets that still receive."""


class MoverUser(Protocol):
    """Who sends and receives by the sockets."""

    def readable(self, sock: socket.socket) -> None:
        """A socket has something to read."""

    def drain(self, sock: socket.socket) -> None:
        """A socket is about to be closed: read what is left."""

    def path_found(self) -> None:
        """The current socket may be another one, and can send."""

    def fail(self, error: OSError) -> None:
        """There will never be a path again."""


@dataclass(slots=True, eq=False)
class _Old:
    """A socket that only receives any more."""

    sock: socket.socket
    path: Path
    source: IPAddress | None
    timer: asyncio.TimerHandle | None


class DatagramMover:
    """Follows the network with one socket, and for a while with its predecessors.

    :param loop: the event loop, which is held weakly: whoever forgets a closed loop must not be kept from it by an open socket
    :param sock: the socket, bound and connected as it is to be in ``place``
    :param wish: what decides the place; ``None`` leaves the socket alone
    :param endpoint: how to make another socket like it; ``None`` for a socket that is somebody else's and only moved in place
    :param pin: the name of the one interface to use instead of the watcher's
    :param overlap: seconds
    """

    def __init__(
        self,
        watcher: Watcher,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        wish: Requirement | None,
        place: Placement,
        *,
        endpoint: SocketSpec | None,
        pin: str | None,
        overlap: float,
    ) -> None:
        self.sock = sock
        self.peer: SockAddr | None = _peer_of(sock)
        self.place = place
        self.no_path = False
        """There is no path: nothing must be sent."""
        self.handed_out = False
        """Somebody was given the socket, and may have set options on it."""
        self.decider: Decider | None = None
        """The one by which the socket was placed last."""
        self.record = DropCounter(device_drops(watcher.kernel))
        self._watcher = watcher
        self._kernel = watcher.kernel
        self._statistics = watcher.statistics
        self._loop = weakref.ref(loop)
        self._wish = wish
        self._endpoint = endpoint
        self._pin = pin
        self._overlap = overlap
        self._sockname: SockAddr = sock.getsockname()
        self._port: int = self._sockname[1]
        self._broken = False
        self._old: list[_Old] = []
        self._retry: asyncio.TimerHandle | None = None
        self._delay = FIRST_RETRY
        self._complained = False
        self._transport: MoverUser | None = None
        self._reading = False
        self._stopped = False
        self.closed = False

    @property
    def followed(self) -> bool:
        """Whether the socket moves with the network."""
        return self._wish is not None and not self._stopped

    @property
    def interface(self) -> str | None:
        """The name of the interface in use, ``None`` if the socket is not bound."""
        return self.place.path.interface if self.place.path is not None else None

    @property
    def sockname(self) -> SockAddr:
        """The local address as it is now, or was last."""
        with contextlib.suppress(OSError):
            self._sockname = self.sock.getsockname()
        return self._sockname

    @property
    def port(self) -> int:
        """The local port; 0 if there has been none yet. A socket that failed to move may have lost its own."""
        self._port = self.sockname[1] or self._port
        return self._port

    @property
    def source(self) -> IPAddress | None:
        """The address that everything the socket sends has as its source, if it has one."""
        if self._wish is not None and self._wish.address is not None:
            return self._wish.address
        if self.peer is None:
            return None
        address = unmapped(address_of(self.sock.getsockname()))
        return None if address.is_unspecified else address

    def start(self, transport: MoverUser, decider: Decider) -> None:
        """Begin to follow."""
        self._transport = transport
        self.decider = decider.with_pin(self._pin)
        if self._wish is not None:
            self._start_record(decider.network)
            self._watcher.follow(self)

    def start_reading(self) -> None:
        """Begin to receive."""
        if not self._stopped:
            self._reading = True
            for sock in (*(old.sock for old in self._old), self.sock):
                self._add_reader(sock)

    def read_on(self, sock: socket.socket) -> None:
        """Go on receiving after an error, or after nothing: libuv stops watching a descriptor for which the system reports an
        error, such as a peer's ICMP, whoever picks that up (src/unix/poll.c, uv__poll_io)."""
        if self._reading:
            self._remove_reader(sock)
            self._add_reader(sock)

    def stop_reading(self) -> None:
        """Receive no more, for good. Sending goes on."""
        self._reading = False
        for old in list(self._old):
            self._end(old, drain=False)
        self._remove_reader(self.sock)

    def stop(self) -> None:
        """Follow and receive no more. The socket stays open."""
        if self._stopped:
            return
        self._stopped = True
        self._watcher.unfollow(self)
        self._cancel_retry()
        self.stop_reading()

    def close(self) -> None:
        """Stop, and close the socket."""
        self.closed = True
        self.stop()
        self._transport = None
        self._sockname = self.sockname
        self.sock.close()

    def recheck(self) -> None:
        """A send was refused: the network may have changed without a word."""
        if self._stopped:
            return
        self._watcher.recheck()
        if self.no_path and not self._watcher.running:
            self._look()

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Go where the socket belongs now."""
        if self._stopped or self._wish is None:
            return
        self._cancel_retry()
        decider = self.decider = decider.with_pin(self._pin)
        network = decider.network
        for old in [o for o in self._old if not alive(network, o.path, o.source)]:
            self._end(old)
        try:
            wanted = self._wish.place(decider)
        except LocalAddressGone:
            self._gone(decider)
            return
        todo = step(self.place, wanted, self.source, network)
        if self._broken and todo is not Step.WAIT:
            todo = Step.IN_PLACE if wanted.path is not None else Step.UNBIND
        if self.place.path is not None and not _device_alive(network, self.place.path):
            self._statistics.lost_on_device += self.record.lost()
        if todo is Step.WAIT:
            self.no_path = True
        elif todo is Step.STAY:
            self.place = wanted
            if self.no_path:
                self._start_record(network)
                self._resume()
        elif todo is Step.UNBIND:
            self._unbind(network)
        else:
            self._move(todo, wanted, network, decider)

    # The moves

    def _move(self, todo: Step, wanted: Placement, network: Network, decider: Decider) -> None:
        assert wanted.path is not None
        if not self._complained and self._wish is not None and len(self._interfaces(decider)) > 1:
            self._complained = True
            logger.warning("an endpoint is for both families, whose effective interfaces differ now: it follows IPv6's")
        interface = network.interfaces[wanted.path.index]
        before = self.place.path
        usable = todo is Step.OVERLAP
        back = next((o for o in self._old if o.path.index == interface.index), None)
        try:
            self._check_route(interface)
            if back is not None:
                self._swap(self._reactivate(back), network)
            elif usable and self._may_overlap():
                assert self._endpoint is not None
                try:
                    fresh = self._endpoint.duplicate_on(self._like(), self._kernel, interface, self._ports())
                except OSError as error:
                    # The port that was asked for is somebody else's on the new interface: better a gap than another port.
                    if error.errno != errno.EADDRINUSE:
                        raise
                    usable = False
                    self._rebind(interface, network)
                else:
                    self._swap(fresh, network)
            else:
                usable = False
                self._rebind(interface, network)
        except OSError as error:
            self._failed(error, interface, usable=usable)
            return
        self.place = wanted
        logger.debug("a datagram endpoint moved from %s to %s", before.interface if before else None, interface.name)
        self._moved(network)

    def _rebind(self, interface: Interface, network: Network) -> None:
        self._broken = True
        try:
            self._kernel.rebind(self.sock, interface, peer=self.peer, port=self.port or None)
        except OSError as error:
            # A socket that lost its device half-way may be beyond repair (see the kernel's rebind); a fresh one is not.
            fresh = self._fresh(interface) if self._endpoint is not None else None
            if fresh is None:
                raise
            logger.debug("a datagram socket could not be moved in place, a new one takes over: %s", error)
            self._swap(fresh, network)
        self._broken = False

    def _fresh(self, interface: Interface) -> socket.socket | None:
        assert self._endpoint is not None
        try:
            return self._endpoint.duplicate_on(self._like(), self._kernel, interface, self._ports())
        except OSError as error:
            logger.debug("nor can a new datagram socket be made on %s: %s", interface.name, error)
            return None

    def _unbind(self, network: Network) -> None:
        self._broken = True
        try:
            self._kernel.unbind(self.sock)
        except OSError as error:
            self._failed(error, None, usable=False)
            return
        self._broken = False
        self.place = UNBOUND
        self._moved(network)

    def _moved(self, network: Network) -> None:
        self._statistics.rebinds += 1
        self._start_record(network)
        self._resume()

    def _resume(self) -> None:
        if self.no_path and self._reading:
            self._add_reader(self.sock)
        self.no_path = False
        self._delay = FIRST_RETRY
        if self._transport is not None:
            self._transport.path_found()

    def _check_route(self, interface: Interface) -> None:
        """Without a real route, IPv4 asks the link for the destination and hangs (linux net/ipv4/route.c)."""
        destination = self._wish.destination if self._wish is not None else None
        if destination is not None and not self._kernel.has_route(interface, destination):
            raise NoRoute(self._kernel.cure(interface, destination), interface=interface.name)

    def _may_overlap(self) -> bool:
        """Without a peer, and where binding does not filter what comes in, the one socket receives by all interfaces anyway."""
        return self._endpoint is not None and (self.peer is not None or self._kernel.binding_filters_ingress)

    def _like(self) -> socket.socket | None:
        return self.sock if self.handed_out else None

    def _ports(self) -> tuple[int, ...]:
        assert self._endpoint is not None
        return (self._endpoint.port,) if self._endpoint.port else (self.port, 0)

    def _swap(self, fresh: socket.socket, network: Network) -> None:
        """Send by another socket from now on."""
        sock, path, source, broken = self.sock, self.place.path, self.source, self._broken
        self.sock = fresh
        self.peer = _peer_of(fresh)
        self._broken = False
        if self._reading:
            self._add_reader(fresh)
        loop = self._loop()
        if loop is None or loop.is_closed() or broken or path is None or not alive(network, path, source):
            self._discard(sock)
            return
        old = _Old(sock, path, source, None)
        old.timer = loop.call_later(self._overlap, self._end, old)
        self._old.append(old)
        if len(self._old) > MAX_OLD:
            self._end(self._old[0])

    def _reactivate(self, old: _Old) -> socket.socket:
        self._old.remove(old)
        if old.timer is not None:
            old.timer.cancel()
        return old.sock

    def _end(self, old: _Old, *, drain: bool = True) -> None:
        self._discard(self._reactivate(old), drain=drain)

    def _discard(self, sock: socket.socket, *, drain: bool = True) -> None:
        if drain and self._reading and self._transport is not None:
            self._transport.drain(sock)
        self._remove_reader(sock)
        sock.close()

    # Failure

    def _failed(self, error: OSError, interface: Interface | None, *, usable: bool) -> None:
        self._statistics.rebinds_failed += 1
        self.no_path = not usable
        if self._broken and self._reading:
            # A silenced socket is for ever readable, with nothing to read.
            self._remove_reader(self.sock)
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        delay = self._delay * random.uniform(0.5, 1.0)
        self._delay = min(2 * self._delay, LAST_RETRY)
        name = interface.name if interface is not None else "no interface"
        logger.info("a datagram endpoint cannot move to %s, it tries again in %.2f s: %s", name, delay, error)
        self._retry = loop.call_later(delay, self._look)

    def _look(self) -> None:
        """Compare again, though nothing has been announced."""
        self._cancel_retry()
        try:
            decider = self._watcher.decider()
        except OSError as error:
            self._failed(error, None, usable=not self.no_path)
            return
        self.network_changed(decider, Cause.RECONCILE)

    def _gone(self, decider: Decider) -> None:
        assert self._wish is not None
        place = self._wish.first_place(decider)
        error = InterfaceChanged(
            f"the local address {self._wish.address} is gone",
            errno=errno.EADDRNOTAVAIL,
            interface=self.interface,
            new_interface=place.path.interface if place.path is not None else None,
        )
        if self._transport is not None:
            self._transport.fail(error)

    # Small things

    def _interfaces(self, decider: Decider) -> set[int]:
        assert self._wish is not None
        return {d.interface.index for d in self._wish.decisions(decider) if d.interface is not None}

    def _start_record(self, network: Network) -> None:
        path = self.place.path
        self.record.start(network.interfaces.get(path.index) if path is not None else None, self.sock)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _add_reader(self, sock: socket.socket) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed() and self._transport is not None:
            loop.add_reader(sock, self._transport.readable, sock)

    def _remove_reader(self, sock: socket.socket) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed() and sock.fileno() != -1:
            loop.remove_reader(sock)


def _device_alive(network: Network, path: Path) -> bool:
    interface = network.interfaces.get(path.index)
    return interface is not None and interface.up and interface.running


def _peer_of(sock: socket.socket) -> SockAddr | None:
    try:
        peer: SockAddr = sock.getpeername()
    except OSError:
        return None
    return peer
