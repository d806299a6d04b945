"""The ways of an endpoint without a peer: the socket for each destination, so that it leaves by its own interface.

The current socket is for the default route. A *way* is another socket of the endpoint, with the same local port if the system
allows it. There are ways for destinations that leave by another interface (the network of a second card, the uplink of the other
family), for addresses of this host, and for the destinations of a split tunnel. The program sees one transport, which receives
from all of them.

A way for an address of this host must never send to the outside. For a loopback address, it is bound to the loopback interface.
For another address of this host, it is bound to this address, so that it cannot send any more once the address is gone
(``linux net/ipv4/route.c``, ip_route_output_key_hash_rcu).
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bindsock.datagram.drop_counter import DeviceDrops, DropCounter
from bindsock.datagram.held_sockets import HeldSocket, Way
from bindsock.dial.resolving import address_of
from bindsock.model.decision import Basis, path_on
from bindsock.model.network import LIMITED_BROADCAST, InterfaceKind, IPAddress, Target, family_of, is_multicast, unmapped

if TYPE_CHECKING:
    from collections.abc import Hashable

    from bindsock.datagram.mover import DatagramMover
    from bindsock.datagram.socket_spec import SocketSpec
    from bindsock.model.decision import Decision, Path
    from bindsock.model.network import Interface
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_MAX_REMEMBERED = 1024
"""How many destinations' ways are cached."""
_CURRENT = object()
"""Stands for the mover's current socket, which may change."""


class Ways:
    """Finds the socket for each destination of an endpoint.

    :param mover: the owner of the sockets
    :param spec: how to make another socket
    :param decider: the newest decider
    """

    __slots__ = ("_before", "_by_address", "_mover", "_spec", "_watcher", "decider")

    def __init__(self, mover: DatagramMover, watcher: Watcher, spec: SocketSpec, decider: Decider) -> None:
        self.decider: Decider = decider
        self._mover = mover
        self._watcher = watcher
        self._spec = spec
        self._by_address: dict[Hashable, Any] = {}
        self._before: dict[Hashable, Any] = {}

    def forget(self) -> None:
        """Decide again for each destination, because the network has changed. An old way is used until the new one works."""
        if len(self._before) > _MAX_REMEMBERED:
            self._before.clear()
        self._before.update(self._by_address)
        self._by_address.clear()

    def to(self, address: Any) -> tuple[socket.socket, DropCounter] | None:
        """The socket for a destination.

        :return: ``None`` if there is no path to it for now
        :raises OSError: a socket could not be made
        """
        way = self._by_address.get(address)
        if way is None:
            if len(self._by_address) >= _MAX_REMEMBERED:
                self.forget()
            way = self._find(address)
            if way is None:
                return None
            self._by_address[address] = way
        if way is _CURRENT:
            mover = self._mover
            return None if mover.no_path else (mover.sock, mover.in_place.drops)
        found: tuple[socket.socket, DropCounter] = way
        return found

    def _find(self, address: Any) -> Any:
        decider, target = self.decider, _target(address, self._spec.family)
        for_multicast = self._mover.requirement is None
        if target is None and not for_multicast:
            return _CURRENT
        if for_multicast and target is not None and is_multicast(target):
            return _CURRENT
        wanted: Target = self._spec.family if target is None else target
        decision = decider.decide(wanted)
        if decision.unbound:
            return self._unbound(decision, wanted, decider)
        if decision.interface is None:
            unbound = decider.preferences.on_no_interface == "unbound"
            return self._way(None, None, None) if unbound else None
        return self._by_interface(decision, decision.interface, wanted, decider, address)

    def _by_interface(self, decision: Decision, interface: Interface, target: Target, decider: Decider, address: Any) -> Any:
        mover = self._mover
        requirement, placement = mover.requirement, mover.in_place.placement
        if requirement is not None and requirement.address is not None:
            return _CURRENT
        wanted = requirement.placement(decider).path if requirement is not None else None
        indices = [path.index for path in (placement.path, wanted) if path is not None]
        if interface.index in indices:
            # While the socket cannot be moved to that interface, there is no path to its own network.
            here = placement.interface_index == interface.index
            return None if mover.refused and not here and decision.gateway is None else _CURRENT
        path = decider.path(target)
        if mover.hop_silent(interface, decision.gateway):
            before = self._before.get(address)
            usable = before is _CURRENT or (before is not None and before[0].fileno() != -1)
            if not usable:
                return None
            # Use the old way, and check again for the next datagram.
            return before if before is not _CURRENT or not mover.no_path else None
        return self._way(interface.index, interface, path)

    def _unbound(self, decision: Decision, target: Target, decider: Decider) -> Any:
        if self._mover.in_place.placement.path is None and self._mover.requirement is not None:
            return _CURRENT
        if decision.basis is not Basis.LOCAL or isinstance(target, socket.AddressFamily):
            return self._way(None, None, None)
        loopback = next(
            (i for i in decider.network.interfaces.values() if i.kind is InterfaceKind.LOOPBACK and i.up and i.running), None
        )
        if loopback is not None and target.is_loopback:
            return self._way(loopback.index, loopback, path_on(loopback, family_of(target)))
        return self._way(target, None, None)

    def _way(self, way: Way, interface: Interface | None, path: Path | None) -> tuple[socket.socket, DropCounter]:
        held = self._mover.held.way(way, path)
        if held is None:
            source = path.source if path is not None else None
            sock = self._open(interface, source if isinstance(way, int) else way)
            held = HeldSocket(sock, way, path, None, self._mover.held)
            self._mover.add_way(held)
        if held.drops is None:
            runtime = self._watcher.runtime
            held.drops = DropCounter(self._watcher.kernel, runtime.shared(DeviceDrops), self._watcher.statistics.sent)
            held.drops.start(interface)
        return held.sock, held.drops

    def _open(self, interface: Interface | None, own: IPAddress | None) -> socket.socket:
        """Make another socket, with the same port if possible.

        :param own: the local address to bind it to
        """
        mover, kernel = self._mover, self._watcher.kernel
        port = mover.in_place.port(mover.sock)
        if not port:
            # Bind the current socket to a port first, so that both can have the same.
            with suppress(OSError):
                mover.sock.bind(("", 0))
            port = mover.in_place.port(mover.sock)
        like = mover.sock if mover.in_place.handed_out else None
        try:
            return self._spec.duplicate_on(like, kernel, interface, (port,), own=own)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        try:
            return self._spec.duplicate_on(like, kernel, interface, (port,), own=own, sharing=(mover.sock, *mover.held.sockets))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        return self._spec.duplicate_on(like, kernel, interface, (0,), own=own)


def _target(address: Any, family: int) -> IPAddress | None:
    """The address of a destination; ``None`` if it is a name or the limited broadcast address."""
    try:
        target = unmapped(address_of(address))
    except ValueError:
        if address[0] not in ("", "localhost"):
            return None
        target = address_of(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return None if target == LIMITED_BROADCAST else target
