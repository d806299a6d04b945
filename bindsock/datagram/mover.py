"""Moves the sockets of a datagram transport: carries out the orders of :mod:`bindsock.datagram.plan`.

If the old interface is dead, the socket is bound again in place: same descriptor, same port. If another program has the port on
the new interface, a new socket with another port takes over; an endpoint that asked for its port waits until it is free.

If the old interface still works and another one is better, a second socket takes over. The endpoint sends by the new socket at
once, and the old socket receives for ``overlap`` seconds more, or until its interface is gone, so that replies in flight are not
lost. If the endpoint returns to that interface meanwhile, the old socket takes over again.

Moves are level-triggered: each reading of the network is compared with the placement of the socket. A failed move is tried again
after growing delays. Until it succeeds, datagrams are held, unless the old path still works.
"""

from __future__ import annotations

import enum
import errno
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bindsock.datagram.first_hop import FirstHops
from bindsock.datagram.followers import followers_of
from bindsock.datagram.held_sockets import HeldSocket, HeldSockets
from bindsock.datagram.in_place import FIRST_RETRY, LAST_RETRY, InPlace
from bindsock.datagram.plan import Facts, Orders, Place, Placement, Requirement, Step, alive, place_of, plan
from bindsock.datagram.ways import Ways
from bindsock.dial.unmanaged import peer_of
from bindsock.errors import InterfaceChanged
from bindsock.model.change import Cause
from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from bindsock.datagram.followers import DatagramFollowers
    from bindsock.datagram.socket_spec import SocketSpec
    from bindsock.dial.resolving import SockAddr
    from bindsock.model.network import Interface, IPAddress, Network
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.runtime import Runtime
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_NONE: frozenset[Place] = frozenset()


class MoverUser(Protocol):
    """The transport that sends and receives by the sockets."""

    def readable(self, sock: socket.socket) -> None:
        """Read from a socket that has become readable."""

    def drain(self, sock: socket.socket) -> None:
        """Read the remaining datagrams of a socket that is about to be closed."""

    def path_found(self) -> None:
        """Send waiting datagrams. The current socket may be another one than before."""

    def fail(self, error: OSError) -> None:
        """End with an error: there will never be a path again."""


class Endpoint(NamedTuple):
    """The unchanging properties of an endpoint."""

    requirement: Requirement | None
    """Decides the placement of its socket; ``None`` if the socket is left alone."""
    spec: SocketSpec | None
    """How to make another socket like the first; ``None`` if none is needed."""
    own_socket: bool = False
    """The program made the socket. It stays the current one, and only moves in place."""
    pin: str | None = None
    """The name of the only interface to use; the watcher's if ``None``."""
    overlap: float = 0.0
    """Seconds for which an old socket still receives after a better path was taken."""

    @property
    def replaceable(self) -> SocketSpec | None:
        """How to make a socket that may replace the current one; ``None`` if it cannot be replaced."""
        return None if self.own_socket else self.spec


class _State(enum.IntEnum):
    """The states of a mover, in order."""

    NEW = 0
    READING = 1
    WRITE_ONLY = 2
    """It sends and follows, but receives no more."""
    STOPPED = 3
    CLOSED = 4


