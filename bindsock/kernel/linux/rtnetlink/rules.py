"""Policy rules: in which order they lead a plain socket to the routing tables, and which hold for certain source addresses only.

Layout and numbers: ``include/uapi/linux/fib_rules.h``. The rules are not applied here: the kernel is asked for routes. They only
say which of two answers out of different tables comes first.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.rtnetlink.routes import TABLE_LOCAL
from bindsock.model.network import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import IPNetwork

RTM_GETRULE = 34
_RULE = struct.Struct("=BBBBBxxBI")
"""fib_rule_hdr: family, destination and source length, TOS, table, action, flags."""
_UID_RANGE = struct.Struct("=II")
_TO_TABLE = 1
_INVERT = 0x2

_FRA_DST = 1
_FRA_SRC = 2
_FRA_IIFNAME = 3
_FRA_PRIORITY = 6
_FRA_FWMARK = 10
_FRA_SUPPRESS_PREFIXLEN = 14
_FRA_TABLE = 15
_FRA_FWMASK = 16
_FRA_OIFNAME = 17
_FRA_L3MDEV = 19
_FRA_UID_RANGE = 20
_FRA_SELECTORS = frozenset({22, 23, 24})
"""IP protocol, source and destination port."""
_NO_SUPPRESSION = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that leads to a table."""

    family: socket.AddressFamily
    preference: int
    table: int
    plain: bool
    """Whether a socket without a mark, a device and a source address follows it to any destination."""
    source: IPNetwork | None
    """The source addresses for which it holds, if it holds for certain ones only."""
    mark: int
    """A mark that a packet must (or, where the rule is inverted, must not) carry; 0 if it does not matter."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy rules of both families, as far as they matter."""

    tables: Mapping[tuple[socket.AddressFamily, int], int] = field(default_factory=dict)
    """The order of the tables: those that a plain socket is led to first, by preference, then the others."""
    sources: tuple[IPNetwork, ...] = ()
    """The prefixes of source addresses that have rules of their own."""
    marks: tuple[int, ...] = ()
    """The marks that rules ask for."""


def read_rules(channel: Channel) -> Rules:
    """Dump the rules.

    :raises KernelError: the answer cannot be understood
    :raises OSError: the question is refused
    """
    found: list[Rule] = []
    for family in FAMILIES:
        payloads = channel.dump(RTM_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0))
        # A kernel without IPv6 answers the second time with what it said the first time.
        found += [rule for payload in payloads if (rule := parse_rule(payload)) is not None and rule.family == family]
    return rules_of(found)


def rules_of(found: Iterable[Rule]) -> Rules:
    """What a list of rules comes to."""
    ordered = sorted(found, key=lambda rule: (not rule.plain, rule.preference))
    # The table of what is this host, or all on a link, comes before everything (linux net/ipv4/fib_rules.c).
    tables = {(family, TABLE_LOCAL): -1 for family in FAMILIES}
    for position, rule in enumerate(ordered):
        tables.setdefault((rule.family, rule.table), position)
    sources = dict.fromkeys(rule.source for rule in ordered if rule.source is not None)
    return Rules(tables, tuple(sources), tuple(dict.fromkeys(rule.mark for rule in ordered if rule.mark)))


@lru_cache(maxsize=256)
def parse_rule(payload: bytes) -> Rule | None:
    """A rule out of RTM_NEWRULE; ``None`` for one that leads to no table, or to the local one.

    :raises KernelError: the message is damaged
    """
    family, to_length, source_length, tos, table, action, flags = netlink.fixed(_RULE, payload)
    if family not in FAMILIES or action != _TO_TABLE:
        return None
    found = netlink.attributes(payload, _RULE.size)
    if _FRA_TABLE in found:
        table = netlink.u32(found[_FRA_TABLE])
    if table in (0, TABLE_LOCAL):
        return None
    source = ipaddress.ip_network((found[_FRA_SRC], source_length), strict=False) if source_length and _FRA_SRC in found else None
    suppressed = found.get(_FRA_SUPPRESS_PREFIXLEN)
    return Rule(
        family=socket.AddressFamily(family),
        preference=netlink.u32(found[_FRA_PRIORITY]) if _FRA_PRIORITY in found else 0,
        table=table,
        plain=_matches_plain(found, bool(flags & _INVERT), bool(to_length or source_length or tos))
        and (suppressed is None or netlink.u32(suppressed) == _NO_SUPPRESSION),
        source=source,
        mark=netlink.u32(found[_FRA_FWMARK]) if _FRA_FWMARK in found else 0,
    )


def _matches_plain(found: Mapping[int, bytes], inverted: bool, selective: bool) -> bool:
    """Whether a plain socket of this process matches the rule, whatever its destination (linux net/core/fib_rules.c)."""
    incoming = netlink.text(found[_FRA_IIFNAME]) if _FRA_IIFNAME in found else "lo"
    # What this host sends comes in by the loopback, to a rule.
    matches = not selective and incoming == "lo" and _FRA_OIFNAME not in found and _FRA_SELECTORS.isdisjoint(found)
    if _FRA_L3MDEV in found and found[_FRA_L3MDEV] != b"\0":
        matches = False
    if _FRA_FWMARK in found:
        mask = netlink.u32(found[_FRA_FWMASK]) if _FRA_FWMASK in found else 0xFFFFFFFF
        matches = matches and netlink.u32(found[_FRA_FWMARK]) & mask == 0
    if _FRA_UID_RANGE in found:
        first, last = netlink.fixed(_UID_RANGE, found[_FRA_UID_RANGE])
        matches = matches and first <= os.getuid() <= last
    return matches != inverted


def matched_by(sources: Sequence[IPNetwork], address: object) -> bool:
    """Whether a rule holds for the source address."""
    return any(address in source for source in sources)
