"""Decides which repairs to add and which to remove: a pure function.

A family needs repair if a tunnel has its default route and no usable uplink has one. Then each of these uplinks gets a default
route in its own table, which only sockets bound to the uplink use. It keeps it as long as the tunnel has the default route, even
if another uplink gets one. Firewall rules stay untouched, and no mark is set: packets that a firewall drops are still dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bindsock.model.network import FAMILIES, InterfaceKind, family_name
from bindsock.model.policy import Repair, is_repair_table
from bindsock.routing.usable import why_dead, why_unusable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from bindsock.model.network import Interface, Network
    from bindsock.model.policy import Gateway
    from bindsock.model.preferences import Preferences

    GatewayOf: TypeAlias = Callable[[Interface, socket.AddressFamily], Gateway | None]


@dataclass(frozen=True, slots=True)
class Impossible:
    """An uplink without a default route that cannot be repaired."""

    family: socket.AddressFamily
    interface: str

    def __str__(self) -> str:
        return (
            f"the {family_name(self.family)} gateway of {self.interface} is unknown: it is in no earlier reading, route, DHCP "
            "lease or neighbour entry"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The repairs to remove first, and then those to add."""

    remove: tuple[Repair, ...] = ()
    make: tuple[Repair, ...] = ()
    impossible: tuple[Impossible, ...] = ()


def plan(
    network: Network,
    preferences: Preferences,
    existing: Sequence[Repair],
    gateway_of: GatewayOf,
    *,
    interface: str | None = None,
    families: Sequence[socket.AddressFamily] = FAMILIES,
) -> Plan:
    """Decide which repairs to add and to remove.

    :param network: a reading of the network, with the existing repairs
    :param preferences: an excluded interface gets no repair, but keeps an existing one
    :param existing: the existing repairs
    :param gateway_of: returns the gateway of an interface; ``None`` if it is unknown
    :param interface: the name of the only interface to use; repairs of others are left alone
    :param families: the address families to repair
    """
    pinned = network.named(interface) if interface is not None else None
    only = pinned.name if pinned is not None else interface
    remove: list[Repair] = []
    make: list[Repair] = []
    impossible: list[Impossible] = []
    for family in families:
        ours = [repair for repair in existing if repair.family == family and only in (None, repair.interface)]
        usable = [i for i in network.interfaces.values() if why_unusable(i, family, preferences) is None]
        uplinks = [uplink for uplink in usable if only in (None, uplink.name)]
        if not _tunnel_is_default(network, family):
            remove += ours
            continue
        served = any(_has_own_default(network, uplink, family) for uplink in uplinks)
        stays, renewed = set(), set()
        for repair in ours:
            device = network.interfaces.get(repair.index)
            if (
                device is None
                or device.name != repair.interface
                or why_dead(device, family) is not None
                or _has_own_default(network, device, family)
            ):
                remove.append(repair)
                continue
            known = gateway_of(device, family)
            if known is not None and known.address != repair.gateway.address:
                remove.append(repair)
                renewed.add(repair.index)
            else:
                stays.add(repair.index)
        for uplink in uplinks:
            if uplink.index in stays or (served and uplink.index not in renewed):
                continue
            gateway = gateway_of(uplink, family)
            if gateway is None:
                impossible.append(Impossible(family, uplink.name))
            else:
                make.append(Repair(family, uplink.name, uplink.index, gateway))
    return Plan(tuple(remove), tuple(make), tuple(impossible))


def _tunnel_is_default(network: Network, family: socket.AddressFamily) -> bool:
    """Whether a tunnel has the default route."""
    interface = network.unbound_interface(family)
    return interface is not None and interface.kind is InterfaceKind.TUNNEL


def _has_own_default(network: Network, interface: Interface, family: socket.AddressFamily) -> bool:
    """Whether the interface has a default route that is not a repair."""
    lookup = network.defaults.get((interface.index, family))
    return lookup is not None and lookup.usable and not is_repair_table(lookup.route.table)
