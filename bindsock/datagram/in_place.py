"""Moves a datagram socket to another interface in place: same descriptor, same port, same registration with the event loop.

:class:`InPlace` makes the move. It has two users: :class:`bindsock.datagram.mover.DatagramMover` for the sockets of a transport,
and :class:`InPlaceMover` for a socket that the program uses itself. :mod:`bindsock.datagram.plan` decides when to move. A socket
that has moved in place receives no more by the old interface.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from bindsock.datagram.drop_counter import DeviceDrops, DropCounter
from bindsock.datagram.first_hop import FirstHops, first_hop
from bindsock.datagram.followers import followers_of
from bindsock.datagram.plan import NOWHERE, UNBOUND, Facts, Placement, Requirement, Step, device_alive, plan
from bindsock.dial.binding import MOST_DOUBTS, MakeshiftSource, check_route, check_source
from bindsock.dial.chosen import has_chosen_multicast, is_left_alone, own_address, uplink_of
from bindsock.dial.followed_socket import watch_end
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import families_of, peer_of
from bindsock.kernel.sockets import sharing_ports
from bindsock.model.change import Cause
from bindsock.model.network import is_multicast, unmapped
from bindsock.netmon.backoff import Retry
from bindsock.netmon.no_interface import no_effective_interface

if TYPE_CHECKING:
    import socket
    import weakref
    from collections.abc import Callable, Sequence

    from bindsock.dial.resolving import SockAddr
    from bindsock.model.decision import Path
    from bindsock.model.network import Interface, IPAddress, Network, Target
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

FIRST_RETRY = 0.05
LAST_RETRY = 5.0
"""Seconds between two attempts to move a socket; the delay doubles each time, with jitter."""


class InPlace:
    """The placement of one datagram socket, and its moves in place.

    :param watcher: provides the event loop, the kernel and the statistics
    :param requirement: decides the placement of the socket
    :param placement: the present placement
    """

    __slots__ = (
        "_doubts",
        "_hops",
        "_local",
        "_port",
        "_source",
        "_source_known",
        "_watcher",
        "broken",
        "drops",
        "handed_out",
        "placement",
        "requirement",
    )

    def __init__(self, watcher: Watcher, requirement: Requirement | None, placement: Placement) -> None:
        runtime = watcher.runtime
        self._watcher = watcher
        self._local: SockAddr = ("", 0)  # read from the socket when it is needed
        self._port = 0
        self._source: IPAddress | None = None
        self._source_known = False
        self._hops = runtime.shared(FirstHops)
        self._doubts = 0
        self.requirement: Requirement | None = requirement
        self.placement: Placement = placement
        self.broken: bool = False
        """A move failed half-way: the socket must be bound again before it can send."""
        self.handed_out: bool = False
        """The program has got the socket object, and may have set options on it."""
        self.drops: DropCounter = DropCounter(watcher.kernel, runtime.shared(DeviceDrops), watcher.statistics.sent)
        """Counts the socket's datagrams that its device has dropped."""

    def begin(self, network: Network) -> None:
        """Count drops for the device of the present placement from now on."""
        path = self.placement.path
        self.drops.start(network.interfaces.get(path.index) if path is not None else None)

    def local_address(self, sock: socket.socket) -> SockAddr:
        """The local address; the last one if the socket is closed."""
        with contextlib.suppress(OSError):
            self._local = sock.getsockname()
        return self._local

    def port(self, sock: socket.socket) -> int:
        """The local port; 0 if there is none yet. It is remembered, because a failed move may leave the socket without it."""
        if not self._port:
            self._port = self._local[1] or self.local_address(sock)[1]
        return self._port

    def forget_port(self) -> None:
        """Read the port anew, since the socket has a successor, which may have another port."""
        self._local, self._port = ("", 0), 0

    def source_if_alive(self, sock: socket.socket, peer: SockAddr | None, network: Network) -> IPAddress | None:
        """The fixed source address of the socket's datagrams; ``None``, too, if its device is dead: it must leave anyway."""
        path = self.placement.path
        return self.source(sock, peer) if path is None or device_alive(network, path) else None

    def source(self, sock: socket.socket, peer: SockAddr | None) -> IPAddress | None:
        """The fixed source address of the socket's datagrams; ``None`` if the system chooses one for each datagram.

        It is 0.0.0.0 if the socket was connected while no interface had an IPv4 address. Linux then sends only the first datagram
        by each new route from a proper address (``net/ipv4/udp.c``, udp_sendmsg).
        """
        if self.requirement is not None and self.requirement.address is not None:
            return self.requirement.address
        if peer is None:
            return None
        if not self._source_known:
            self._source, self._source_known = unmapped(address_of(self.local_address(sock))), True
        return self._source

    def check_route(self, placement: Placement, network: Network) -> None:
        """Check that the socket can reach its destination from a placement, if it has a single destination.

        :raises NoRoute: no route to the destination leaves by the interface
        """
        if self.requirement is not None and placement.path is not None:
            check_route(self._watcher.kernel, network.interfaces[placement.path.index], self.requirement.destination)

    def unrouted(self, network: Network) -> bool:
        """Whether the present path has no route any more, so that datagrams sent by it are lost (see :meth:`check_route`).

        False if the kernel cannot tell.
        """
        path = self.placement.path
        interface = network.interfaces.get(path.index) if path is not None else None
        if path is None or interface is None or self.requirement is None:
            return False
        destination = self.requirement.destination
        if destination is None:
            return (path.index, path.family) not in network.reachable
        try:
            return not self._watcher.kernel.has_route(interface, destination)
        except OSError:
            return False

    def move(
        self,
        sock: socket.socket,
        peer: SockAddr | None,
        placement: Placement,
        network: Network,
        *,
        replaceable: bool = False,
        sharing: Sequence[socket.socket] = (),
    ) -> None:
        """Bind the socket to the interface of another placement, or unbind it.

        There is no moment at which the socket could send unbound (see ``Kernel.rebind``).

        :param peer: the address that the socket is connected to
        :param replaceable: whether the system chose its port, and another socket can take over
        :param sharing: other sockets with which it may share its port
        :raises NoRoute: no route to the destination leaves by the interface; the socket has not been changed
        :raises BindFailed: the system refused. If another socket has the port (EADDRINUSE), a socket that is not replaceable has
            not been changed, unless it was to be unbound
        """
        self.check_route(placement, network)
        kernel = self._watcher.kernel
        interface = network.interfaces[placement.path.index] if placement.path is not None else None
        if interface is not None:
            chosen = self.requirement is not None and self.requirement.address is not None
            kernel.check_port(sock, interface, keeps_address=chosen, replaceable=replaceable, sharing=sharing)
        self.broken, self._source_known = True, False
        with sharing_ports(sock, sharing):
            if interface is None:
                kernel.unbind(sock, peer=peer, port=self.port(sock) or None)
            else:
                kernel.rebind(sock, interface, peer=peer, port=self.port(sock) or None, replaceable=replaceable)
        self.check_source(sock, peer, placement, network)
        self.moved(placement, network)

    def check_source(self, sock: socket.socket, peer: SockAddr | None, placement: Placement, network: Network) -> None:
        """Check the source address of a connected socket, unless the program or the decision has chosen it.

        :raises MakeshiftSource: the interface was without its own addresses at that moment
        """
        path = placement.path
        if path is None or peer is None or path.source is not None:
            return
        if self.requirement is not None and self.requirement.address is not None:
            return
        interface = network.interfaces.get(path.index)
        if interface is None:
            return
        try:
            local = unmapped(address_of(sock.getsockname()))
            check_source(self._watcher.kernel, interface, network, unmapped(address_of(peer)), local)
        except MakeshiftSource:
            self._doubts += 1
            if self._doubts <= MOST_DOUBTS:
                raise
        self._doubts = 0

    def moved(self, placement: Placement, network: Network) -> None:
        """Record that the socket, or its successor, is in a new placement."""
        self.broken = self._source_known = False
        self.placement = placement
        self._watcher.statistics.rebinds += 1
        self.begin(network)

    def hop_silent(self, wanted: Placement, network: Network, *, holding: bool) -> bool:
        """Whether the first hop of another path does not answer yet, but may do so soon.

        :param holding: whether to check the present path, too
        """
        if wanted.path is None or (wanted.path == self.placement.path and not holding):
            return False
        interface = network.interfaces[wanted.path.index]
        return self._hops.is_silent(self._watcher.kernel, interface, self._first_hop(wanted.path, interface))

    def when_hop_answers(self, wanted: Placement, network: Network, method: Callable[[], object]) -> None:
        """Call a method when the silent first hop answers, or when there is no more reason to wait for it."""
        assert wanted.path is not None
        interface = network.interfaces[wanted.path.index]
        hop = self._first_hop(wanted.path, interface)
        assert hop is not None
        self._hops.when_answered(interface, hop, method)

    def _first_hop(self, path: Path, interface: Interface) -> IPAddress | None:
        requirement = self.requirement
        if requirement is None or requirement.address is not None:
            return path.gateway  # the route to the destination is not known
        return first_hop(path, interface, requirement.destination)

    def count_drops(self, sock: socket.socket) -> None:
        """Count the datagrams that a dead device accepted and did not send."""
        self.drops.count_lost_later(sock, self._watcher.statistics)

    def count_stuck(self, sock: socket.socket, wanted: Placement, network: Network) -> None:
        """Before the socket leaves a working device: count the datagrams that wait there without a route, or for a silent first
        hop."""
        path = self.placement.path
        if path is not None and path.index != wanted.interface_index and self.drops.stuck(sock) and self._is_stuck(path, network):
            self._watcher.statistics.lost_on_device += self.drops.lost_while_stuck(sock)

    def _is_stuck(self, path: Path, network: Network) -> bool:
        interface = network.interfaces.get(path.index)
        hop = self._first_hop(path, interface) if interface is not None else None
        if interface is not None and hop is not None and self._watcher.kernel.first_hop_answers(interface, hop) is False:
            return True
        return self.unrouted(network)

    def count_unsent(self, sock: socket.socket) -> None:
        """Count the unsent datagrams on a dead device, for a program that does not report what it sends."""
        self._watcher.statistics.lost_on_device += self._watcher.kernel.unsent(sock)

    def failed(self, error: OSError, placement: Placement, delay: float) -> None:
        """Count and log a failed move.

        :param delay: seconds until the next attempt
        """
        self._watcher.statistics.rebinds_failed += 1
        name = placement.interface or "no interface"
        _logger.info("cannot move a datagram socket to %s yet, trying again in %.2f s: %s", name, delay, error)


