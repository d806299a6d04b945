"""Guesses which VPN program is running, by its policy rules, tables, marks, devices and routes, and how it took the default
route.

The signs are those that the programs document or show: ``tests/vpn/recorded`` has recordings of real programs.
"""

from __future__ import annotations

import fnmatch
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.model.network import FAMILIES, MAIN_TABLE, InterfaceKind, Network, Route, family_name
from bindsock.model.policy import PolicyRule, table_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BY_DEVICE = (
    ("tailscale*", "Tailscale"),
    ("wg?-mullvad", "Mullvad"),
    ("proton*", "Proton VPN"),
    ("pvpn*", "Proton VPN"),
    ("ipv6leakintrf*", "Proton VPN"),
    ("nordlynx", "NordVPN"),
    ("nordtun", "NordVPN"),
    ("CloudflareWARP", "Cloudflare WARP"),
    ("wt[0-9]*", "NetBird"),
    ("zt*", "ZeroTier"),
    ("nebula*", "Nebula"),
    ("n2n*", "n2n"),
    ("edge[0-9]*", "n2n"),
    ("tinc*", "tinc"),
    ("gpd[0-9]*", "GlobalProtect"),
    ("cscotun*", "Cisco AnyConnect"),
    ("outline-tun*", "Outline"),
    ("ipsec[0-9]*", "strongSwan (kernel-libipsec)"),
    ("fastd*", "fastd"),
    ("dns[0-9]*", "iodine"),
)
_UNNAMED = ("tun[0-9]*", "tap[0-9]*", "vpn[0-9]*")
"""The devices of programs that do not give them names of their own."""
_BY_MARK = {
    (0x6D6F6C65, 0xFFFFFFFF): "Mullvad",
    (0x80000, 0xFF0000): "Tailscale",
    (0xE1F1, 0xFFFFFFFF): "NordVPN",
    (0x100CF, 0xFFFFFFFF): "Cloudflare WARP",
    (0x1BD00, 0xFFFFFFFF): "NetBird",
}
_BY_TABLE = {0x6D6F6C65: "Mullvad", 52: "Tailscale", 220: "strongSwan", 205: "NordVPN", 65743: "Cloudflare WARP", 7120: "NetBird"}
_WG_QUICK_TABLES = range(51820, 52820)
_WG_QUICK_PREFERENCES = range(32000, 32766)
"""wg-quick names no preference, so the kernel takes ones right before that of the main table's rule."""
_NM_METRIC = 50
_MOST_BITS = 4
"""Several routes with at most this prefix length replace a default route: 0/1 and 128/1, or ::/3, 2000::/4, 3000::/4 and
fc00::/7."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A program, and the sign of it."""

    program: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who has the default route of a family."""

    family: socket.AddressFamily
    interface: str | None
    """The interface by which packets of an unbound socket leave; ``None`` if there is no route."""
    tunnel: bool
    how: str


def guesses(network: Network, rules: Sequence[PolicyRule], routes: Sequence[Route]) -> tuple[Guess, ...]:
    """The programs whose signs are found, each once."""
    found: dict[str, Guess] = {}
    for guess in (*_by_rules(rules), *_by_devices(network)):
        found.setdefault(guess.program, guess)
    if not found:
        # The shape of routes is the weakest sign, since several programs make the same routes.
        for guess in _by_shape(network, routes):
            found.setdefault(guess.program, guess)
    return tuple(found.values())


def _by_rules(rules: Sequence[PolicyRule]) -> Iterator[Guess]:
    for rule in rules:
        if rule.action != "lookup" or rule.table == MAIN_TABLE:
            continue
        program = _BY_MARK.get((rule.mark or 0, rule.mask)) or _BY_TABLE.get(rule.table)
        if program is None and rule.inverted and rule.mark is not None:
            if rule.table in _WG_QUICK_TABLES and rule.preference in _WG_QUICK_PREFERENCES:
                program = "wg-quick"
            else:
                program = "WireGuard (not wg-quick's own table: NetworkManager, systemd-networkd or by hand)"
        if program is not None:
            yield Guess(program, f"the rule `{rule}`")


def _by_devices(network: Network) -> Iterator[Guess]:
    for interface in network.interfaces.values():
        for pattern, program in _BY_DEVICE:
            if interface.kind in (InterfaceKind.TUNNEL, InterfaceKind.DUMMY) and fnmatch.fnmatchcase(interface.name, pattern):
                yield Guess(program, f"the interface {interface.name}")


def _by_shape(network: Network, routes: Sequence[Route]) -> Iterator[Guess]:
    tunnels = {i.index: i.name for i in network.interfaces.values() if i.kind is InterfaceKind.TUNNEL}
    for route in routes:
        name = tunnels.get(route.interface or 0)
        if name is None or route.table != MAIN_TABLE:
            continue
        if name.startswith("wg"):
            yield Guess("WireGuard", f"the interface {name}")
        elif route.destination.prefixlen == 1 and route.gateway is not None:
            yield Guess("OpenVPN (redirect-gateway def1)", f"{route.destination} by {route.gateway} on {name}")
        elif route.is_default and route.metric == _NM_METRIC:
            yield Guess("NetworkManager", f"a default route with its VPN metric {_NM_METRIC} on {name}")
        elif route.is_default and route.family == socket.AF_INET and any(fnmatch.fnmatchcase(name, p) for p in _UNNAMED):
            how = "OpenVPN (redirect-gateway)" if route.gateway is not None else "openconnect or vpnc"
            yield Guess(how, f"a default route {'by a gateway ' if route.gateway else ''}on {name}")


def ownership(network: Network, rules: Sequence[PolicyRule], routes: Sequence[Route]) -> tuple[Ownership, ...]:
    """Who has the default route, and how, for each family in use."""
    return tuple(
        _owner(network, family, [rule for rule in rules if rule.family == family], [r for r in routes if r.family == family])
        for family in FAMILIES
        if family in network.unbound or any(i.usable_addresses(family) for i in network.interfaces.values())
    )


def _owner(network: Network, family: socket.AddressFamily, rules: Sequence[PolicyRule], routes: Sequence[Route]) -> Ownership:
    lookup, interface = network.unbound.get(family), network.unbound_interface(family)
    if lookup is None or interface is None:
        return Ownership(family, None, False, f"there is no {family_name(family)} default route")
    tunnel = interface.kind is InterfaceKind.TUNNEL
    table = lookup.route.table
    own = [route for route in routes if route.interface == interface.index and route.table == table]
    if table != MAIN_TABLE:
        leads = next((rule for rule in rules if rule.action == "lookup" and rule.table == table), None)
        how = f"table {table_name(table)}" + (f", to which the rule `{leads}` leads" if leads is not None else "")
        if any(route.is_default and route.kind.value != "unicast" for route in routes if route.table == table):
            how += "; the table ends in an unreachable route (a kill switch for IPv4)"
    elif parts := [route for route in own if 0 < route.destination.prefixlen <= _MOST_BITS]:
        how = f"{' and '.join(dict.fromkeys(str(route.destination) for route in parts))}, beside the default route"
    else:
        others = [r for r in routes if r.is_default and r.table == MAIN_TABLE and r.interface not in (None, interface.index)]
        how = "a default route" + (f" with metric {lookup.route.metric}" if others else "")
        if tunnel:
            how += ", better than that of the others" if others else ": it has replaced all others"
    return Ownership(family, interface.name, tunnel, how)
