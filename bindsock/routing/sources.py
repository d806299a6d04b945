"""Which local address a socket has to be bound to before it connects, if any."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from bindsock.model.network import DEFAULT_TABLE, MAIN_TABLE, InterfaceKind

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from bindsock.model.network import Interface, IPAddress, Lookup


def source_of(
    lookup: Lookup, interface: Interface, family: socket.AddressFamily, interfaces: Mapping[int, Interface]
) -> IPAddress | None:
    """The address that a socket has to be bound to before it connects; ``None`` if the system chooses the right one by itself.

    A route for certain sources only needs one of them. An uplink without an address of its own has another interface's. And a
    policy IPsec client puts a virtual address on the uplink, a route in a table of its own that gives it as the source, and a
    policy that takes what has this source into the VPN; with the uplink's own address, the one in the gateway's network, it stays
    out. When the client goes to another uplink the address may still be on the one before, or already on the next.

    :param interfaces: all of them, by their indices
    """
    if lookup.needs_source is not None:
        return lookup.needs_source
    given = lookup.source
    if given is None:
        return None
    if not interface.usable_addresses(family):
        return given
    if lookup.route.table in (MAIN_TABLE, DEFAULT_TABLE) or not _is_virtual(given, interfaces):
        return None
    own = [a for a in interface.addresses if a.family == family and a.usable and not _is_virtual(a.address, interfaces)]
    gateway = lookup.route.gateway
    near = (a for a in own if gateway is not None and gateway in ip_network((a.address, a.prefix_length), strict=False))
    found = next(near, None) or next(iter(own), None)
    return found.address if found is not None else None


def _is_virtual(address: IPAddress, interfaces: Mapping[int, Interface]) -> bool:
    """Whether an interface has the address without a network around it. On the loopback it is an address of the whole host."""
    return any(
        a.address == address and a.prefix_length == address.max_prefixlen
        for interface in interfaces.values()
        if interface.kind is not InterfaceKind.LOOPBACK
        for a in interface.addresses
    )
