"""Dumping the routing tables, for people to read. No decision needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.kernel.linux.rtnetlink import routes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import Route


def dump_routes(channel: Channel, families: Sequence[int], table: int | None = None) -> tuple[Route, ...]:
    """The routes in the kernel's order. The kernel filters them by table (strict checking, Linux 4.20).

    :param table: one routing table; all if ``None``
    :raises KernelError: an answer cannot be understood
    :raises OSError: a question is refused
    """
    entries: dict[bytes, routes.ParsedRoute] = {}
    for family in families:
        # A kernel without IPv6 sends the IPv4 routes again.
        for payload in channel.dump(routes.RTM_GETROUTE, routes.dump_request(family, table)):
            parsed = routes.parse_route(payload)
            if parsed is not None and table in (None, parsed.table):
                entries[payload] = parsed
    if all(entry.routes or entry.nexthop_id is None for entry in entries.values()):
        return tuple(route for entry in entries.values() for route in entry.routes)
    # With net.ipv4.nexthop_compat_mode=0 a route only names its nexthop object.
    nexthops = routes.parse_nexthops(channel.dump(routes.RTM_GETNEXTHOP, routes.ALL_NEXTHOPS))
    return tuple(r for entry in entries.values() for r in entry.routes or entry.by(nexthops.get(entry.nexthop_id or 0, ())))
