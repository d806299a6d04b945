"""The advice for an administrator when a VPN has left no route for sockets that are bound to an uplink."""

from __future__ import annotations

import shlex
import socket

from bindsock.model.network import Interface, InterfaceKind, IPAddress, Lookup, Network, family_of, unmapped
from bindsock.model.policy import table_name, via_gateway

_PREFERENCE = 100
_METRIC = 9999


def hint(
    network: Network, interface: Interface, destination: IPAddress, gateway: IPAddress | None = None, own: Lookup | None = None
) -> str:
    """One sentence: why there is no route to the destination by the interface, and the command that adds one.

    :param gateway: the gateway by which the interface reaches the Internet, if it is known
    :param own: the route that a socket bound to the interface would have if it had the firewall mark of the VPN's own traffic
    """
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
    default = network.defaults.get((interface.index, family))
    via = via_gateway(gateway, family) if gateway is not None else "via GATEWAY "
    route = f"`{ip} route add default {via}dev {name} metric {_METRIC}`"
    if own is not None or (default is not None and not default.usable):
        why = _obstacle(network, family, default)
        table = table_name(own.route.table) if own is not None else "main"
        rule = f"`{ip} rule add pref {_PREFERENCE} oif {name} lookup {table}`"
        known = own is not None or gateway is not None
        return f"{start} ({why}); add {rule}" if known else f"{start} ({why}); add {route} and {rule}"
    tunnel = _tunnel(network, family)
    why = (
        f"{tunnel} has taken the default route and left none by {interface.name}"
        if tunnel
        else f"there is no default route by {interface.name}"
    )
    table = f"`{ip} route add default {via}dev {name} table {_PREFERENCE}`"
    rule = f"`{ip} rule add pref {_PREFERENCE} oif {name} lookup {_PREFERENCE}`"
    return f"{start} ({why}); keep one with a high metric: {route}, or one for bound sockets alone: {table} and {rule}"


def _obstacle(network: Network, family: socket.AddressFamily, default: Lookup | None) -> str:
    """Why bound sockets do not use the existing default route."""
    if default is not None and not default.usable:
        return f"table {table_name(default.route.table)} ends in `{default.route.kind} default`"
    tunnel, unbound = _tunnel(network, family), network.unbound.get(family)
    if tunnel is None or unbound is None:
        return "policy rules hide its default route"
    return f"table {table_name(unbound.route.table)}, which {tunnel} has, lets nothing past to its default route"


def _tunnel(network: Network, family: socket.AddressFamily) -> str | None:
    interface = network.unbound_interface(family)
    return interface.name if interface is not None and interface.kind is InterfaceKind.TUNNEL else None
