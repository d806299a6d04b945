"""The one in-place move of a datagram socket: same descriptor, same port, same registration with the event loop.

:class:`InPlace` makes the move, for whoever follows the socket: :class:`bindsock.datagram.mover.DatagramMover` beneath a
transport, and :class:`InPlaceMover` beneath a program that uses the socket itself. What an in-place move cannot do is to receive
by the old interface and send by the new one for a while.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from bindsock.datagram.drop_counter import DeviceDrops, DropCounter
from bindsock.datagram.first_hop import FirstHops
from bindsock.datagram.followers import followers_of
from bindsock.datagram.plan import NOWHERE, UNBOUND, Facts, Placement, Requirement, Step, plan
from bindsock.dial.binding import check_route
from bindsock.dial.chosen import has_chosen_multicast, is_left_alone, own_address, uplink_of
from bindsock.dial.followed_socket import watch_end
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import families_of, peer_of
from bindsock.model.change import Cause
from bindsock.model.network import is_multicast, unmapped
from bindsock.netmon.backoff import Retry
from bindsock.netmon.no_interface import no_effective_interface

if TYPE_CHECKING:
    import socket
    import weakref
    from collections.abc import Callable

    from bindsock.dial.resolving import SockAddr
    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress, Network, Target
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

FIRST_RETRY = 0.05
LAST_RETRY = 5.0
"""Seconds between two attempts to move a socket, doubling, with jitter."""


class InPlace:
    """Where one datagram socket is, and the moves that it makes in place.

    :param watcher: whose event loop, kernel and statistics count
    :param requirement: what decides the placement of the socket
    :param placement: where it is
    :param local: its local address
    """

    __slots__ = (
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

    def __init__(self, watcher: Watcher, requirement: Requirement | None, placement: Placement, local: SockAddr) -> None:
        runtime = watcher.runtime
        self._watcher = watcher
        self._local = local
        self._port: int = local[1]
        self._source: IPAddress | None = None
        self._source_known = False
        self._hops = runtime.shared(FirstHops)
        self.requirement: Requirement | None = requirement
        self.placement: Placement = placement
        self.broken: bool = False
        """A move failed half-way: the socket must be bound anew before it sends."""
        self.handed_out: bool = False
        """Somebody was given the socket, and may have set options on it."""
        self.drops: DropCounter = DropCounter(watcher.kernel, runtime.shared(DeviceDrops), watcher.statistics.sent)
        """What the device by which the socket sends has dropped of it."""

    def begin(self, network: Network) -> None:
        """From now on the socket sends by the device of its placement."""
        path = self.placement.path
        self.drops.start(network.interfaces.get(path.index) if path is not None else None)

    def local_address(self, sock: socket.socket) -> SockAddr:
        """The local address as it is now, or was last."""
        with contextlib.suppress(OSError):
            self._local = sock.getsockname()
        return self._local

    def port(self, sock: socket.socket) -> int:
        """The local port; 0 if there has been none yet. A socket that failed to move may have lost its own."""
        if not self._port:
            self._port = self.local_address(sock)[1]
        return self._port

    def source(self, sock: socket.socket, peer: SockAddr | None) -> IPAddress | None:
        """The address that everything the socket sends has as its source, if it has one."""
        if self.requirement is not None and self.requirement.address is not None:
            return self.requirement.address
        if peer is None:
            return None
        if not self._source_known:
            address = unmapped(address_of(sock.getsockname()))
            self._source, self._source_known = (None if address.is_unspecified else address), True
        return self._source

    def check_route(self, placement: Placement, network: Network) -> None:
        """Make sure that a socket in that placement can reach its one destination, if it has one.

        :raises NoRoute: no route to the destination leaves by the interface
        """
        if self.requirement is not None and placement.path is not None:
            check_route(self._watcher.kernel, network.interfaces[placement.path.index], self.requirement.destination)

    def unrouted(self, network: Network) -> bool:
        """Whether no route leads by the path where the socket is: what is sent all the same is lost (see :meth:`check_route`).

        False where it cannot be told.
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

    def move(self, sock: socket.socket, peer: SockAddr | None, placement: Placement, network: Network) -> None:
        """Bind the socket to the interface of another placement, or to none.

        The kernel goes through it so that there is no moment at which the socket could send unbound (see ``Kernel.rebind``).

        :param peer: what the socket is connected to
        :raises NoRoute: no route to the destination leaves by the interface; nothing has been done
        :raises BindFailed: the system refused
        """
        self.check_route(placement, network)
        self.broken, self._source_known = True, False
        if placement.path is None:
            self._watcher.kernel.unbind(sock)
        else:
            self._watcher.kernel.rebind(sock, network.interfaces[placement.path.index], peer=peer, port=self.port(sock) or None)
        self.moved(placement, network)

    def moved(self, placement: Placement, network: Network) -> None:
        """The socket, or the one that has taken over from it, is where it belongs."""
        self.broken = self._source_known = False
        self.placement = placement
        self._watcher.statistics.rebinds += 1
        self.begin(network)

    def hop_silent(self, wanted: Placement, network: Network, *, holding: bool) -> bool:
        """Whether the first hop of another path has not answered yet, and may do so.

        :param holding: ask for the present path as well
        """
        if wanted.path is None or (wanted.path == self.placement.path and not holding):
            return False
        interface = network.interfaces[wanted.path.index]
        return self._hops.is_silent(self._watcher.kernel, interface, wanted.path.gateway)

    def when_hop_answers(self, wanted: Placement, network: Network, method: Callable[[], object]) -> None:
        """Call a method when the first hop that is silent answers, or is waited for no longer."""
        assert wanted.path is not None
        assert wanted.path.gateway is not None
        self._hops.when_answered(network.interfaces[wanted.path.index], wanted.path.gateway, method)

    def count_drops(self, sock: socket.socket) -> None:
        """The device is dead: count what it had taken and not sent."""
        self._watcher.statistics.lost_on_device += self.drops.lost(sock)

    def count_unrouted(self, sock: socket.socket, wanted: Placement, network: Network) -> None:
        """The socket is to leave its device, which works: count what was sent by it after the route had gone."""
        path = self.placement.path
        if (
            path is not None
            and path.index != wanted.interface_index
            and self._watcher.kernel.unsent(sock)
            and self.unrouted(network)
        ):
            self._watcher.statistics.lost_on_device += self.drops.stranded(sock)

    def count_unsent(self, sock: socket.socket) -> None:
        """The device is dead, and the program has not told what it sent: what has not left yet never will."""
        self._watcher.statistics.lost_on_device += self._watcher.kernel.unsent(sock)

    def failed(self, error: OSError, placement: Placement, delay: float) -> None:
        """A move failed.

        :param delay: the seconds until it is tried again
        """
        self._watcher.statistics.rebinds_failed += 1
        name = placement.interface or "no interface"
        _logger.info("a datagram socket is not moved to %s yet, again in %.2f s: %s", name, delay, error)


