"""Policy rules: the order in which they lead a plain socket to the routing tables, and the rules for certain source addresses.

The rules are not applied here, since the kernel looks up routes. They only tell which of two answers from different tables takes
precedence.
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
    """Whether it applies to a socket without a mark, interface and source address, for all destinations."""
    source: IPNetwork | None
    """The source addresses that it applies to; ``None`` if it applies to all."""
    mark: int
    """The firewall mark that a packet must have (must not have, if the rule is inverted); 0 if the mark does not matter."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy rules of both families, as far as decisions need them."""

    tables: Mapping[tuple[socket.AddressFamily, int], int] = field(default_factory=dict)
    """The position of each table: first those that a plain socket is led to, by preference, then the others."""
    sources: tuple[IPNetwork, ...] = ()
    """The prefixes of source addresses that have rules of their own."""
    marks: tuple[int, ...] = ()
    """The firewall marks that rules match."""


def read_rules(channel: Channel) -> Rules:
    """Dump the rules.

    :raises KernelError: the answer cannot be understood
    :raises OSError: the question is refused
    """
    found: list[Rule] = []
    for family in FAMILIES:
        rules = map(parse_rule, dump_rules(channel, family))
        # A kernel without IPv6 sends the IPv4 rules again.
        found += [rule for rule in rules if rule is not None and rule.family == family]
    return rules_of(found)


def rules_of(found: Iterable[Rule]) -> Rules:
    """Summarise a list of rules."""
    ordered = sorted(found, key=lambda rule: (not rule.plain, rule.preference))
    # The local table, with the host's own addresses and broadcasts, comes first (linux net/ipv4/fib_rules.c).
    tables = {(family, LOCAL_TABLE): -1 for family in FAMILIES}
    for position, rule in enumerate(ordered):
        tables.setdefault((rule.family, rule.table), position)
    sources = dict.fromkeys(rule.source for rule in ordered if rule.source is not None)
    return Rules(tables, tuple(sources), tuple(dict.fromkeys(rule.mark for rule in ordered if rule.mark)))


@lru_cache(maxsize=256)
def parse_rule(payload: bytes) -> Rule | None:
    """Parse an RTM_NEWRULE; ``None`` for a rule that leads to no table, or to the local table.

    :raises KernelError: the message is damaged
    """
    rule = parse_policy_rule(payload)
    if rule is None or rule.action != "lookup" or rule.table in (0, LOCAL_TABLE):
        return None
    return Rule(rule.family, rule.preference, rule.table, _is_plain(rule), rule.source, rule.mark or 0)


def _is_plain(rule: PolicyRule) -> bool:
    """Whether the rule applies to a plain socket of this process, for all destinations (linux net/core/fib_rules.c)."""
    # Whether further conditions hold is unknown. `not` is about all of them together, so it does not help.
    if rule.selective:
        return False
    # To a rule, packets of this host arrive on the loopback.
    matches = (
        rule.source is None
        and rule.destination is None
        and rule.incoming in ("", "lo")
        and not rule.outgoing
        and (rule.mark is None or rule.mark & rule.mask == 0)
        and (rule.users is None or rule.users[0] <= os.getuid() <= rule.users[1])
    )
    return matches != rule.inverted and rule.suppressed_length is None
