"""Finding an interface's gateway when it has no default route.

A VPN that replaces the default route removes the gateway's address with it. Other places still name it: the last reading, a
default route in another table, the host route to the VPN's own server, the DHCP lease, and, for IPv6, the neighbour table, which
marks routers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bindsock.kernel.linux.rtnetlink import neighbours
from bindsock.kernel.linux.rtnetlink.dump import dump_routes
from bindsock.model.network import Interface, IPAddress, Network, Route
from bindsock.model.policy import Gateway, is_repair_table, table_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bindsock.kernel.linux.netlink import Channel

_MOST_NOTED = 8
"""How many readings are kept at most to learn from later."""


class Gateways:
    """The known gateways.

    :param root: the root directory of the file system that has the leases
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._last: dict[tuple[int, socket.AddressFamily], tuple[IPAddress, frozenset[IPAddress]]] = {}
        self._noted: list[Network] = []

    def note(self, network: Network, *, later: bool = False) -> None:
        """Learn from a reading. An interface's gateway is forgotten when the interface is gone or joins another network.

        :param later: only with one of the next readings, or when a gateway is asked for, since a socket waits to be moved
        """
        self._noted.append(network)
        if not later or len(self._noted) >= _MOST_NOTED:
            self._learn()

    def _learn(self) -> None:
        noted, self._noted = self._noted, []
        for network in noted:
            self._learn_from(network)

    def _learn_from(self, network: Network) -> None:
        for key in list(self._last):
            interface = network.interfaces.get(key[0])
            own = interface.usable_addresses(key[1]) if interface is not None else ()
            if interface is None or (own and self._last[key][1].isdisjoint(own)):
                del self._last[key]
        for key, lookup in network.defaults.items():
            if lookup.usable and lookup.route.gateway is not None and not is_repair_table(lookup.route.table):
                self._last[key] = lookup.route.gateway, frozenset(network.interfaces[key[0]].usable_addresses(key[1]))

    def last(self, index: int, family: socket.AddressFamily) -> IPAddress | None:
        """The gateway of the last default route that a reading had for the interface."""
        self._learn()
        known = self._last.get((index, family))
        return known[0] if known is not None else None

    def find(self, channel: Channel, interface: Interface, family: socket.AddressFamily) -> Gateway | None:
        """The gateway by which the interface reaches the Internet; ``None`` if nothing names one. Sends nothing.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        last = self.last(interface.index, family)
        if last is not None:
            return Gateway(last, "its last default route")
        routes = [
            route
            for route in dump_routes(channel, (family,))
            if route.interface == interface.index and not is_repair_table(route.table)
        ]
        found = named_by_routes(routes)
        if found is None and family == socket.AF_INET:
            found = named_by_lease(interface, self._root)
        if found is None and family == socket.AF_INET6:
            routers = neighbours.routers(channel, interface.index)
            found = Gateway(routers[0], "the neighbour table") if len(routers) == 1 else None
        return found


def named_by_routes(routes: Iterable[Route]) -> Gateway | None:
    """The gateway named by an interface's default route, or by its routes to single hosts, such as a VPN's server.

    Routes to networks do not count, since a network may have its own router. Host routes count only if all name one gateway.
    """
    hosts: Counter[IPAddress] = Counter()
    for route in routes:
        if route.gateway is None:
            continue
        if route.is_default:
            return Gateway(route.gateway, f"the default route in table {table_name(route.table)}")
        if route.destination.prefixlen == route.destination.max_prefixlen:
            hosts[route.gateway] += 1
    if len(hosts) == 1:
        return Gateway(next(iter(hosts)), "a route to a single host, such as the VPN's server")
    return None


_DHCLIENT_LEASE = re.compile(r"^lease\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_DHCLIENT_OPTION = re.compile(r'^\s*(interface|fixed-address|option routers)\s+"?([^";,]+)', re.MULTILINE)
_VARIABLE = re.compile(r"^(ADDRESS|ROUTER)=(\S+)", re.MULTILINE)
_DHCP_COOKIE = b"\x63\x82\x53\x63"
_DHCP_OPTIONS = 240
_DHCP_ROUTER = 3
_LARGEST_LEASE = 1 << 20


def named_by_lease(interface: Interface, root: Path = Path("/")) -> Gateway | None:
    """The router in the newest DHCP lease on disk for an address that the interface has."""
    for program, address, router in _leases(interface, root):
        if interface.has(address) and not router.is_unspecified:
            return Gateway(router, f"a lease of {program}")
    return None


def _leases(interface: Interface, root: Path) -> Iterator[tuple[str, IPAddress, IPAddress]]:
    """Program, address and router of the leases, the newest first. Leases that cannot be read or parsed are skipped."""
    name = interface.name
    for program, pattern in (
        ("systemd-networkd", f"run/systemd/netif/leases/{interface.index}"),
        ("NetworkManager", f"var/lib/NetworkManager/internal-*-{_literal(name)}.lease"),
    ):
        for data in _contents(root, pattern):
            found = dict(_VARIABLE.findall(data.decode("utf-8", "replace")))
            yield from _pair(program, found.get("ADDRESS"), found.get("ROUTER"))
    for program, pattern in (
        ("dhclient", "var/lib/dhcp/dhclient*.leases"),
        ("dhclient", f"var/lib/NetworkManager/dhclient-*-{_literal(name)}.lease"),
    ):
        for data in _contents(root, pattern):
            for lease in reversed(_DHCLIENT_LEASE.findall(data.decode("utf-8", "replace"))):
                option = dict(_DHCLIENT_OPTION.findall(lease))
                if option.get("interface", name) == name:
                    yield from _pair(program, option.get("fixed-address"), option.get("option routers"))
    for pattern in (f"var/lib/dhcpcd/{_literal(name)}.lease", f"var/lib/dhcpcd/{_literal(name)}-*.lease"):
        for data in _contents(root, pattern):
            yield from _packet("dhcpcd", data)


def _literal(name: str) -> str:
    """The name, escaped for a glob pattern."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _contents(root: Path, pattern: str) -> Iterator[bytes]:
    """The contents of the files that match, the newest file first."""
    dated = []
    for path in root.glob(pattern):
        try:
            dated.append((path.stat().st_mtime, str(path)))
        except OSError:
            continue
    for _, name in sorted(dated, reverse=True):
        try:
            with open(name, "rb") as file:
                yield file.read(_LARGEST_LEASE)
        except OSError:
            continue


def _pair(program: str, address: str | None, routers: str | None) -> Iterator[tuple[str, IPAddress, IPAddress]]:
    if address is None or routers is None:
        return
    try:
        yield program, ipaddress.ip_address(address.strip()), ipaddress.ip_address(routers.split()[0].strip())
    except (ValueError, IndexError):
        return


def _packet(program: str, data: bytes) -> Iterator[tuple[str, IPAddress, IPAddress]]:
    """A lease stored as the DHCPACK packet itself (RFC 2131 figure 1, RFC 2132)."""
    if len(data) < _DHCP_OPTIONS or data[_DHCP_OPTIONS - 4 : _DHCP_OPTIONS] != _DHCP_COOKIE:
        return
    offset = _DHCP_OPTIONS
    while offset + 1 < len(data) and data[offset] != 255:
        if data[offset] == 0:
            offset += 1
            continue
        value = data[offset + 2 : offset + 2 + data[offset + 1]]
        if data[offset] == _DHCP_ROUTER and len(value) >= 4:
            yield program, ipaddress.IPv4Address(data[16:20]), ipaddress.IPv4Address(value[:4])
            return
        offset += 2 + data[offset + 1]
