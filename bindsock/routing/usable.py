"""Decides whether an interface can and may carry traffic of a family, regardless of the routes."""

from __future__ import annotations

import enum
import socket
from typing import NamedTuple

from bindsock.model.network import Interface, InterfaceKind, Lookup, family_name
from bindsock.model.preferences import Preferences, exclusion, is_expensive


class Stage(enum.IntEnum):
    """The check at which an interface was refused. A later stage means that it was closer to being taken."""

    LOOPBACK = enum.auto()
    DUMMY = enum.auto()
    TUNNEL = enum.auto()
    EXCLUDED = enum.auto()
    DOWN = enum.auto()
    NO_CARRIER = enum.auto()
    NO_ADDRESS = enum.auto()
    NO_DEFAULT = enum.auto()
    UNCONFIRMED = enum.auto()
    EXPENSIVE = enum.auto()


class Refusal(NamedTuple):
    """Why an interface is not usable."""

    stage: Stage
    reason: str


def is_tunnel(interface: Interface) -> bool:
    """Whether the interface is a tunnel."""
    return interface.kind is InterfaceKind.TUNNEL


def why_unusable(
    interface: Interface,
    family: socket.AddressFamily,
    preferences: Preferences,
    lookup: Lookup | None = None,
    *,
    on_link: bool = False,
) -> Refusal | None:
    """Why the interface must not carry traffic of the family; ``None`` if it may.

    :param lookup: the route that the system confirms for a socket that is bound to the interface
    :param on_link: the destination is on the link itself, so a link-local address is enough
    """
    if interface.kind is InterfaceKind.LOOPBACK:
        return Refusal(Stage.LOOPBACK, "is the loopback")
    if interface.kind is InterfaceKind.DUMMY:
        return Refusal(Stage.DUMMY, "carries nothing (a dummy device)")
    if is_tunnel(interface):
        return Refusal(Stage.TUNNEL, "is a tunnel")
    excluded = exclusion(interface, preferences)
    if excluded is not None:
        return Refusal(Stage.EXCLUDED, excluded)
    refusal = why_dead(interface, family, lookup, on_link=on_link)
    if refusal is None and preferences.cost == "never" and is_expensive(interface, preferences):
        return Refusal(Stage.EXPENSIVE, "is expensive, and cost is 'never'")
    return refusal


def why_dead(
    interface: Interface, family: socket.AddressFamily, lookup: Lookup | None = None, *, on_link: bool = False
) -> Refusal | None:
    """Why the interface cannot carry traffic of the family, be it a tunnel or not; ``None`` if it can.

    :param lookup: the route that the system confirms for a socket that is bound to the interface. It may have a source address
        for an interface without an address
    :param on_link: the destination is on the link itself, so a link-local address is enough
    """
    if not interface.up:
        return Refusal(Stage.DOWN, "is down")
    if not interface.running:
        return Refusal(Stage.NO_CARRIER, "has no carrier")
    if interface.usable_addresses(family):
        return None
    if on_link and any(a.family == family and not a.tentative for a in interface.addresses):
        return None
    if lookup is not None and lookup.usable and _has_source(interface, family, lookup):
        return None
    return Refusal(Stage.NO_ADDRESS, _no_address(interface, family))


def _has_source(interface: Interface, family: socket.AddressFamily, lookup: Lookup) -> bool:
    """Whether the route names a source address, or the interface has a link-local IPv4 address.

    A link-local IPv6 address is not enough, because no router forwards packets from it (RFC 4291 2.5.6).
    """
    if lookup.source is not None or lookup.needs_source is not None:
        return True
    return family == socket.AF_INET and any(a.family == family and not a.tentative for a in interface.addresses)


def _no_address(interface: Interface, family: socket.AddressFamily) -> str:
    addresses = [a for a in interface.addresses if a.family == family]
    if not addresses:
        return f"has no {family_name(family)} address"
    if all(a.address.is_link_local for a in addresses):
        return f"has no usable {family_name(family)} address (link-local only)"
    if any(a.tentative for a in addresses):
        return f"has no usable {family_name(family)} address yet (tentative)"
    return f"has no usable {family_name(family)} address"
