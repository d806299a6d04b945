"""The vocabulary: one immutable reading of the machine's network, and what is decided from it.

Nothing here does I/O, asks the platform or reads a clock. A kernel backend makes a :class:`Network`,
:mod:`bindsock.routing.effective` makes a :class:`Decision` from it, and everything above compares those values.
"""

from __future__ import annotations

import dataclasses
import enum
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network
Target: TypeAlias = socket.AddressFamily | IPv4Address | IPv6Address
"""What a decision is asked for: a family (its default route) or one destination."""

FAMILIES = (socket.AF_INET, socket.AF_INET6)
LIMITED_BROADCAST = IPv4Address("255.255.255.255")
"""Everybody on the link (RFC 919)."""
ADDRESS_BITS = {4: 32, 6: 128}
"""The length of an address by its version."""
DEFAULT_TABLE, MAIN_TABLE, LOCAL_TABLE = 253, 254, 255
"""Routing tables of Linux. What is this host, and what all on a link are, is in ``local``."""


def family_of(address: IPAddress | IPNetwork) -> socket.AddressFamily:
    """The address family of an address or a prefix."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def family_name(family: socket.AddressFamily) -> str:
    """``IPv4`` or ``IPv6``."""
    return "IPv4" if family == socket.AF_INET else "IPv6"


class InterfaceKind(enum.StrEnum):
    """What an interface is to a program that wants to leave by it.

    The one question that matters is *tunnel or not*; the rest only ranks. A container's ``eth0`` is a veth and is ``OTHER``.
    """

    WIRED = "wired"
    WIFI = "wifi"
    CELLULAR = "cellular"
    LOOPBACK = "loopback"
    TUNNEL = "tunnel"
    BRIDGE = "bridge"
    DUMMY = "dummy"
    """What it is given goes nowhere: kill switches and leak protection are made of such."""
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
    """Duplicate address detection has not finished, or has failed: the kernel will not use it."""
    deprecated: bool = False
    temporary: bool = False
    """An IPv6 privacy address: it will rotate away."""
    family: socket.AddressFamily = field(init=False, repr=False, compare=False)
    usable: bool = field(init=False, repr=False, compare=False)
    """Whether a connection beyond the link can have it as its source."""

    def __post_init__(self) -> None:
        # Asked for again and again, and ipaddress works it out anew each time.
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
    """Administratively up (IFF_UP)."""
    running: bool = True
    """It has carrier (IFF_RUNNING, operstate up or unknown)."""
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu: int = 1500
    delegate: int | None = None
    """Index of the interface that this one is delegated to (Darwin SIOCGIFDELEGATE), a hint that goes stale."""
    expensive: bool = False
    constrained: bool = False
    last_resort: bool = False
    """An uplink only where there is no other: ``ppp`` may be PPPoE or a VPN, nothing tells which."""
    dormant: bool = False
    """It has carrier, but its operational state is not up: Wi-Fi before its key exchange, a port that still authenticates."""
    alternative_names: tuple[str, ...] = ()
    """Other names by which the system knows it (Linux ``altname``)."""

    def usable_addresses(self, family: socket.AddressFamily) -> tuple[IPAddress, ...]:
        """The addresses of the family that a connection beyond the link can have as its source."""
        return tuple(a.address for a in self.addresses if a.family == family and a.usable)

    def called(self, name: str) -> bool:
        """Whether that is its name, or one of its alternative names."""
        return name == self.name or name in self.alternative_names

    def has(self, address: IPAddress) -> bool:
        """Whether it has the address, without regard to a scope id."""
        plain = without_scope(address)
        return plain in [own.address for own in self.addresses]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Route:
    """A route; one of several next hops is a route of its own."""

    destination: IPNetwork
    interface: int | None
    """Index of the interface, ``None`` where the kind has none."""
    gateway: IPAddress | None = None
    metric: int = 0
    table: int = MAIN_TABLE
    """Linux routing table; 254 is ``main``."""
    scoped: bool = False
    """Darwin ``RTF_IFSCOPE``: only sockets bound to the interface see it."""
    kind: RouteKind = RouteKind.UNICAST
    preference: int = 0
    """A router's preference (RFC 4191): 1 high, 0 medium, -1 low."""

    @property
    def family(self) -> socket.AddressFamily:
        return family_of(self.destination)

    @property
    def is_default(self) -> bool:
        return self.destination.prefixlen == 0