class DatagramMover:
    """Follows the network with one current socket, and for a while with its predecessors.

    :param endpoint: the properties of the endpoint
    :param sock: the socket, already bound and connected for ``placement``
    :param placement: where the socket is
    """

    __slots__ = (
        "__weakref__",
        "_endpoint",
        "_held",
        "_retry",
        "_state",
        "_user",
        "_watcher",
        "followers",
        "in_place",
        "no_path",
        "peer",
        "seen",
        "sock",
        "ways",
    )

    def __init__(
        self,
        watcher: Watcher,
        endpoint: Endpoint,
        sock: socket.socket,
        placement: Placement,
    ) -> None:
        self.sock: socket.socket = sock
        self.peer: SockAddr | None = peer_of(sock)
        self.no_path: bool = False
        """There is no path: the transport must not send."""
        self.in_place: InPlace = InPlace(watcher, endpoint.requirement, placement)
        self.ways: Ways | None = None
        """Finds the socket for each destination; ``None`` if the current socket is for all."""
        self.followers: DatagramFollowers = followers_of(watcher)
        self.seen: int = self.followers.reading
        self._watcher = watcher
        self._endpoint = endpoint
        self._held: HeldSockets | None = None
        self._retry: Retry | None = None
        self._user: MoverUser | None = None
        self._state = _State.NEW

    @property
    def runtime(self) -> Runtime:
        """The runtime of the event loop."""
        return self._watcher.runtime

    @property
    def _port(self) -> int:
        """The local port that the program has asked for; 0 for any."""
        return self._endpoint.spec.port if self._endpoint.spec is not None else 0

    @property
    def refused(self) -> bool:
        """The last move has failed, and is to be tried again."""
        return self._retry is not None and self._retry.scheduled

    @property
    def statistics(self) -> Statistics:
        """The counters of the factory."""
        return self._watcher.statistics

    @property
    def followed(self) -> bool:
        """Whether the socket moves with the network."""
        return (self._endpoint.requirement is not None or self.ways is not None) and self._state < _State.STOPPED

    @property
    def held(self) -> HeldSockets:
        """The other sockets of the endpoint."""
        if self._held is None:
            self._held = HeldSockets(self._watcher.runtime, self._endpoint.overlap, self._discard, self._lost_on_device)
        return self._held

    @property
    def requirement(self) -> Requirement | None:
        """Decides the placement of the current socket."""
        return self._endpoint.requirement

    @property
    def closed(self) -> bool:
        """Whether the socket has been closed."""
        return self._state is _State.CLOSED

    @property
    def interface(self) -> str | None:
        """The name of the interface in use; ``None`` if the socket is not bound."""
        return self.in_place.placement.interface

    @property
    def sockname(self) -> SockAddr:
        """The local address; the last one if the socket is closed."""
        return self.in_place.local_address(self.sock)

    def start(self, user: MoverUser, decider: Decider) -> None:
        """Start to follow."""
        self._user = user
        decider = decider.with_pin(self._endpoint.pin)
        requirement, spec = self._endpoint.requirement, self._endpoint.spec
        if requirement is not None:
            self.in_place.begin(decider.network)
        if spec is not None and spec.remote is None and self.peer is None and (requirement is not None or spec.address is None):
            self.ways = Ways(self, self._watcher, spec, decider)
        if self.followed:
            self.followers.follow(self)

    def start_reading(self) -> None:
        """Start to receive."""
        if self._state is _State.NEW:
            self._state = _State.READING
            for sock in (*(self._held.sockets if self._held is not None else ()), self.sock):
                self._add_reader(sock)

    def read_on(self, sock: socket.socket) -> None:
        """Register the socket again after an error, or after an empty read.

        libuv stops watching a descriptor for which the system reports an error, such as a peer's ICMP message
        (src/unix/poll.c, uv__poll_io).
        """
        silenced = self.in_place.broken and sock is self.sock  # it stays readable, with nothing to read
        if self._state is _State.READING and not silenced:
            self._watcher.runtime.remove_reader(sock)
            self._add_reader(sock)

    def stop_reading(self) -> None:
        """Stop receiving. Sending goes on."""
        self._state = max(self._state, _State.WRITE_ONLY)
        if self._held is not None:
            self._held.end_all()
        self._watcher.runtime.remove_reader(self.sock)

    def stop(self) -> None:
        """Stop following and receiving. The socket stays open."""
        if self._state < _State.STOPPED:
            self._state = _State.STOPPED
            self.followers.unfollow(self)
            self._cancel_retry()
            self.stop_reading()

    def close(self) -> None:
        """Stop and close the socket."""
        self.stop()
        self._state = _State.CLOSED
        self._user = None
        self.in_place.local_address(self.sock)
        self.sock.close()

    def recheck(self) -> None:
        """Read the network again after a refused send. It may have changed without an event."""
        if self._state >= _State.STOPPED:
            return
        self._watcher.recheck()
        if self.no_path and not self._watcher.running:
            self._update()

    def up_to_date_since(self) -> float | None:
        """See :meth:`Watcher.up_to_date_since`."""
        return self._watcher.up_to_date_since()

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move the socket to where it belongs now."""
        if self._state >= _State.STOPPED:
            return
        self._cancel_retry()
        decider = decider.with_pin(self._endpoint.pin)
        if self.ways is not None:
            self.ways.decider = decider
        if self._held is not None:
            self._held.end_dead(decider)
        self._forget_ways()
        if self._endpoint.requirement is not None:
            self._update_placement(self._endpoint.requirement, decider)
        if self.ways is not None:
            # Other destinations may have a path now, even if the current socket has none.
            self._forget_ways()
            self.path_found()

    def _update_placement(self, requirement: Requirement, decider: Decider) -> None:
        in_place, network = self.in_place, decider.network
        wanted = requirement.placement(decider)
        hop_silent = in_place.hop_silent(wanted, network, holding=self.no_path)
        orders = plan(
            Facts(
                network,
                in_place.placement,
                wanted,
                in_place.source_if_alive(self.sock, self.peer, network),
                in_place.broken,
                self._may_overlap(),
                self._held.places(self._port) if self._held is not None and not self._endpoint.own_socket else _NONE,
                hop_silent,
                hop_silent and in_place.unrouted(network),
            )
        )
        if orders.count_drops:
            in_place.count_drops(self.sock)
        elif orders.step is not Step.AWAIT:
            in_place.count_stuck(self.sock, wanted, network)
        if orders.hold or orders.step is Step.AWAIT:
            in_place.when_hop_answers(wanted, network, self._hop_answers)
        if orders.step is Step.END:
            self._end(requirement, decider)
        elif orders.step is Step.HOLD:
            self.no_path = True
        elif orders.step is Step.STAY:
            in_place.placement = orders.placement
            if self.no_path and not orders.hold:
                self._send_again(network)
        elif orders.step is Step.AWAIT:
            if self.no_path:
                self._send_again_meanwhile(network)
        else:
            self._move(orders, network)

    def path_found(self) -> None:
        """Try to send the waiting datagrams: they may have a path now."""
        if self._user is not None and self._state < _State.STOPPED:
            self._user.path_found()

    def add_way(self, way: HeldSocket) -> None:
        """Keep another socket, and receive from it."""
        self.held.add_way(way)
        if self._state is _State.READING:
            self._add_reader(way.sock)

    def hop_silent(self, interface: Interface, gateway: IPAddress | None) -> bool:
        """Whether the first hop of a way does not answer yet. If so, the waiting datagrams are tried again when it does."""
        hops = self._watcher.runtime.shared(FirstHops)
        silent = hops.is_silent(self._watcher.kernel, interface, gateway)
        if silent and gateway is not None:
            hops.when_answered(interface, gateway, self._way_answers)
        return silent

    def catch_up(self) -> None:
        """Process the newest reading now, before the endpoint sends."""
        self.followers.catch_up(self)

    def _hop_answers(self) -> None:
        self.followers.recheck(self)

    def _way_answers(self) -> None:
        self._forget_ways()
        self.path_found()

    def _forget_ways(self) -> None:
        if self.ways is not None:
            self.ways.forget()

    def _lost_on_device(self, count: int) -> None:
        self._watcher.statistics.lost_on_device += count

    def _move(self, orders: Orders, network: Network) -> None:
        before = self.in_place.placement
        try:
            self._carry_out(orders, network)
        except OSError as error:
            self._failed(error, orders)
            return
        if self._state >= _State.STOPPED:
            return
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("moved a datagram endpoint from %s to %s", before.interface, self.interface)
        if orders.hold:
            self.no_path = True
            self._reset_retry()
        else:
            self._resume()

    def _carry_out(self, orders: Orders, network: Network) -> None:
        """Take the step to another placement.

        :raises OSError: it failed; the old socket is still the current one
        """
        in_place, placement = self.in_place, orders.placement
        if orders.step is Step.TAKE_BACK:
            assert placement.path is not None
            in_place.check_route(placement, network)
            self._swap(self.held.take_back(place_of(placement.path)), placement, network)
        elif orders.step is Step.IN_PLACE and self._has_another_source(placement):
            # A socket cannot change the address that it was bound to.
            in_place.check_route(placement, network)
            if not self._make_room(placement):
                return
            self._swap(self._duplicate(placement, network), placement, network)
        elif orders.step is Step.OVERLAP:
            in_place.check_route(placement, network)
            if not self._make_room(placement):
                return
            try:
                fresh = self._duplicate(placement, network)
            except OSError as error:
                # On macOS two sockets cannot have the requested port. An in-place move with a gap keeps it.
                if error.errno != errno.EADDRINUSE:
                    raise
                self._move_in_place(placement, network)
            else:
                self._swap(fresh, placement, network)
        else:
            if not self._make_room(placement):
                return
            try:
                self._move_in_place(placement, network)
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                if not (in_place.broken or taken) or self._endpoint.replaceable is None:
                    raise
                # A socket that lost its device half-way cannot always be bound again (see ``Kernel.rebind``); a new one can. If
                # another program has the port on the new interface, a new one gets another port.
                try:
                    fresh = self._duplicate(placement, network)
                except OSError as again:
                    _logger.debug("cannot make a new datagram socket on %s, either: %s", placement.interface, again)
                    raise error from None
                _logger.debug("cannot move a datagram socket in place, a new one takes over: %s", error)
                self._swap(fresh, placement, network)

    def _move_in_place(self, placement: Placement, network: Network) -> None:
        in_place, spec = self.in_place, self._endpoint.replaceable
        automatic = spec is not None and not spec.port
        sharing = self._sharing(placement)
        in_place.move(self.sock, self.peer, placement, network, replaceable=automatic, sharing=sharing)

    def _sharing(self, placement: Placement) -> list[socket.socket]:
        """The other sockets of the endpoint that keep the system from giving their port to a socket there.

        A socket that is bound to no interface keeps other programs from the port.
        """
        if self._held is None:
            return []
        return self._held.sockets if placement.path is None else self._held.everywhere

    def _make_room(self, placement: Placement) -> bool:
        """Close another socket that is on the interface already, and may have the port.

        :return: whether the endpoint is still open: the program gets the datagrams that are left on that socket
        """
        if placement.path is not None and self._held is not None:
            self._held.end_at(placement.path.index)
        return self._state < _State.STOPPED

    def _send_again_meanwhile(self, network: Network) -> None:
        """Send by the present path until the first hop of a better one answers, once its own first hop answers."""
        in_place = self.in_place
        if in_place.hop_silent(in_place.placement, network, holding=True):
            in_place.when_hop_answers(in_place.placement, network, self._hop_answers)
        else:
            self._send_again(network)

    def _send_again(self, network: Network) -> None:
        """Send by the present path again."""
        self.in_place.begin(network)
        self._resume()

    def _resume(self) -> None:
        if self.no_path and self._state is _State.READING:
            self._add_reader(self.sock)
        self.no_path = False
        self._reset_retry()
        self.path_found()

    def _may_overlap(self) -> bool:
        """Whether a second socket may take over while the first still receives.

        There is no need if the socket has no peer and binding does not filter incoming datagrams (Darwin): then the one socket
        receives by all interfaces.
        """
        if self._endpoint.replaceable is None:
            return False
        return self.peer is not None or self._watcher.kernel.binding_filters_ingress

    def _has_another_source(self, placement: Placement) -> bool:
        """Whether the placement needs another local address than the socket is bound to now."""
        if self._endpoint.replaceable is None or placement.path is None:
            return False
        now = self.in_place.placement.path
        return placement.path.source != (now.source if now is not None else None)

    def _duplicate(self, placement: Placement, network: Network) -> socket.socket:
        """Make another socket like the current one.

        :raises OSError: it cannot be made
        """
        spec, path = self._endpoint.spec, placement.path
        assert spec is not None
        interface = network.interfaces[path.index] if path is not None else None
        like = self.sock if self.in_place.handed_out else None
        ports = (spec.port,) if spec.port else (self.in_place.port(self.sock), 0)
        own = path.source if path is not None and spec.address is None else None
        kernel, sharing = self._watcher.kernel, self._sharing(placement)
        fresh = spec.duplicate_on(like, kernel, interface, ports, own=own, sharing=sharing)
        try:
            self.in_place.check_source(fresh, self.peer, placement, network)
        except OSError:
            fresh.close()
            raise
        return fresh

    def _swap(self, fresh: socket.socket, placement: Placement, network: Network) -> None:
        """Send by another socket from now on."""
        sock, in_place = self.sock, self.in_place
        path, source, broken = in_place.placement.path, in_place.source(sock, self.peer), in_place.broken
        self.sock = fresh
        self.peer = peer_of(fresh)
        in_place.moved(placement, network)
        in_place.forget_port()
        if self._state is _State.READING:
            # The program sends by it before this.
            self._watcher.runtime.call_soon(self._read_by, fresh)
        if broken or path is None or not alive(network, path, source):
            self._discard(sock, True)
        else:
            self.held.keep(sock, path, source)

    def _discard(self, sock: socket.socket, drain: bool) -> None:
        if drain and self._state is _State.READING and self._user is not None:
            self._user.drain(sock)
        self._watcher.runtime.remove_reader(sock)
        self._watcher.runtime.remove_writer(sock)
        self._forget_ways()
        sock.close()

    def _failed(self, error: OSError, orders: Orders) -> None:
        in_place = self.in_place
        self.no_path = orders.gap or in_place.broken
        if in_place.broken and self._state is _State.READING:
            # A socket that was silenced by shutdown() stays readable, with nothing to read.
            self._watcher.runtime.remove_reader(self.sock)
        in_place.failed(error, orders.placement, self._schedule_retry())

    def _schedule_retry(self) -> float:
        if self._retry is None:
            self._retry = Retry(self._watcher.runtime, self._update, FIRST_RETRY, LAST_RETRY)
        return self._retry.schedule()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    def _reset_retry(self) -> None:
        if self._retry is not None:
            self._retry.reset()

    def _update(self) -> None:
        """Read the network and move the socket, without waiting for an event."""
        if self._state >= _State.STOPPED:
            return
        self._cancel_retry()
        try:
            decider = self._watcher.refresh()
        except OSError as error:
            self.in_place.failed(error, self.in_place.placement, self._schedule_retry())
            return
        self.network_changed(decider, Cause.RECONCILE)

    def _end(self, requirement: Requirement, decider: Decider) -> None:
        error = InterfaceChanged(
            f"the local address {requirement.address} is gone",
            errno=errno.EADDRNOTAVAIL,
            interface=self.interface,
            new_interface=requirement.first_placement(decider).interface,
        )
        if self._user is not None:
            self._user.fail(error)

    def _read_by(self, sock: socket.socket) -> None:
        """Receive by a socket that has been made before, unless it has ended meanwhile."""
        held = self._held.sockets if self._held is not None else ()
        if self._state is _State.READING and (sock is self.sock or sock in held):
            self._add_reader(sock)

    def _add_reader(self, sock: socket.socket) -> None:
        if self._user is not None:
            self._watcher.runtime.add_reader(sock, self._user.readable, sock)
