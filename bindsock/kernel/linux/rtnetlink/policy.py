"""Parsing policy rules with all their conditions. :mod:`bindsock.kernel.linux.rtnetlink.rules` extracts what decisions need.

Layout and numbers: ``include/uapi/linux/fib_rules.h``.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.rtnetlink.routes import parse_prefix
from bindsock.model.network import FAMILIES
from bindsock.model.policy import PolicyRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bindsock.kernel.linux.netlink import Channel

_RTM_GETRULE = 34
RULE = struct.Struct("=BBBBBxxBI")
"""fib_rule_hdr: family, destination and source length, TOS, table, action, flags."""
TO_TABLE = 1
_ACTIONS = {TO_TABLE: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_INVERT = 0x2

FRA_PRIORITY = 6
FRA_TABLE = 15
FRA_SUPPRESS_PREFIXLEN = 14
FRA_OIFNAME = 17
FRA_PROTOCOL = 21
_FRA_DST = 1
_FRA_SRC = 2
_FRA_IIFNAME = 3
_FRA_FWMARK = 10
_FRA_FWMASK = 16
_FRA_UID_RANGE = 20
_UNCONDITIONAL = frozenset({4, 11, 18})
"""Attributes that are no conditions: the target of a ``goto``, the realm, padding."""
_KNOWN = _UNCONDITIONAL | {
    FRA_PRIORITY,
    FRA_TABLE,
    FRA_SUPPRESS_PREFIXLEN,
    FRA_OIFNAME,
    FRA_PROTOCOL,
    _FRA_DST,
    _FRA_SRC,
    _FRA_IIFNAME,
    _FRA_FWMARK,
    _FRA_FWMASK,
    _FRA_UID_RANGE,
}
"""Every other attribute is a further condition, those of later kernels included: the kernel only sends the conditions that were
set (``linux net/core/fib_rules.c``, fib_nl_fill_rule)."""
_UID_RANGE = struct.Struct("=II")
_NO_SUPPRESSION = 0xFFFFFFFF


def dump_rules(channel: Channel, family: socket.AddressFamily) -> list[bytes]:
    """The payloads of RTM_NEWRULE in the kernel's order.

    :raises KernelError: the answer cannot be understood
    :raises OSError: the question is refused
    """
    return channel.dump(_RTM_GETRULE, RULE.pack(family, 0, 0, 0, 0, 0, 0))


def read_policy(channel: Channel) -> tuple[PolicyRule, ...]:
    """The rules of both families in the kernel's order.

    :raises KernelError: the answer cannot be understood
    :raises OSError: the question is refused
    """
    found = []
    for family in FAMILIES:
        rules = map(parse_policy_rule, dump_rules(channel, family))
        # A kernel without IPv6 sends the IPv4 rules again.
        found += [rule for rule in rules if rule is not None and rule.family == family]
    return tuple(found)


def parse_policy_rule(payload: bytes) -> PolicyRule | None:
    """Parse an RTM_NEWRULE; ``None`` for a rule of another family.

    :raises KernelError: the message is damaged
    """
    family, to_length, source_length, tos, table, action, flags = netlink.fixed(RULE, payload)
    if family not in FAMILIES:
        return None
    found = netlink.attributes(payload, RULE.size)
    suppressed = _u32(found, FRA_SUPPRESS_PREFIXLEN)
    protocol = found.get(FRA_PROTOCOL, b"")
    return PolicyRule(
        family=socket.AddressFamily(family),
        preference=_u32(found, FRA_PRIORITY) or 0,
        action=_ACTIONS.get(action, f"action {action}"),
        table=_u32(found, FRA_TABLE) or table,
        inverted=bool(flags & _INVERT),
        source=parse_prefix(family, found.get(_FRA_SRC, b""), source_length) if source_length else None,
        destination=parse_prefix(family, found.get(_FRA_DST, b""), to_length) if to_length else None,
        incoming=netlink.text(found.get(_FRA_IIFNAME, b"")),
        outgoing=netlink.text(found.get(FRA_OIFNAME, b"")),
        mark=_u32(found, _FRA_FWMARK),
        mask=mask if (mask := _u32(found, _FRA_FWMASK)) is not None else 0xFFFFFFFF,
        suppressed_length=None if suppressed == _NO_SUPPRESSION else suppressed,
        users=netlink.fixed(_UID_RANGE, found[_FRA_UID_RANGE]) if _FRA_UID_RANGE in found else None,
        selective=bool(tos) or not found.keys() <= _KNOWN,
        protocol=protocol[0] if protocol else 0,
    )


def _u32(found: Mapping[int, bytes], kind: int) -> int | None:
    return netlink.u32(found[kind]) if kind in found else None
