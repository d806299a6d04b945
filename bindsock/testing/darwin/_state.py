"""The interfaces and routes of the simulated kernel, and its scoped lookup."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bindsock.model.network import IPAddress, IPNetwork

IPInterface: TypeAlias = IPv4Interface | IPv6Interface


class Hardware(NamedTuple):
    """The answer of SIOCGIFTYPE and the flags of a new interface."""

    family: int
    subfamily: int
    type: int
    flags: int


_BROADCAST = 0x8822
_POINT_TO_POINT = 0x8010

HARDWARE = {
    "loopback": Hardware(abi.IFRTYPE_FAMILY_LOOPBACK, 0, abi.IFT_LOOP, 0x8008),
    "wifi": Hardware(abi.IFRTYPE_FAMILY_ETHERNET, 3, abi.IFT_ETHER, _BROADCAST),
    "wired": Hardware(abi.IFRTYPE_FAMILY_ETHERNET, 0, abi.IFT_ETHER, _BROADCAST),
    "thunderbolt": Hardware(abi.IFRTYPE_FAMILY_ETHERNET, 4, abi.IFT_ETHER, _BROADCAST),
    "bridge": Hardware(abi.IFRTYPE_FAMILY_ETHERNET, 0, abi.IFT_BRIDGE, _BROADCAST),
    "cellular": Hardware(abi.IFRTYPE_FAMILY_CELLULAR, 0, abi.IFT_CELLULAR, _POINT_TO_POINT),
    "ppp": Hardware(abi.IFRTYPE_FAMILY_PPP, 0, abi.IFT_PPP, _POINT_TO_POINT),
    "tunnel": Hardware(abi.IFRTYPE_FAMILY_UTUN, 0, abi.IFT_OTHER, _POINT_TO_POINT),
}
"""The properties of each kind of interface."""


@dataclass(eq=False, slots=True)
class SimulatedInterface:
    """An interface. As in xnu, the object stays after it is detached, since bound sockets still refer to it."""

    name: str
    index: int
    hardware: Hardware
    mtu: int = 1500
    flags: int = 0
    delegate: int = 0
    delegate_hardware: Hardware | None = None
    """The delegate's hardware, copied when the delegate was set; the delegate may be gone (xnu bsd/net/kpi_interface.c)."""
    awdl: bool = False
    expensive: bool = False
    constrained: bool = False
    vpn: bool = False
    addresses: list[IPInterface] = field(default_factory=list)
    tentative: set[IPAddress] = field(default_factory=set)
    protocols: set[int] = field(default_factory=set)
    """The address families that have been attached."""
    attached: bool = True

    @property
    def up(self) -> bool:
        return bool(self.flags & abi.IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & abi.IFF_LOOPBACK)

    @property
    def multi_access(self) -> bool:
        """Whether the link can have several neighbours, unlike a point-to-point link."""
        return not self.flags & (abi.IFF_POINTOPOINT | abi.IFF_LOOPBACK)

    @property
    def functional_type(self) -> int:
        """Its own functional type, or that of its delegate (xnu bsd/net/if.c, if_functional_type)."""
        if self.loopback:
            return abi.IFRTYPE_FUNCTIONAL_LOOPBACK
        for hardware in filter(None, (self.hardware, self.delegate_hardware)):
            if hardware.family == abi.IFRTYPE_FAMILY_ETHERNET and hardware.subfamily == 3:
                return abi.IFRTYPE_FUNCTIONAL_WIFI_AWDL if self.awdl else abi.IFRTYPE_FUNCTIONAL_WIFI_INFRA
            if hardware.type == abi.IFT_CELLULAR:
                return abi.IFRTYPE_FUNCTIONAL_CELLULAR
            if hardware.family == abi.IFRTYPE_FAMILY_ETHERNET:
                return abi.IFRTYPE_FUNCTIONAL_WIRED
        return abi.IFRTYPE_FUNCTIONAL_UNKNOWN

    def of_version(self, version: int) -> list[IPInterface]:
        """Its addresses of an IP version."""
        return [address for address in self.addresses if address.version == version]

    def source(self, version: int, *, link_local: bool = False) -> IPAddress | None:
        """The source address for its packets."""
        candidates = [a.ip for a in self.of_version(version)]
        candidates.sort(key=lambda ip: ip.is_link_local is not link_local)
        return candidates[0] if candidates else None


@dataclass(eq=False, slots=True)
class SimulatedRoute:
    """A route."""

    destination: IPNetwork
    interface: SimulatedInterface
    gateway: IPAddress | None = None
    flags: int = abi.RTF_UP
    source: IPAddress | None = None
    """The source address that it was made with. A static route keeps it even if the interface loses the address."""

    @property
    def scoped(self) -> bool:
        return bool(self.flags & abi.RTF_IFSCOPE)

    @property
    def local(self) -> bool:
        """Whether packets stay in the machine."""
        return self.interface.loopback or bool(self.flags & abi.RTF_LOCAL)

    @property
    def is_default(self) -> bool:
        return self.destination.prefixlen == 0


class State:
    """The interfaces and the routing table."""

    def __init__(self) -> None:
        self.interfaces: dict[int, SimulatedInterface] = {}
        """The attached interfaces, by index."""
        self.routes: list[SimulatedRoute] = []
        self.generation = 0
        """Counts the changes of the routing table, so that sockets can discard cached routes."""

    def named(self, name: str) -> SimulatedInterface:
        """The interface of that name.

        :raises KeyError: there is none
        """
        for interface in self.interfaces.values():
            if interface.name == name:
                return interface
        raise KeyError(name)

    def owner(self, address: IPAddress) -> SimulatedInterface | None:
        """The interface that has the address."""
        for interface in self.interfaces.values():
            if any(own.ip == address for own in interface.addresses):
                return interface
        return None

    def lookup(self, destination: IPAddress, scope: int = 0) -> SimulatedRoute | None:
        """Look up the route to a destination, for a socket that is bound to an interface or unbound.

        As in xnu's bsd/net/route.c, rt_lookup_common: local destinations stay local. Otherwise a bound socket uses its
        interface's scoped routes, and its interface's unscoped routes if they are more specific.
        """
        unscoped = self._best(destination, lambda route: not route.scoped)
        if not scope or (unscoped is not None and unscoped.local):
            return unscoped
        scoped = self._best(destination, lambda route: route.scoped and route.interface.index == scope)
        here = unscoped is not None and unscoped.interface.index == scope
        if here and unscoped is not None and (scoped is None or unscoped.destination.prefixlen > scoped.destination.prefixlen):
            return unscoped
        if scoped is not None:
            return scoped
        default = self.default(destination.version)
        return default if default is not None and default.interface.index == scope else None

    def default(self, version: int, scope: int = 0) -> SimulatedRoute | None:
        """The unscoped default route, or the scoped one of an interface."""
        for route in self.of_version(version):
            if route.is_default and (route.interface.index == scope if route.scoped else not scope):
                return route
        return None

    def of_version(self, version: int) -> Iterator[SimulatedRoute]:
        """The routes of an IP version."""
        return (route for route in self.routes if route.destination.version == version)

    def _best(self, destination: IPAddress, eligible: Callable[[SimulatedRoute], bool]) -> SimulatedRoute | None:
        found = [r for r in self.of_version(destination.version) if destination in r.destination and eligible(r)]
        return max(found, key=lambda route: route.destination.prefixlen, default=None)
