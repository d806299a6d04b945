"""Formats routes for people, and selects those that match a destination."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bindsock.model.network import MAIN_TABLE, RouteKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bindsock.model.network import Network, Route, Target

_STANDS_FOR_DEFAULT = {socket.AF_INET: 1, socket.AF_INET6: 3}
"""The longest prefix of a route that replaces a default route: ``0/1``, ``2000::/3``."""


def matching(routes: Iterable[Route], target: Target) -> list[Route]:
    """The routes that match a destination, or the default routes of a family; the longest prefix first."""

    def matches(route: Route) -> bool:
        if isinstance(target, socket.AddressFamily):
            return route.family == target and route.destination.prefixlen <= _STANDS_FOR_DEFAULT[target]
        return route.destination.version == target.version and target in route.destination

    return sorted(filter(matches, routes), key=lambda route: (-route.destination.prefixlen, route.table, route.metric))


def line(route: Route, network: Network) -> str:
    """A route as ``ip route`` prints it."""
    interface = network.interfaces.get(route.interface) if route.interface is not None else None
    parts = [] if route.kind is RouteKind.UNICAST else [str(route.kind)]
    parts.append("default" if route.is_default else str(route.destination))
    if route.gateway is not None:
        parts.append(f"via {route.gateway}")
    if interface is not None:
        parts.append(f"dev {interface.name}")
    if route.metric:
        parts.append(f"metric {route.metric}")
    if route.table != MAIN_TABLE:
        parts.append(f"table {route.table}")
    if route.scoped:
        parts.append("scoped")
    return " ".join(parts)
