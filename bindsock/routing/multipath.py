"""Decides which interfaces the subflows of a multipath connection may use."""

from __future__ import annotations

from bindsock.model.network import Interface, InterfaceKind, Network
from bindsock.model.subflows import Endpoints


def multipath_obstacle(endpoints: Endpoints, network: Network, chosen: Interface, version: int, pin: str | None) -> str | None:
    """Why the system would add a subflow on a forbidden interface; ``None`` if it would not.

    :param endpoints: the endpoints by which the system adds subflows
    :param chosen: the interface that the connection is bound to
    :param version: the IP version of its addresses, 4 or 6
    :param pin: the name of the interface to which it is pinned
    """
    if any(address.version == version for address in endpoints.unbound):
        return "the system has a multipath endpoint without an interface (ip mptcp endpoint ... dev), which follows the routes"
    for address in endpoints.addresses:
        owner = network.owner_of(address)
        if owner is not None and address.version == version and not may_carry_subflow(owner, chosen, pin):
            return f"the system would add a subflow by {owner.name}, where it has a multipath endpoint"
    if endpoints.follows_peer:
        return "the system connects to addresses that the peer announces, by any route (ip mptcp limits)"
    return None


def may_carry_subflow(interface: Interface, chosen: Interface | None, pin: str | None) -> bool:
    """Whether a subflow may use an interface: only the pinned one, or without a pin any that is not a tunnel, and the chosen
    one."""
    if pin is not None:
        return interface.called(pin)
    return interface.kind is not InterfaceKind.TUNNEL or (chosen is not None and interface.index == chosen.index)
