"""Policy rules: in which order they lead a plain socket to the routing tables, and which hold for certain source addresses only.

The rules are not applied here: the kernel is asked for routes. They only say which of two answers out of different tables comes
first.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from bindsock.kernel.linux.rtnetlink.policy import dump_rules, parse_policy_rule
from bindsock.model.network import FAMILIES, LOCAL_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import IPNetwork
    from bindsock.model.policy import PolicyRule


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
        rules = map(parse_rule, dump_rules(channel, family))
        # A kernel without IPv6 answers the second time with what it said the first time.
        found += [rule for rule in rules if rule is not None and rule.family == family]
    return rules_of(found)


def rules_of(found: Iterable[Rule]) -> Rules:
    """What a list of rules comes to."""
    ordered = sorted(found, key=lambda rule: (not rule.plain, rule.preference))
    # The table of what is this host, or all on a link, comes before everything (linux net/ipv4/fib_rules.c).
    tables = {(family, LOCAL_TABLE): -1 for family in FAMILIES}
    for position, rule in enumerate(ordered):
        tables.setdefault((rule.family, rule.table), position)
    sources = dict.fromkeys(rule.source for rule in ordered if rule.source is not None)
    return Rules(tables, tuple(sources), tuple(dict.fromkeys(rule.mark for rule in ordered if rule.mark)))


@lru_cache(maxsize=256)
def parse_rule(payload: bytes) -> Rule | None:
    """A rule out of RTM_NEWRULE; ``None`` for one that leads to no table, or to the local one.

    :raises KernelError: the message is damaged
    """
    rule = parse_policy_rule(payload)
    if rule is None or rule.action != "lookup" or rule.table in (0, LOCAL_TABLE):
        return None
    return Rule(rule.family, rule.preference, rule.table, _is_plain(rule), rule.source, rule.mark or 0)


def _is_plain(rule: PolicyRule) -> bool:
    """Whether a plain socket of this process follows the rule, whatever its destination (linux net/core/fib_rules.c)."""
    # What this host sends comes in by the loopback, to a rule.
    matches = (
        rule.source is None
        and rule.destination is None
        and rule.incoming in ("", "lo")
        and not rule.outgoing
        and not rule.selective
        and (rule.mark is None or rule.mark & rule.mask == 0)
        and (rule.users is None or rule.users[0] <= os.getuid() <= rule.users[1])
    )
    return matches != rule.inverted and rule.suppressed_length is None
