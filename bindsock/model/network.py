"""One immutable reading of the host's network: interfaces, addresses, routes, and the answers of the kernel.

Nothing here does I/O, asks for the platform or reads a clock. A kernel backend makes a :class:`Network`,
:mod:`bindsock.routing.effective` makes a :class:`Decision` from it, and the other layers compare these values.
"""

from __future__ import annotations

import dataclasses
import enum
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network
Target: TypeAlias = socket.AddressFamily | IPv4Address | IPv6Address
"""The subject of a decision: a family, which means its default route, or a single destination."""

FAMILIES = (socket.AF_INET, socket.AF_INET6)
LIMITED_BROADCAST = IPv4Address("255.255.255.255")
"""The broadcast address of the local link (RFC 919)."""
ADDRESS_BITS = {4: 32, 6: 128}
"""The length of an address in bits, by IP version."""
DEFAULT_TABLE, MAIN_TABLE, LOCAL_TABLE = 253, 254, 255
"""Routing tables of Linux. The ``local`` table has the addresses of this host and the broadcast addresses."""


def family_of(address: IPAddress | IPNetwork) -> socket.AddressFamily:
    """The address family of an address or a prefix."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def family_name(family: socket.AddressFamily) -> str:
    """``IPv4`` or ``IPv6``."""
    return "IPv4" if family == socket.AF_INET else "IPv6"


class InterfaceKind(enum.StrEnum):
    """The kind of an interface.

    What matters most is whether it is a tunnel; the other kinds are only used for ranking. The ``eth0`` of a container is a veth,
    and its kind is ``OTHER``.
    """

    WIRED = "wired"
    WIFI = "wifi"
    CELLULAR = "cellular"
    LOOPBACK = "loopback"
    TUNNEL = "tunnel"
    BRIDGE = "bridge"
    DUMMY = "dummy"
    """It drops all packets. Kill switches and leak protection use such interfaces."""
    OTHER = "other"


class RouteKind(enum.StrEnum):
    """What the kernel does with a packet that matches the route."""

    UNICAST = "unicast"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBIT = "prohibit"
    THROW = "throw"


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface, without scope id."""

    address: IPAddress
    prefix_length: int
    tentative: bool = False
    """Duplicate address detection has not finished, or has failed: the kernel does not use the address."""
    deprecated: bool = False
    temporary: bool = False
    """It is an IPv6 privacy address, which will be replaced."""
    family: socket.AddressFamily = field(init=False, repr=False, compare=False)
    usable: bool = field(init=False, repr=False, compare=False)
    """Whether it can be the source address of a connection beyond the link."""
    number: tuple[int, int] = field(init=False, repr=False, compare=False)
    """Its IP version and the address as a number; of an IPv4-mapped address those of the IPv4 address."""

    def __post_init__(self) -> None:
        # Computed once, because these are read often and ipaddress computes them each time.
        object.__setattr__(self, "number", numbered(self.address))
        object.__setattr__(self, "family", family_of(self.address))
        usable = not (self.tentative or self.address.is_link_local or self.address.is_unspecified)
        object.__setattr__(self, "usable", usable)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface."""

    name: str
    index: int
    kind: InterfaceKind = InterfaceKind.OTHER
    up: bool = True
    """It is administratively up (IFF_UP)."""
    running: bool = True
    """It has carrier (IFF_RUNNING, operstate up or unknown)."""
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu: int = 1500
    delegate: int | None = None
    """The index of the interface that carries this tunnel's traffic (Darwin SIOCGIFDELEGATE). It may be out of date."""
    expensive: bool = False
    constrained: bool = False
    last_resort: bool = False
    """It is only used if there is no other uplink: ``ppp`` may be PPPoE or a VPN, and the system does not tell which."""
    dormant: bool = False
    """It has carrier, but its operational state is not up: a Wi-Fi before the key exchange, a port that still authenticates."""
    alternative_names: tuple[str, ...] = ()
    """Its other names (Linux ``altname``)."""
    _usable: tuple[tuple[IPAddress, ...], tuple[IPAddress, ...]] = field(init=False, repr=False, compare=False)
    """The usable addresses of IPv4 and of IPv6. Computed once, because each decision asks for them several times."""
    _numbers: frozenset[tuple[int, int]] = field(init=False, repr=False, compare=False)
    """Its addresses as numbers. Computed once, because each connect asks for them several times."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", frozenset(own.number for own in self.addresses))
        usable = [(a.address.version, a.address) for a in self.addresses if a.usable]
        found = tuple(tuple(address for version, address in usable if version == wanted) for wanted in (4, 6))
        object.__setattr__(self, "_usable", found)

    def usable_addresses(self, family: socket.AddressFamily) -> tuple[IPAddress, ...]:
        """The addresses of the family that can be the source address of a connection beyond the link."""
        return self._usable[family != socket.AF_INET]

    def called(self, name: str) -> bool:
        """Whether this is its name or one of its alternative names."""
        return name == self.name or name in self.alternative_names

    def has(self, address: IPAddress) -> bool:
        """Whether it has the address. Scope ids are ignored."""
        return numbered(address) in self._numbers

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Route:
    """A route. A multipath route is represented by one route for each next hop."""

    destination: IPNetwork
    interface: int | None
    """The index of the interface; ``None`` if the kind has none."""
    gateway: IPAddress | None = None
    metric: int = 0
    table: int = MAIN_TABLE
    """The Linux routing table; 254 is ``main``."""
    scoped: bool = False
    """Darwin ``RTF_IFSCOPE``: only sockets that are bound to the interface use it."""
    kind: RouteKind = RouteKind.UNICAST
    preference: int = 0
    """The router preference (RFC 4191): 1 high, 0 medium, -1 low."""

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the destination."""
        return family_of(self.destination)

    @property
    def is_default(self) -> bool:
        """Whether it is a default route."""
        return self.destination.prefixlen == 0


