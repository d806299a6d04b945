"""A policy rule, as an administrator sees it: what leads packets to a routing table, and which."""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass

from bindsock.model.network import DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, IPAddress, IPNetwork, family_of

_NAMES = {DEFAULT_TABLE: "default", MAIN_TABLE: "main", LOCAL_TABLE: "local"}


def table_name(table: int) -> str:
    """A routing table as ``ip rule`` names it."""
    return _NAMES.get(table, str(table))


def via_gateway(gateway: IPAddress, family: socket.AddressFamily) -> str:
    """The gateway as ``ip route`` takes it, with a space after it: that of an IPv4 route may be an IPv6 neighbour (RFC 5549)."""
    return f"via {'inet6 ' if family_of(gateway) != family else ''}{gateway} "


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A policy rule. ``str()`` of it reads like a line of ``ip rule``."""

    family: socket.AddressFamily
    preference: int
    action: str
    """``lookup``, or what becomes of the packet: ``unreachable``, ``prohibit``, ``blackhole``, ``goto``, ``nop``."""
    table: int = 0
    inverted: bool = False
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    incoming: str = ""
    outgoing: str = ""
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    suppressed_length: int | None = None
    """Routes whose prefix is not longer do not count."""
    users: tuple[int, int] | None = None
    selective: bool = False
    """It has conditions beyond these: a protocol, ports, a type of service, a VRF."""
    protocol: int = 0
    """Who made it (``linux include/uapi/linux/rtnetlink.h``, RTPROT)."""

    def exempts(self, mark: int) -> bool:
        """Whether packets with the mark pass the rule by, which packets without any do not."""
        return self.inverted and self.mark is not None and mark & self.mask == self.mark != 0

    def __str__(self) -> str:
        words = [f"{self.preference}:", *(["not"] if self.inverted else []), "from", str(self.source or "all")]
        if self.destination is not None:
            words += ["to", str(self.destination)]
        if self.mark is not None:
            words += ["fwmark", f"{self.mark:#x}" + ("" if self.mask == 0xFFFFFFFF else f"/{self.mask:#x}")]
        for word, name in (("iif", self.incoming), ("oif", self.outgoing)):
            words += [word, name] if name else []
        if self.users is not None:
            words += ["uidrange", f"{self.users[0]}-{self.users[1]}"]
        words += ["..."] if self.selective else []
        words += ["lookup", table_name(self.table)] if self.action == "lookup" else [self.action]
        if self.suppressed_length is not None:
            words += ["suppress_prefixlength", str(self.suppressed_length)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway, and what names it."""

    address: IPAddress
    named_by: str


_REPAIR_TABLES = range(0xB5000000, 0xB6000000)
"""Routing tables for repairs: the first one, and the interface's index. Nobody else's, as far as is known."""
REPAIR_PREFERENCES = (98, 99)
"""Of the two rules of a repair: what main knows better than by its default, then the table."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A default route for sockets that are bound to an interface, in a table of its own."""

    family: socket.AddressFamily
    interface: str
    index: int
    gateway: Gateway

    @property
    def table(self) -> int:
        """The routing table."""
        return _REPAIR_TABLES[self.index % len(_REPAIR_TABLES)]

    def commands(self) -> list[str]:
        """The ``ip`` commands that make it."""
        ip = "ip" if self.family == socket.AF_INET else "ip -6"
        name = shlex.quote(self.interface)
        via = via_gateway(self.gateway.address, self.family)
        first, second = REPAIR_PREFERENCES
        return [
            f"{ip} route add default {via}dev {name} table {self.table}",
            f"{ip} rule add pref {first} oif {name} lookup main suppress_prefixlength 0",
            f"{ip} rule add pref {second} oif {name} lookup {self.table}",
        ]


def is_repair_table(table: int) -> bool:
    """Whether the routing table is that of a repair."""
    return table in _REPAIR_TABLES
