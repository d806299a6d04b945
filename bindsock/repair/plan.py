"""What has to be repaired, and which repairs have to go: the pure decision.

A family is repaired where a tunnel has its default route and no uplink that may be used has one left. Then each of these uplinks
gets one, in a table that only sockets bound to it are led to. What a firewall drops stays dropped: no mark is set, and no rule of
a firewall is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bindsock.model.network import FAMILIES, InterfaceKind, family_name
from bindsock.model.policy import Repair, is_repair_table
from bindsock.routing.usable import dead, unfit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from bindsock.model.network import Interface, Network
    from bindsock.model.policy import Gateway
    from bindsock.model.preferences import Preferences

    GatewayOf: TypeAlias = Callable[[Interface, socket.AddressFamily], Gateway | None]


@dataclass(frozen=True, slots=True)
class Impossible:
    """An uplink that lacks a route which cannot be made."""

    family: socket.AddressFamily
    interface: str

    def __str__(self) -> str:
        return (
            f"the gateway of {self.interface} for {family_name(self.family)} is not known: no earlier reading, route, DHCP lease "
            "or neighbour names it"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: remove, then make."""

    remove: tuple[Repair, ...] = ()
    make: tuple[Repair, ...] = ()
    impossible: tuple[Impossible, ...] = ()


def plan(network: Network, preferences: Preferences, standing: Sequence[Repair], gateway_of: GatewayOf) -> Plan:
    """What is to be done.

    :param network: a reading, in which what stands shows
    :param preferences: an interface that they exclude gets nothing; one that somebody has repaired keeps it
    :param standing: the repairs that there are
    :param gateway_of: the gateway of an interface, ``None`` if nothing names one
    """
    remove: list[Repair] = []
    make: list[Repair] = []
    impossible: list[Impossible] = []
    for family in FAMILIES:
        ours = [repair for repair in standing if repair.family == family]
        uplinks = [i for i in network.interfaces.values() if unfit(i, family, preferences) is None]
        if not _taken(network, family) or any(_served(network, uplink, family) for uplink in uplinks):
            remove += ours
            continue
        stays = set()
        for repair in ours:
            interface = network.interfaces.get(repair.index)
            fits = interface is not None and interface.name == repair.interface and dead(interface, family) is None
            known = gateway_of(interface, family) if interface is not None and fits else None
            if not fits or (known is not None and known.address != repair.gateway.address):
                remove.append(repair)
            else:
                stays.add(repair.index)
        for uplink in uplinks:
            if uplink.index in stays:
                continue
            gateway = gateway_of(uplink, family)
            if gateway is None:
                impossible.append(Impossible(family, uplink.name))
            else:
                make.append(Repair(family, uplink.name, uplink.index, gateway))
    return Plan(tuple(remove), tuple(make), tuple(impossible))


def _taken(network: Network, family: socket.AddressFamily) -> bool:
    """Whether a tunnel has the default route."""
    interface = network.unbound_interface(family)
    return interface is not None and interface.kind is InterfaceKind.TUNNEL


def _served(network: Network, interface: Interface, family: socket.AddressFamily) -> bool:
    """Whether it has a default route that is not a repair's."""
    lookup = network.defaults.get((interface.index, family))
    return lookup is not None and lookup.usable and not is_repair_table(lookup.route.table)