@dataclass(frozen=True, slots=True)
class Lookup:
    """The system's answer to one question for a route."""

    route: Route
    """The entry of the routing tables that decides, by the next hop that it leads to."""
    source: IPAddress | None = None
    """The source address that the route names; of an interface without an address of its own the one that the system chooses."""
    needs_source: IPAddress | None = None
    """The address that the question had to carry: without it there is no route, so that a socket has to be bound to it first."""

    @property
    def usable(self) -> bool:
        """Whether it leads somewhere: a route that refuses what it matches is an answer, too."""
        return self.route.kind is RouteKind.UNICAST


@dataclass(frozen=True, slots=True)
class Answers:
    """What the system says about one destination. Equality compares everything."""

    unbound: Lookup | None = None
    """The way of a socket that is bound to nothing; ``None`` if there is no route."""
    by_interface: Mapping[int, Lookup] = field(default_factory=dict)
    """The way of a socket that is bound to the interface, by index; an interface by which there is no route is not in it."""
    refusal: Lookup | None = None
    """A route that refuses what goes there, if one is in the way."""


Lookups: TypeAlias = "Callable[[IPAddress], Answers]"
"""Answers the question for one destination."""


@dataclass(frozen=True, slots=True)
class Network:
    """One reading of the machine's network. Equality compares everything."""

    interfaces: Mapping[int, Interface] = field(default_factory=dict)
    """By index."""
    routes: tuple[Route, ...] = ()
    """The routing tables where a reading has them, in the system's order, without cloned and neighbour host routes.
    Linux is asked instead."""
    defaults: Mapping[tuple[int, socket.AddressFamily], Lookup] = field(default_factory=dict)
    """The default route, or what stands for it, of a socket that is bound to the interface, by index and family; tunnels have
    one, too."""
    unbound: Mapping[socket.AddressFamily, Lookup] = field(default_factory=dict)
    """The default route of a socket that is bound to nothing."""
    tables: Mapping[tuple[socket.AddressFamily, int], int] = field(default_factory=dict)
    """The order in which policy rules lead to the routing tables, the first one least; empty where there are no rules."""

    @property
    def reachable(self) -> frozenset[tuple[int, socket.AddressFamily]]:
        """The (index, family) pairs by which the system confirms a default route, tunnels aside."""
        return frozenset(
            key
            for key, lookup in self.defaults.items()
            if lookup.usable and key[0] in self.interfaces and self.interfaces[key[0]].kind is not InterfaceKind.TUNNEL
        )

    def named(self, name: str) -> Interface | None:
        """The interface of that name, if there is one now; an alternative name counts where it is nobody's own."""
        found = next((i for i in self.interfaces.values() if i.name == name), None)
        return found or next((i for i in self.interfaces.values() if name in i.alternative_names), None)

    def unbound_interface(self, family: socket.AddressFamily) -> Interface | None:
        """The interface of the default route of a socket that is bound to nothing, if it has one."""
        lookup = self.unbound.get(family)
        return None if lookup is None or lookup.route.interface is None else self.interfaces.get(lookup.route.interface)

    def owner_of(self, address: IPAddress) -> Interface | None:
        """The interface that has the address (without regard to a scope id), if one has."""
        return next((interface for interface in self.interfaces.values() if interface.has(address)), None)


def taken_down(network: Network, down: frozenset[int]) -> Network:
    """The network once these interfaces have gone down; the same object if nothing goes with them.

    That is without what Linux takes away with an interface: its routes, and its IPv6 addresses unless
    ``net.ipv6.conf.*.keep_addr_on_down`` is set.
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
    """The answers once these interfaces have gone down, as far as that can be known without asking."""
    unbound = answers.unbound
    if unbound is not None and unbound.route.interface in down:
        unbound = None
    return Answers(unbound, {i: lookup for i, lookup in answers.by_interface.items() if i not in down}, answers.refusal)


def _unicast(route: Route) -> bool:
    return route.kind is RouteKind.UNICAST


def _down(interface: Interface) -> Interface:
    addresses = tuple(a for a in interface.addresses if a.family == socket.AF_INET)
    return dataclasses.replace(interface, up=False, running=False, addresses=addresses)


def without_scope(address: IPAddress) -> IPAddress:
    """The address without its scope id."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return IPv6Address(int(address))
    return address


def is_loopback(address: IPAddress) -> bool:
    """As ``address.is_loopback``, which takes ten times as long and is asked of each endpoint's address."""
    number = int(address)
    return number >> 24 == 127 if address.version == 4 else number == 1


def is_multicast(target: Target) -> bool:
    """Whether a target is a multicast address, and not a family or another address."""
    return not isinstance(target, socket.AddressFamily) and unmapped(target).is_multicast


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 one (``::ffff:192.0.2.1``), any other address as it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