@dataclass(frozen=True, slots=True)
class Lookup:
    """The kernel's answer to one route lookup."""

    route: Route
    """The matching entry of the routing tables, with the next hop that the kernel chose."""
    source: IPAddress | None = None
    """The source address that the route names. If the interface has no address, the one that the system chooses."""
    needs_source: IPAddress | None = None
    """The source address with which the kernel had to be asked, if it finds no route without one. A socket must be bound to
    it."""

    @property
    def usable(self) -> bool:
        """Whether packets leave by the route. The kernel also answers with routes that refuse packets."""
        return self.route.kind is RouteKind.UNICAST


@dataclass(frozen=True, slots=True)
class Answers:
    """The kernel's answers about one destination. Equality compares everything."""

    unbound: Lookup | None = None
    """The route of an unbound socket; ``None`` if there is none."""
    by_interface: Mapping[int, Lookup] = field(default_factory=dict)
    """The route of a socket that is bound to an interface, by the index of the interface. Interfaces without a route are left
    out."""
    refusal: Lookup | None = None
    """The route that refuses packets to the destination, if there is one."""


Lookups: TypeAlias = "Callable[[IPAddress], Answers]"
"""Returns the kernel's answers about one destination."""


@dataclass(frozen=True, slots=True)
class Network:
    """One reading of the host's network. Equality compares everything."""

    interfaces: Mapping[int, Interface] = field(default_factory=dict)
    """The interfaces by index."""
    routes: tuple[Route, ...] = ()
    """The routing tables in the system's order, without cloned routes and host routes of neighbours. Empty on Linux, where the
    kernel is asked instead."""
    defaults: Mapping[tuple[int, socket.AddressFamily], Lookup] = field(default_factory=dict)
    """The default route, or routes that act as one, of a socket that is bound to the interface, by index and family. Tunnels are
    included."""
    unbound: Mapping[socket.AddressFamily, Lookup] = field(default_factory=dict)
    """The default route of an unbound socket."""
    tables: Mapping[tuple[socket.AddressFamily, int], int] = field(default_factory=dict)
    """The rank of each routing table by the policy rules that lead to it; the lowest is used first. Empty without rules."""

    @property
    def reachable(self) -> frozenset[tuple[int, socket.AddressFamily]]:
        """The (index, family) pairs with a default route that the system confirms, without tunnels."""
        return frozenset(
            key
            for key, lookup in self.defaults.items()
            if lookup.usable and key[0] in self.interfaces and self.interfaces[key[0]].kind is not InterfaceKind.TUNNEL
        )

    def named(self, name: str) -> Interface | None:
        """The interface of that name, if there is one. Names take precedence over alternative names."""
        found = next((i for i in self.interfaces.values() if i.name == name), None)
        return found or next((i for i in self.interfaces.values() if name in i.alternative_names), None)

    def unbound_interface(self, family: socket.AddressFamily) -> Interface | None:
        """The interface of the default route of an unbound socket, if there is one."""
        lookup = self.unbound.get(family)
        return None if lookup is None or lookup.route.interface is None else self.interfaces.get(lookup.route.interface)

    def owner_of(self, address: IPAddress) -> Interface | None:
        """The interface that has the address, if there is one. Scope ids are ignored."""
        return next((interface for interface in self.interfaces.values() if interface.has(address)), None)