def follow_datagrams(
    watcher: Watcher,
    sock: socket.socket,
    *,
    target: Target | None = None,
    interface: str | None = None,
) -> InPlaceMover | None:
    """Bind a datagram socket to the effective interface, and move it with the network until it is closed or freed.

    If the system refuses, the socket is closed, so that it cannot send unbound. A socket is left alone if the program has chosen
    its interface (see :mod:`bindsock.dial.chosen`), or if its peer is this host.

    :param target: the destination of a socket without a peer; the default route of its family unless given
    :param interface: the name of the only interface to use; the watcher's unless given
    :return: its follower; ``None`` if the socket is left alone
    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    :raises ValueError: the families of a dual-stack socket have different effective interfaces, and there is no target
    """
    try:
        return _bound(watcher, sock, target, interface)
    except OSError:
        sock.close()
        raise


def _bound(watcher: Watcher, sock: socket.socket, target: Target | None, pin: str | None) -> InPlaceMover | None:
    if is_left_alone(watcher.kernel, sock):
        return None
    peer = peer_of(sock)
    own = own_address(sock) if peer is None else None
    if own is not None and uplink_of(watcher.refresh(), own) is None:
        return None
    if peer is not None:
        target = unmapped(address_of(peer))
    if has_chosen_multicast(watcher.kernel, sock) and (target is None or is_multicast(target)):
        return None
    requirement = Requirement((target,) if target is not None else families_of(sock), own)
    follower = InPlaceMover(watcher, sock, requirement, UNBOUND, pin)
    return follower if follower.bind(sock) else None


