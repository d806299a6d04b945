"""Decides to which local address a socket must be bound before it connects, if any."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import TYPE_CHECKING

from bindsock.model.network import DEFAULT_TABLE, MAIN_TABLE, InterfaceKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bindsock.model.network import Interface, IPAddress, Lookup


def source_of(
    lookup: Lookup, interface: Interface, family: socket.AddressFamily, interfaces: Mapping[int, Interface]
) -> IPAddress | None:
    """The address to bind a socket to before it connects; ``None`` if the system chooses the right one by itself.

    There are four cases. A route may be for certain source addresses only. An uplink without an address uses the address of
    another interface. If all IPv6 addresses of the uplink are deprecated, the system would choose one of another interface (RFC
    6724 section 5, rules 3 and 5). And a policy IPsec client adds a virtual address to the uplink, a route in its own table that
    names this address as the source, and a policy that takes packets with this source into the VPN. There, the uplink's own
    address, which lies in the network of the gateway, bypasses the VPN. When the client moves to another uplink, the virtual
    address may still be on the old one, or already on the new one.

    :param interfaces: all interfaces, by index
    """
    if lookup.needs_source is not None:
        return lookup.needs_source
    given = lookup.source
    if given is None:
        return _deprecated(interface, interfaces) if family == socket.AF_INET6 else None
    if not interface.usable_addresses(family):
        return given
    if lookup.route.table in (MAIN_TABLE, DEFAULT_TABLE) or not _is_virtual(given, interfaces):
        return None
    own = [a for a in interface.addresses if a.family == family and a.usable and not _is_virtual(a.address, interfaces)]
    gateway = lookup.route.gateway
    near = (a for a in own if gateway is not None and gateway in ip_network((a.address, a.prefix_length), strict=False))
    found = next(near, None) or next(iter(own), None)
    return found.address if found is not None else None


def _deprecated(interface: Interface, interfaces: Mapping[int, Interface]) -> IPAddress | None:
    """The first IPv6 address of the interface if all of them are deprecated, and another interface has one that is not."""
    own = [a for a in interface.addresses if a.family == socket.AF_INET6 and a.usable]
    if not own or not all(a.deprecated for a in own):
        return None
    others = (a for i in interfaces.values() if i.up and i is not interface for a in i.addresses)
    preferred = any(a.family == socket.AF_INET6 and a.usable and not a.deprecated and not a.address.is_loopback for a in others)
    return own[0].address if preferred else None


def _is_virtual(address: IPAddress, interfaces: Mapping[int, Interface]) -> bool:
    """Whether an interface has the address as a single host address (/32 or /128). The loopback does not count."""
    return any(
        a.address == address and a.prefix_length == address.max_prefixlen
        for interface in interfaces.values()
        if interface.kind is not InterfaceKind.LOOPBACK
        for a in interface.addresses
    )
