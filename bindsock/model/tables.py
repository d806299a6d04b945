"""Answers route lookups from dumped routing tables, for systems without lookups in the kernel (Darwin, simulated kernels).

Pure. It is unknown here whether policy rules lead to tables other than ``main`` and ``default``. In such tables, the routes of
tunnels and the default routes of uplinks count; the specific routes of uplinks do not.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bindsock.model.network import (
    DEFAULT_TABLE,
    FAMILIES,
    MAIN_TABLE,
    Answers,
    Interface,
    InterfaceKind,
    Lookup,
    Network,
    Route,
    RouteKind,
    family_of,
    unmapped,
)
from bindsock.model.prefixes import PrefixTable, is_default_in_disguise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bindsock.model.network import IPAddress

_HALF = {4: 1, 6: 3}
"""The longest prefix of an uplink's route that may act as a default route, by IP version: ``0/1``, ``2000::/3``."""


def tabulated(
    interfaces: Mapping[int, Interface],
    routes: Iterable[Route],
    *,
    refused: Iterable[tuple[int, socket.AddressFamily]] = (),
) -> Network:
    """Make a reading of the network from routing tables.

    :param interfaces: the interfaces by index
    :param routes: the routing tables
    :param refused: the (index, family) pairs for which the system does not confirm the default route of a bound socket
    """
    found = tuple(routes)
    defaults: dict[tuple[int, socket.AddressFamily], Lookup] = {}
    unbound: dict[socket.AddressFamily, Lookup] = {}
    for family in FAMILIES:
        family_defaults = _Defaults(interfaces, [route for route in found if route.family == family])
        defaults |= {(index, family): Lookup(route) for index, route in family_defaults.best.items()}
        first = family_defaults.unbound()
        if first is not None:
            unbound[family] = Lookup(first)
        for key in refused:
            if key[1] == family and defaults.pop(key, None) is not None and family_defaults.errors:
                defaults[key] = Lookup(family_defaults.errors[0])
    return Network(interfaces, found, defaults, unbound)


class _Defaults:
    """The default routes of one family, and the routes that act as one."""

    def __init__(self, interfaces: Mapping[int, Interface], routes: Sequence[Route]) -> None:
        self._interfaces = interfaces
        self.errors = [route for route in routes if route.is_default and route.kind is not RouteKind.UNICAST]
        known = [route for route in routes if route.kind is RouteKind.UNICAST and route.interface in interfaces]
        self.unscoped = sorted((r for r in known if r.is_default and not r.scoped), key=lambda r: order_of(r, interfaces))
        specific: dict[int, list[Route]] = {}
        for route in known:
            if route.interface is not None and not route.is_default and not route.scoped and _counts(route, interfaces):
                specific.setdefault(route.interface, []).append(route)
        self.disguised = [largest for index, own in specific.items() if (largest := self._disguised(interfaces[index], own))]
        self.disguised.sort(key=lambda r: order_of(r, interfaces))
        scoped = [route for route in known if route.is_default and route.scoped]
        tunnels = [route for route in self.disguised if _looked_through(interfaces[route.interface or 0])]
        self.best: dict[int, Route] = {}
        for route in (*tunnels, *self.unscoped, *scoped, *self.disguised):
            if route.interface is not None:
                self.best.setdefault(route.interface, route)

    @staticmethod
    def _disguised(interface: Interface, own: Sequence[Route]) -> Route | None:
        """The largest of an interface's specific routes, if together they act as a default route."""
        version = own[0].destination.version
        if not _looked_through(interface):
            own = [route for route in own if route.destination.prefixlen <= _HALF[version]]
        if not own or not is_default_in_disguise((route.destination for route in own), version):
            return None
        return min(own, key=lambda route: route.destination.prefixlen)

    def unbound(self) -> Route | None:
        """The default route of an unbound socket."""
        up = [r for r in (*self.disguised, *self.unscoped) if r.interface is not None and self._interfaces[r.interface].up]
        return min(up, key=lambda r: (order_of(r, self._interfaces)[0], r.is_default, r.metric), default=None)


class TableAnswers:
    """Answers route lookups from routing tables. Two of these are equal if they have the same routes.

    :param network: a reading with routing tables
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._tables: dict[int, PrefixTable[tuple[int, Route]]] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TableAnswers):
            return NotImplemented
        mine, theirs = self._network, other._network
        return (mine.routes, mine.defaults, mine.unbound) == (theirs.routes, theirs.defaults, theirs.unbound)

    def __call__(self, destination: IPAddress) -> Answers:
        network, destination = self._network, unmapped(destination)
        family = family_of(destination)
        by_interface: dict[int, Lookup] = {}
        refusal: Route | None = None
        unbound: Route | None = None
        for same in self._table(destination.version).matching(destination):
            for _, route in sorted(same, key=lambda entry: (order_of(entry[1], network.interfaces), entry[0])):
                if route.kind is not RouteKind.UNICAST:
                    refusal = refusal or (None if unbound is not None else route)
                    continue
                assert route.interface is not None
                known = by_interface.get(route.interface)
                if known is None or (known.route.scoped and not route.scoped):
                    by_interface[route.interface] = Lookup(route)
                if unbound is None and refusal is None and not route.scoped and network.interfaces[route.interface].up:
                    unbound = route
        for (index, of), lookup in network.defaults.items():
            if of == family and destination in lookup.route.destination:
                by_interface.setdefault(index, lookup)
        first = network.unbound.get(family) if refusal is None else None
        return Answers(
            Lookup(unbound) if unbound is not None else first, by_interface, Lookup(refusal) if refusal is not None else None
        )

    def _table(self, version: int) -> PrefixTable[tuple[int, Route]]:
        found = self._tables.get(version)
        if found is None:
            found = self._tables[version] = PrefixTable(version)
            for position, route in enumerate(self._network.routes):
                if route.destination.version == version and not route.is_default and _counts(route, self._network.interfaces):
                    found.add(route.destination, (position, route))
        return found


def routes_of(network: Network, family: socket.AddressFamily | None, table: int | None) -> tuple[Route, ...]:
    """The routes of a network.

    :param family: the address family; ``None`` for both
    :param table: the routing table; ``None`` for all
    """
    return tuple(route for route in network.routes if family in (None, route.family) and table in (None, route.table))


def order_of(route: Route, interfaces: Mapping[int, Interface]) -> tuple[int, int]:
    """The sort key for routes to the same destination. Equal routes stay in the order of the system's list."""
    return table_order(route, interfaces), route.metric


def table_order(route: Route, interfaces: Mapping[int, Interface]) -> int:
    """The rank of the route's table: ``main``, then ``default``, then the others. A tunnel's own table comes before all of them,
    because the VPN adds a policy rule for it."""
    if route.table == MAIN_TABLE:
        return 0
    if route.table == DEFAULT_TABLE:
        return 1
    interface = interfaces.get(route.interface) if route.interface is not None else None
    return -1 if interface is not None and interface.kind is InterfaceKind.TUNNEL else 2


def _counts(route: Route, interfaces: Mapping[int, Interface]) -> bool:
    """Whether a specific route counts. Only sockets that are bound to a tunnel use the scoped routes of the tunnel."""
    interface = interfaces.get(route.interface) if route.interface is not None else None
    if interface is not None and interface.kind is InterfaceKind.TUNNEL:
        return not route.scoped
    return route.table in (MAIN_TABLE, DEFAULT_TABLE) and (interface is not None or route.kind is not RouteKind.UNICAST)


def _looked_through(interface: Interface) -> bool:
    return interface.kind is InterfaceKind.TUNNEL or interface.last_resort
