"""Whether an interface can and may carry anything of a family, whatever the routes say."""

from __future__ import annotations

import enum
import socket
from typing import NamedTuple

from bindsock.model.network import Interface, InterfaceKind, Lookup, family_name
from bindsock.model.preferences import Preferences, exclusion, is_expensive


class Stage(enum.IntEnum):
    """How far an interface came: of two that were refused, the one that came farther was nearer to being taken."""

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
    """Whether what is sent by the interface goes into a tunnel."""
    return interface.kind is InterfaceKind.TUNNEL


def unfit(
    interface: Interface,
    family: socket.AddressFamily,
    preferences: Preferences,
    lookup: Lookup | None = None,
    *,
    on_link: bool = False,
) -> Refusal | None:
    """Why nothing of the family is to be sent by the interface, ``None`` if it may carry it.

    :param lookup: the route that the system confirms for a socket that is bound to the interface
    :param on_link: for a destination on the link itself, for which a link-local address is good enough
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
    refusal = dead(interface, family, lookup, on_link=on_link)
    if refusal is None and preferences.cost == "never" and is_expensive(interface, preferences):
        return Refusal(Stage.EXPENSIVE, "is expensive, and cost is 'never'")
    return refusal


def dead(
    interface: Interface, family: socket.AddressFamily, lookup: Lookup | None = None, *, on_link: bool = False
) -> Refusal | None:
    """Why nothing of the family can be sent by the interface, tunnel or not; ``None`` if it can.

    :param lookup: the route that the system confirms for a socket that is bound to the interface, with the source address of an
        interface that has none of its own
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
    """Whether the route gives a source address, or the interface has a link-local one: good enough for IPv4, while no router
    forwards what comes from an IPv6 one (RFC 4291 2.5.6)."""
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
