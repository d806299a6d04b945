"""The laboratory's addresses, and its model of an uplink.

::

    host ── wifi0, eth0, ... ── router ── server
      └──── tun0 ═══════════════ (vpn) ─────┘
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NAMESPACES = ("host", "router", "server", "vpn")
DEFAULTS = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
BEST_METRIC = 100
"""The metric of the uplink that was made the default; a VPN's is even better."""

Family = socket.AddressFamily
UplinkKind = Literal["ethernet", "shared", "point-to-point", "macvlan", "ipv6-only"]
"""The kind of an uplink.

* ``ethernet``: a network of its own, with a gateway
* ``shared``: in the network of the first uplink, with another address and the same gateway, like Wi-Fi and a cable at home
* ``point-to-point``: like PPP: only its address, no gateway and no neighbours
* ``macvlan``: an interface on top of another, which has no address; its name ends with ``-base``
* ``ipv6-only``: it has no IPv4
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The echo server.

    Over UDP it replies with ``b"<source address> <source port> "`` and the datagram. Over TCP and TLS it sends a line
    ``hello <source address> <source port>``, then echoes.
    """

    ipv4: str = "10.9.0.10"
    ipv6: str = "fd10:9::10"
    udp_port: int = 7007
    tcp_port: int = 7001
    tls_port: int = 7443
    name: str = "server.lab.test"
    """The name in the TLS certificate, which also has the addresses. No name server knows it."""

    def address(self, family: Family = socket.AF_INET) -> str:
        return self.ipv4 if family == socket.AF_INET else self.ipv6


@dataclass(slots=True)
class Uplink:
    """An uplink, as the laboratory's network manager knows it."""

    name: str
    number: int
    metric: int
    kind: UplinkKind = "ethernet"
    network_number: int = 0
    host_number: int = 2
    bridged: bool = False
    """Whether the router has a bridge for its network."""
    site: str = "a"
    """Which of its two networks it is in, ``"a"`` or ``"b"``."""
    index: int = 0
    exists: bool = True
    up: bool = True
    carrier: bool = True
    addressed: bool = True

    @property
    def routable(self) -> bool:
        return self.exists and self.up and self.addressed

    @property
    def ipv4(self) -> bool:
        return self.kind != "ipv6-only"

    @property
    def lower(self) -> str:
        """The name of the host's end of the cable."""
        return f"{self.name}-base" if self.kind == "macvlan" else self.name

    @property
    def router_device(self) -> str:
        """The name of the router's interface that has the addresses."""
        return f"lan{self.network_number}" if self.bridged else self.name

    def host(self, family: Family, site: str | None = None) -> str:
        """The host's address."""
        return f"{self._base(family, site)}{self.host_number}"

    def host_with_length(self, family: Family) -> str:
        """The host's address and the length of the prefix on the link."""
        return self.host_alone(family) if self.kind == "point-to-point" else with_length(family, self.host(family))

    def host_alone(self, family: Family, site: str | None = None) -> str:
        """The prefix that has only the host's address."""
        return f"{self.host(family, site)}/{32 if family == socket.AF_INET else 128}"

    def gateway(self, family: Family, site: str | None = None) -> str:
        """The router's address."""
        return f"{self._base(family, site)}1"

    def next_hop(self, family: Family) -> str | None:
        """The gateway of its default route."""
        return None if self.kind == "point-to-point" else self.gateway(family)

    def _base(self, family: Family, site: str | None) -> str:
        second = (site or self.site) == "b"
        if family == socket.AF_INET:
            return f"10.{self.network_number}.{second:d}."
        return f"fd10:{self.network_number}:1::" if second else f"fd10:{self.network_number}::"


def uplinks_of(names: Sequence[str], kinds: Mapping[str, UplinkKind]) -> dict[str, Uplink]:
    """The uplinks by name, best first. The kind of those that are not named is ``ethernet``."""
    first, *_ = names
    sharing = [name for name in names if kinds.get(name) == "shared"]
    return {
        name: Uplink(
            name,
            number,
            500 + 100 * number,
            kinds.get(name, "ethernet"),
            network_number=1 if name in sharing else number,
            host_number=2 + (1 + sharing.index(name) if name in sharing else 0),
            bridged=bool(sharing) and name in (first, *sharing),
        )
        for number, name in enumerate(names, start=1)
    }


@dataclass(frozen=True, slots=True)
class Leaf:
    """A namespace with one link to the router."""

    namespace: str
    number: int

    def host(self, family: Family) -> str:
        return f"{self._base(family)}10"

    def gateway(self, family: Family) -> str:
        return f"{self._base(family)}1"

    def _base(self, family: Family) -> str:
        return f"10.{self.number}.0." if family == socket.AF_INET else f"fd10:{self.number}::"


LEAVES = (Leaf("server", 9), Leaf("vpn", 8))


def with_length(family: Family, address: str) -> str:
    """An address with the prefix length that all networks in the laboratory have."""
    return f"{address}/{24 if family == socket.AF_INET else 64}"