def watch_datagrams(
    watcher: Watcher, sock: socket.socket, target: Target, path: Path | None, *, interface: str | None = None
) -> InPlaceMover | None:
    """Follow a datagram socket that has just been bound and connected.

    :param path: the path on which it was connected; ``None`` if it is unbound, then it is not followed
    :param interface: the name of the only interface that it may use
    :return: its follower; ``None`` if it is not followed
    :raises OSError: the socket is closed
    """
    if path is None:
        return None
    follower = InPlaceMover(watcher, sock, Requirement((target,)), Placement(path), interface)
    follower.start(sock)
    return follower


class InPlaceMover:
    """Follows a datagram socket that the program uses itself. The watcher holds it; it holds the socket weakly.

    bindsock cannot hold datagrams for such a socket. While there is no path, the socket stays where it is, and the system refuses
    to send.
    """

    def __init__(
        self,
        watcher: Watcher,
        sock: socket.socket,
        requirement: Requirement,
        placement: Placement,
        pin: str | None,
    ) -> None:
        self.seen: int = 0
        self._reports_sends = False
        """The program calls :meth:`sent`."""
        self._watcher = watcher
        self._followers = followers_of(watcher)
        self._peer = peer_of(sock)
        self._in_place = InPlace(watcher, requirement, placement)
        self._pin = pin
        self._retry = Retry(watcher.runtime, self._try_again, FIRST_RETRY, LAST_RETRY)
        self._sock: weakref.ref[socket.socket] | None = watch_end(sock, self.close)

    @property
    def interface(self) -> str | None:
        """The name of the interface that the socket is bound to."""
        return self._in_place.placement.interface

    def bind(self, sock: socket.socket) -> bool:
        """Bind the socket and start to follow it.

        :return: false if the socket is left alone
        :raises OSError: it cannot be bound
        """
        decider = self._watcher.refresh().with_pin(self._pin)
        self._followers.follow(self)
        try:
            requirement = self._in_place.requirement
            assert requirement is not None
            decisions = requirement.decisions(decider)
            if len({d.interface.index for d in decisions if d.interface is not None}) > 1:
                raise ValueError("the families of a dual-stack socket have different effective interfaces: give family=")
            placement = requirement.placement(decider)
            if placement.path is None:
                if not placement.unbound:
                    raise no_effective_interface("the datagram socket", decisions, self._watcher.kernel, decider.network)
                self.close()
                return False
            self._in_place.check_route(placement, decider.network)
            interface = decider.network.interfaces[placement.path.index]
            self._watcher.kernel.rebind(sock, interface, peer=self._peer)
            self._in_place.placement = placement
            self._in_place.begin(decider.network)
            self._check_source(sock, decider.network)
        except BaseException:
            self.close()
            raise
        return True

    def start(self, sock: socket.socket) -> None:
        """Start to follow a socket that is already bound and connected.

        :raises OSError: the socket is closed
        """
        self._followers.follow(self)
        try:
            decider = self._watcher.refresh()
            self._in_place.begin(decider.network)
            self._check_source(sock, decider.network)
            # The events since it was bound have passed already.
            self.network_changed(decider, Cause.STARTED)
        except BaseException:
            self.close()
            raise

    def _check_source(self, sock: socket.socket, network: Network) -> None:
        """Check the source address of a socket that was just connected; if it is makeshift, connect the socket again soon."""
        in_place = self._in_place
        try:
            in_place.check_source(sock, self._peer, in_place.placement, network)
        except MakeshiftSource as error:
            in_place.broken = True
            in_place.failed(error, in_place.placement, self._retry.schedule())

    def retarget(self, sock: socket.socket, target: IPAddress) -> None:
        """Move a socket without a peer to the interface for another destination, because the program is about to send there.

        The socket then receives no more by the interface that it leaves: one socket cannot be on two interfaces. If the move
        fails, the next datagram to this destination tries again.

        :param target: the new destination
        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the destination leaves by the interface
        :raises BindFailed: the system refused
        """
        in_place, requirement = self._in_place, self._in_place.requirement
        if requirement is None or requirement.address is not None or self._peer is not None:
            return
        if requirement.targets == (target,) and not in_place.broken:
            return
        decider = self._watcher.refresh().with_pin(self._pin)
        wanted = Requirement((target,))
        placement = wanted.placement(decider)
        if is_multicast(target) and has_chosen_multicast(self._watcher.kernel, sock):
            placement = UNBOUND
        if placement == NOWHERE:
            raise no_effective_interface(str(target), (decider.decide(target),), self._watcher.kernel, decider.network)
        if not in_place.broken and placement.interface_index == in_place.placement.interface_index:
            in_place.requirement, in_place.placement = wanted, placement
            return
        in_place.requirement = wanted
        try:
            in_place.move(sock, None, placement, decider.network)
        except BaseException:
            # The next datagram to this destination must not leave by the interface of the previous destination.
            in_place.requirement = requirement
            raise

    def sent(self, sock: socket.socket) -> None:
        """Count a datagram that the program has sent. Programs may call this to get exact counts of lost datagrams."""
        drops, now = self._in_place.drops, self._watcher.runtime.time()
        self._reports_sends = True
        if now >= drops.due:
            drops.sample(now, sock)
            self._followers.used(self)
        drops.sent()

    def close(self) -> None:
        """Stop following. The socket stays open and bound."""
        self._followers.unfollow(self)
        self._sock = None
        self._retry.cancel()

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move the socket to where it belongs now."""
        sock = self._sock() if self._sock is not None else None
        if sock is None or sock.fileno() == -1:
            self.close()
            return
        self._retry.cancel()
        decider = decider.with_pin(self._pin)
        in_place = self._in_place
        assert in_place.requirement is not None
        peer = self._peer if self._peer is not None else peer_of(sock)
        wanted = in_place.requirement.placement(decider)
        hop_silent = in_place.hop_silent(wanted, decider.network, holding=False)
        orders = plan(
            Facts(
                decider.network,
                in_place.placement,
                wanted,
                in_place.source_if_alive(sock, peer, decider.network),
                in_place.broken,
                hop_silent=hop_silent,
                unrouted=hop_silent and in_place.unrouted(decider.network),
            )
        )
        if not orders.count_drops:
            if orders.step is not Step.AWAIT:
                in_place.count_stuck(sock, wanted, decider.network)
        elif self._reports_sends:
            in_place.count_drops(sock)
        else:
            in_place.count_unsent(sock)
        if orders.step is Step.AWAIT:
            in_place.when_hop_answers(wanted, decider.network, self._hop_answers)
        if orders.step is Step.STAY:
            in_place.placement = orders.placement
        if orders.step not in (Step.IN_PLACE, Step.UNBIND):
            return
        try:
            in_place.move(sock, peer, orders.placement, decider.network)
        except OSError as error:
            in_place.failed(error, orders.placement, self._retry.schedule())
        else:
            self._retry.reset()

    def _try_again(self) -> None:
        if self._followers.follows(self):
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _hop_answers(self) -> None:
        self._followers.recheck(self)
