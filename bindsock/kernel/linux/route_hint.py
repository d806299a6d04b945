"""What to tell the administrator of a machine on which a VPN has left no route for sockets that are bound beneath it."""

from __future__ import annotations

import shlex
import socket
from typing import TYPE_CHECKING

from bindsock.model.network import Interface, InterfaceKind, IPAddress, Network, Route, RouteKind, family_of, unmapped

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

_MAIN = 254
_PREFERENCE = 100
_METRIC = 9999


class Gateways:
    """The gateway by which each interface last had a default route: a VPN that replaces the route takes that knowledge along."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, socket.AddressFamily], IPAddress] = {}

    def note(self, interfaces: Container[int], defaults: Iterable[Route]) -> None:
        """Learn from a reading.

        :param interfaces: the indexes that there are; what was known of others is forgotten
        :param defaults: the default routes
        """
        self._known = {key: gateway for key, gateway in self._known.items() if key[0] in interfaces}
        for route in defaults:
            if route.gateway is not None and route.interface is not None:
                self._known[route.interface, route.family] = route.gateway

    def of(self, index: int, family: socket.AddressFamily) -> IPAddress | None:
        return self._known.get((index, family))


def cure(network: Network, interface: Interface, destination: IPAddress, gateways: Gateways) -> str:
    """One sentence: why nothing leads to the destination by the interface, and the command that would change that."""
    destination = unmapped(destination)
    family = family_of(destination)
    name = shlex.quote(interface.name)
    start = f"no route to {destination} leaves by {interface.name} for a socket bound to it"
    current = network.interfaces.get(interface.index)
    if current is None:
        return f"{start}: the interface is gone"
    if not current.up:
        return f"{start}: the interface is down; `ip link set dev {name} up`"
    if not current.running:
        return f"{start}: the interface has no carrier"
    if not any(a.family == family for a in current.addresses):
        return f"{start}: the interface has no IPv{destination.version} address"

    ip = "ip" if family == socket.AF_INET else "ip -6"
    defaults = [r for r in network.routes if r.family == family and r.is_default]
    own = [r for r in defaults if r.interface == interface.index and r.kind is RouteKind.UNICAST]
    ends = [r for r in defaults if r.kind not in (RouteKind.UNICAST, RouteKind.THROW)]
    gateway = gateways.of(interface.index, family)
    via = f"via {gateway if gateway is not None else 'GATEWAY'} "
    route = f"`{ip} route add default {via}dev {name} metric {_METRIC}`"
    if ends:
        why = f"table {_table(ends[0])} ends in `{ends[0].kind} default`"
        table = _table(own[0]) if own else "main"
        rule = f"`{ip} rule add pref {_PREFERENCE} oif {name} lookup {table}`"
        return f"{start} ({why}); add {rule}" if own else f"{start} ({why}); add {route} and {rule}"
    if own:
        # It has a default, in a table that no rule leads such a socket to.
        rule = f"`{ip} rule add pref {_PREFERENCE} oif {name} lookup {_table(own[0])}`"
        return f"{start} (its default route is in table {_table(own[0])}, which no rule leads to); add {rule}"
    tunnel = _tunnel(network, defaults)
    why = (
        f"{tunnel} has taken the default route and left none by {interface.name}"
        if tunnel
        else f"there is no default route by {interface.name}"
    )
    table = f"`{ip} route add default {via}dev {name} table {_PREFERENCE}`"
    rule = f"`{ip} rule add pref {_PREFERENCE} oif {name} lookup {_PREFERENCE}`"
    return f"{start} ({why}); keep one with a high metric: {route}, or one for bound sockets alone: {table} and {rule}"


def _table(route: Route) -> str:
    return "main" if route.table == _MAIN else str(route.table)


def _tunnel(network: Network, defaults: list[Route]) -> str | None:
    for route in defaults:
        interface = network.interfaces.get(route.interface) if route.interface is not None else None
        if interface is not None and interface.kind is InterfaceKind.TUNNEL:
            return interface.name
    return None