def taken_down(network: Network, down: frozenset[int]) -> Network:
    """The network after these interfaces have gone down; the same object if nothing changes.

    Linux then removes the routes of an interface, and its IPv6 addresses unless ``net.ipv6.conf.*.keep_addr_on_down`` is set.
    """
    without = Network(
        {index: _down(interface) if index in down else interface for index, interface in network.interfaces.items()},
        tuple(route for route in network.routes if route.interface not in down or not _unicast(route)),
        {key: lookup for key, lookup in network.defaults.items() if key[0] not in down},
        {family: lookup for family, lookup in network.unbound.items() if lookup.route.interface not in down},
        network.tables,
    )
    return network if without == network else without


def answers_without(answers: Answers, down: frozenset[int]) -> Answers:
    """The answers after these interfaces have gone down, as far as they are known without asking the kernel."""
    unbound = answers.unbound
    if unbound is not None and unbound.route.interface in down:
        unbound = None
    return Answers(unbound, {i: lookup for i, lookup in answers.by_interface.items() if i not in down}, answers.refusal)


def _unicast(route: Route) -> bool:
    return route.kind is RouteKind.UNICAST


def _down(interface: Interface) -> Interface:
    addresses = tuple(a for a in interface.addresses if a.family == socket.AF_INET)
    return dataclasses.replace(interface, up=False, running=False, addresses=addresses)


def is_address(text: str) -> bool:
    """Whether a text is a numeric address, which needs no lookup."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def without_scope(address: IPAddress) -> IPAddress:
    """The address without its scope id."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return IPv6Address(int(address))
    return address


def is_loopback(address: IPAddress) -> bool:
    """The same as ``address.is_loopback``, but ten times as fast. It is called for every endpoint."""
    number = int(address)
    return number >> 24 == 127 if address.version == 4 else number == 1


def numbered(address: IPAddress) -> tuple[int, int]:
    """The version and the number of an address, which are faster to compare and to hash. For an IPv4-mapped address, those of the
    IPv4 address."""
    version, number = address.version, int(address)
    return (4, number & 0xFFFFFFFF) if version == 6 and number >> 32 == 0xFFFF else (version, number)


def is_multicast(target: Target) -> bool:
    """Whether a target is a multicast address."""
    return not isinstance(target, socket.AddressFamily) and unmapped(target).is_multicast


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 address (``::ffff:192.0.2.1``); any other address unchanged."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
