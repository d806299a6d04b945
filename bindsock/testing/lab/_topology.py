"""The laboratory's addresses, and its model of an uplink.

::

    host ── wifi0, eth0, ... ── router ── server
      └──── tun0 ═══════════════ (vpn) ─────┘
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

NAMESPACES = ("host", "router", "server", "vpn")
DEFAULTS = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
BEST_METRIC = 100
"""The metric of the uplink that was made the default; a VPN's is even better."""

Family = socket.AddressFamily


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

    def network(self, family: Family, site: str | None = None) -> str:
        """The prefix of the network it is in."""
        base = self._base(family, site)
        return f"{base}0/24" if family == socket.AF_INET else f"{base}/64"

    def host(self, family: Family, site: str | None = None) -> str:
        """The host's address."""
        return f"{self._base(family, site)}2"

    def gateway(self, family: Family, site: str | None = None) -> str:
        """The router's address."""
        return f"{self._base(family, site)}1"

    def _base(self, family: Family, site: str | None) -> str:
        second = (site or self.site) == "b"
        if family == socket.AF_INET:
            return f"10.{self.number}.{second:d}."
        return f"fd10:{self.number}:1::" if second else f"fd10:{self.number}::"


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
