"""Policy rules, as ``ip rule`` shows them, and repairs: a rule and a table with a default route for bound sockets."""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass

from bindsock.model.network import DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, IPAddress, IPNetwork, family_of

_NAMES = {DEFAULT_TABLE: "default", MAIN_TABLE: "main", LOCAL_TABLE: "local"}


def table_name(table: int) -> str:
    """The name of a routing table, as ``ip rule`` prints it."""
    return _NAMES.get(table, str(table))


def via_gateway(gateway: IPAddress, family: socket.AddressFamily) -> str:
    """The arguments for ``ip route`` with a space at the end. The gateway of an IPv4 route may be an IPv6 address (RFC 5549)."""
    return f"via {'inet6 ' if family_of(gateway) != family else ''}{gateway} "


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A policy rule. ``str()`` returns a line like those of ``ip rule``."""

    family: socket.AddressFamily
    preference: int
    action: str
    """``lookup``, or another action: ``unreachable``, ``prohibit``, ``blackhole``, ``goto``, ``nop``."""
    table: int = 0
    inverted: bool = False
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    incoming: str = ""
    outgoing: str = ""
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    suppressed_length: int | None = None
    """The rule ignores routes with a prefix of this length or shorter (``suppress_prefixlength``)."""
    users: tuple[int, int] | None = None
    selective: bool = False
    """It has further conditions: a protocol, ports, a type of service, a VRF, or one that bindsock does not know."""
    protocol: int = 0
    """The origin of the rule (``linux include/uapi/linux/rtnetlink.h``, RTPROT)."""

    def exempts(self, mark: int) -> bool:
        """Whether the rule applies to packets without a mark, but not to packets with this mark, whatever else they have."""
        return self._only_by_mark and self.mark is not None and mark & self.mask == self.mark != 0

    @property
    def _only_by_mark(self) -> bool:
        """Whether packets with the mark are all that the rule leaves out: `not` is about all conditions together."""
        conditions = (self.source, self.destination, self.outgoing, self.users, self.selective)
        return self.inverted and self.incoming in ("", "lo") and not any(conditions)

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
    """A gateway, and the source of this information."""

    address: IPAddress
    named_by: str


_REPAIR_TABLES = range(0xB5000000, 0xB6000000)
"""The routing tables for repairs, numbered by the index of the interface. No other program is known to use them."""
REPAIR_PREFERENCES = (98, 99)
"""The preferences of the two rules of a repair: the first uses the specific routes of ``main``, the second the repair's table."""


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
        return repair_table(self.index)

    def commands(self) -> list[str]:
        """The ``ip`` commands that add the route and its rules."""
        ip = "ip" if self.family == socket.AF_INET else "ip -6"
        name = shlex.quote(self.interface)
        via = via_gateway(self.gateway.address, self.family)
        first, second = REPAIR_PREFERENCES
        return [
            f"{ip} route add default {via}dev {name} table {self.table}",
            f"{ip} rule add pref {first} oif {name} lookup main suppress_prefixlength 0",
            f"{ip} rule add pref {second} oif {name} lookup {self.table}",
        ]


def repair_table(index: int) -> int:
    """The routing table for repairs of the interface with this index."""
    return _REPAIR_TABLES[index % len(_REPAIR_TABLES)]


def is_repair_table(table: int) -> bool:
    """Whether the routing table belongs to a repair."""
    return table in _REPAIR_TABLES