def follow_datagrams(
    watcher: Watcher,
    sock: socket.socket,
    *,
    target: Target | None = None,
    interface: str | None = None,
) -> InPlaceMover | None:
    """Bind a datagram socket to the effective interface, and move it along until it is closed or forgotten.

    If the system refuses, the socket is closed: it never sends unbound.

    A socket whose way the program has chosen is left alone (see :mod:`bindsock.dial.chosen`), and so is one whose peer is this
    host.

    :param target: what it is for, where it is not connected; its family's default unless given
    :param interface: the name of the one interface to use instead of the watcher's
    :return: what follows it, ``None`` if it is left alone
    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    :raises ValueError: a socket for both families, whose effective interfaces differ, and no target
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
    """Move a datagram socket along that has just been bound and connected.

    :param path: on which that was done; ``None`` where it is bound to nothing: then it is not followed
    :param interface: the name of the one interface that it may use
    :raises OSError: the socket is closed
    """
    if path is None:
        return None
    follower = InPlaceMover(watcher, sock, Requirement((target,)), Placement(path), interface)
    follower.start(sock)
    return follower


class InPlaceMover:
    """Follows a datagram socket that its program uses itself. The watcher holds it; it holds the socket weakly.

    There is nobody to hold what is sent while there is no path: the socket then stays where it is, and the system refuses.
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
        self._sends = False
        """The program says what it sends."""
        self._watcher = watcher
        self._followers = followers_of(watcher)
        self._peer = peer_of(sock)
        self._in_place = InPlace(watcher, requirement, placement, sock.getsockname())
        self._pin = pin
        self._retry = Retry(watcher.runtime, self._look, FIRST_RETRY, LAST_RETRY)
        self._sock: weakref.ref[socket.socket] | None = watch_end(sock, self.close)

    @property
    def interface(self) -> str | None:
        """The name of the interface that the socket is bound to."""
        return self._in_place.placement.interface

    def bind(self, sock: socket.socket) -> bool:
        """Bind the socket and begin to follow it.

        :return: false if it is to be left alone
        :raises OSError: it cannot be bound
        """
        decider = self._watcher.refresh().with_pin(self._pin)
        self._followers.follow(self)
        try:
            requirement = self._in_place.requirement
            assert requirement is not None
            decisions = requirement.decisions(decider)
            if len({d.interface.index for d in decisions if d.interface is not None}) > 1:
                raise ValueError("the socket is for both families, whose effective interfaces differ: give family=")
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
        except BaseException:
            self.close()
            raise
        return True

    def start(self, sock: socket.socket) -> None:
        """Begin to follow a socket that is bound and connected already.

        :raises OSError: the socket is closed
        """
        self._followers.follow(self)
        try:
            decider = self._watcher.refresh()
            self._in_place.begin(decider.network)
            # What happened since it was bound raises no further event.
            self.network_changed(decider, Cause.STARTED)
        except BaseException:
            self.close()
            raise

    def retarget(self, sock: socket.socket, target: IPAddress) -> None:
        """The program is about to send to another destination by a socket without a peer: go where that leaves.

        What comes for it by the interface that is left is not received: one socket cannot be on two.

        If that fails, it fails again for the next datagram to that destination, until it can be done.

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
            # The next datagram to the same destination must not leave by the interface of the last one.
            in_place.requirement = requirement
            raise

    def sent(self, sock: socket.socket) -> None:
        """The program has sent a datagram by the socket. It may say so, so that what is sent and lost is counted."""
        drops, now = self._in_place.drops, self._watcher.runtime.time()
        self._sends = True
        if now >= drops.due:
            drops.look(now, sock)
            self._followers.used(self)
        drops.sent()

    def close(self) -> None:
        """Stop following. The socket stays open, and bound where it is."""
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
                in_place.source(sock, peer),
                in_place.broken,
                hop_silent=hop_silent,
                unrouted=hop_silent and in_place.unrouted(decider.network),
            )
        )
        if not orders.count_drops:
            in_place.count_unrouted(sock, wanted, decider.network)
        elif self._sends:
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

    def _look(self) -> None:
        if self._followers.follows(self):
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _hop_answers(self) -> None:
        self._followers.look_again(self)
