"""Firewall rules that would drop or redirect packets of a bound socket, such as a VPN's kill switch.

Rules of ``iptables-save`` and ``nft --json list ruleset`` are converted to one form with the conditions that matter for a bound
socket: the outgoing interface, the mark, and whether the destination is this host. A rule with other conditions *may* drop.
"""

from __future__ import annotations

import json
import shlex
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_TABLES = ("raw", "mangle", "nat", "filter", "security")
_HOOKS = ("OUTPUT", "POSTROUTING")
_ENDS = {"DROP": "drop", "REJECT": "reject", "REDIRECT": "redirect", "DNAT": "redirect", "ACCEPT": "accept", "RETURN": "return"}
_EXAMINED = ("addrtype", "comment", "mark")
"""The match modules of iptables whose conditions are examined. Any other may be a condition by itself (``-m socket``)."""
_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Filter:
    """A rule of a chain."""

    text: str
    verdict: str
    """``drop``, ``reject``, ``redirect``, ``accept``, ``return``, ``jump`` or ``goto``; empty if the next rule is tried."""
    target: str = ""
    """The chain to jump to."""
    out: tuple[bool, tuple[str, ...]] | None = None
    """Whether the outgoing interface must be, or must not be, one of these; ``None`` if it does not matter."""
    mark: tuple[bool, int, int] | None = None
    """Whether the mark must have, or must not have, this value under this mask; ``None`` if it does not matter."""
    never: bool = False
    """Whether it only matches this host's own addresses or another address family."""
    others: bool = False
    """Whether it has further conditions."""


@dataclass(slots=True)
class Chain:
    """A chain. ``policy`` only matters if it is hooked to outgoing packets."""

    table: str
    family: int
    name: str
    hooked: bool = False
    policy: str = "accept"
    rules: list[Filter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A rule that stops packets that a bound socket sends by an interface."""

    interface: str
    family: int
    verdict: str
    certain: bool
    """Whether it matches all packets; if not, it has conditions that were not examined."""
    rule: str


def obstacles(chains: Iterable[Chain], interfaces: Sequence[str], mark: int = 0) -> tuple[Obstacle, ...]:
    """The rules that stop packets, for each interface and family.

    :param mark: the firewall mark of the packets
    """
    chains = list(chains)
    named = {(chain.table, chain.name): chain for chain in chains}
    found: dict[Obstacle, None] = {}
    for interface in interfaces:
        for chain in chains:
            if chain.hooked:
                _walk(chain, named, interface, mark, True, _DEPTH, found)
    return tuple(found)


def exempt_mark(chains: Iterable[Chain], obstacle: Obstacle) -> int | None:
    """The firewall mark with which packets pass all rules that stop them now; ``None`` if the rules name no such mark."""
    chains = list(chains)
    named = dict.fromkeys(rule.mark[1] for chain in chains for rule in chain.rules if rule.mark is not None and rule.mark[1])

    def passes(mark: int) -> bool:
        left = {o.family for o in obstacles(chains, [obstacle.interface], mark)}
        both = socket.AF_UNSPEC in (obstacle.family, *left)
        return not left if both else obstacle.family not in left

    return next(filter(passes, named), None)


def _walk(
    chain: Chain,
    named: Mapping[tuple[str, str], Chain],
    interface: str,
    mark: int,
    certain: bool,
    depth: int,
    found: dict[Obstacle, None],
) -> bool:
    """Follow a packet through a chain, and collect obstacles.

    :return: whether the chain decides about the packet, so that no further chain does
    """
    for rule in chain.rules:
        if rule.never or not _leaves_by(rule, interface) or not _is_marked(rule, mark):
            continue
        sure = certain and not rule.others
        if rule.verdict in ("drop", "reject", "redirect"):
            found[Obstacle(interface, chain.family, rule.verdict, sure, f"{chain.table} {chain.name}: {rule.text}")] = None
            if not rule.others:
                return True
        elif rule.verdict == "accept" and not rule.others:
            return True
        elif rule.verdict == "return" and not rule.others:
            return False
        elif rule.verdict in ("jump", "goto") and depth and (target := named.get((chain.table, rule.target))) is not None:
            sealed = _walk(target, named, interface, mark, sure, depth - 1, found)
            if (sealed or rule.verdict == "goto") and not rule.others:
                return sealed
    if chain.hooked and chain.policy == "drop":
        found[Obstacle(interface, chain.family, "drop", True, f"{chain.table} {chain.name}: policy drop")] = None
        return True
    return False


def _leaves_by(rule: Filter, interface: str) -> bool:
    if rule.out is None:
        return True
    wanted, names = rule.out
    matches = any(interface.startswith(n[:-1]) if n[-1:] in ("+", "*") else interface == n for n in names)
    return matches == wanted


def _is_marked(rule: Filter, mark: int) -> bool:
    if rule.mark is None:
        return True
    wanted, value, mask = rule.mark
    return (mark & mask == value) == wanted


def from_iptables(saved: str, family: int) -> list[Chain]:
    """Parse the output of ``iptables-save`` or ``ip6tables-save``."""
    chains: dict[tuple[str, str], Chain] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *_ = [*line[1:].split(), "-"]
            chains[table, name] = Chain(table, family, name, table in _TABLES and name in _HOOKS, policy.lower())
        elif line.startswith("-A "):
            try:
                words = shlex.split(line)
            except ValueError:
                continue
            if (chain := chains.get((table, words[1]))) is not None:
                chain.rules.append(_iptables_rule(words[2:], line))
    return list(chains.values())


def _iptables_rule(words: Sequence[str], line: str) -> Filter:
    negated = never = others = False
    out: tuple[bool, tuple[str, ...]] | None = None
    mark: tuple[bool, int, int] | None = None
    verdict = target = module = ""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        value = rest[0] if rest else ""
        if word == "!":
            negated = True
            continue
        if word in ("-m", "--match"):
            module, rest = value, rest[1:]
            others |= module not in _EXAMINED
        elif word == "--comment":
            rest = rest[1:]
        elif word in ("-o", "--out-interface"):
            out, rest = (not negated, (value,)), rest[1:]
        elif word == "--mark" and module == "mark":
            number, _, mask = value.partition("/")
            mark, rest = (not negated, int(number, 0), int(mask or "0xffffffff", 0)), rest[1:]
        elif word == "--dst-type" and value in ("LOCAL", "UNICAST"):
            # A peer has a unicast address that is not this host's.
            never, rest = never or negated == (value == "UNICAST"), rest[1:]
        elif word in ("-j", "-g"):
            target, verdict = value, _ENDS.get(value, "goto" if word == "-g" else "jump")
            break
        else:
            others = True
            while rest and not rest[0].startswith(("-", "!")):
                rest = rest[1:]
        negated = False
    return Filter(line, verdict, target, out, mark, never, others)


def from_nft(listed: str) -> list[Chain]:
    """Parse the output of ``nft --json list ruleset``. Chains of iptables are left out, since ``iptables-save`` shows them.

    :raises ValueError: it is no such list
    """
    chains: dict[tuple[str, str, str], Chain] = {}
    for entry in json.loads(listed)["nftables"]:
        if (chain := entry.get("chain")) is not None:
            family, table = chain["family"], chain["table"]
            if family in ("ip", "ip6", "inet") and not (family != "inet" and table in _TABLES):
                hooked = chain.get("hook") in ("output", "postrouting")
                version = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}.get(family, socket.AF_UNSPEC)
                chains[family, table, chain["name"]] = Chain(
                    f"{family} {table}", version, chain["name"], hooked, chain.get("policy", "accept")
                )
        elif (rule := entry.get("rule")) is not None:
            owner = chains.get((rule["family"], rule["table"], rule["chain"]))
            if owner is not None:
                owner.rules.extend(map(_nft_rule, _without_map(rule["expr"])))
    return list(chains.values())


def _without_map(expressions: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The rules that a rule stands for: one for each element of an anonymous verdict map, otherwise only itself."""
    for position, expression in enumerate(expressions):
        found = expression.get("vmap")
        if found is not None and isinstance(found["data"], dict):
            # "*" matches what no other element does.
            for element, verdict in sorted(found["data"]["set"], key=lambda entry: entry[0] == "*"):
                value = element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
                matches = [] if value == "*" else [{"match": {"op": "==", "left": found["key"], "right": value}}]
                yield [*expressions[:position], *matches, verdict, *expressions[position + 1 :]]
            return
    yield expressions


def _nft_rule(expressions: Sequence[Mapping[str, Any]]) -> Filter:
    never = others = False
    out: tuple[bool, tuple[str, ...]] | None = None
    mark: tuple[bool, int, int] | None = None
    verdict = target = ""
    words = []
    for expression in expressions:
        ((kind, value),) = expression.items()
        if kind == "match":
            key, operator, right = _nft_key(value["left"]), value.get("op", "=="), _nft_values(value["right"])
            wanted = operator != "!="
            words.append(
                f"{key} {'' if operator in ('==', 'in') else f'{operator} '}{', '.join(_nft_text(key, r) for r in right)}"
            )
            if operator not in ("==", "!=") or any(str(r).startswith("@") for r in right):
                others = True  # a comparison, or a named set
            elif key in ("oifname", "oif"):
                out = (wanted, tuple(map(str, right)))
            elif key == "mark" and len(right) == 1 and isinstance(right[0], int):
                mark = (wanted, right[0], 0xFFFFFFFF)
            elif key == "fib type" and [str(r) for r in right] == ["local"]:
                never |= wanted
            else:
                others = True
        elif kind in ("drop", "reject", "redirect", "dnat", "accept", "return", "tproxy"):
            verdict = "redirect" if kind in ("dnat", "tproxy") else kind
            words.append(kind)
        elif kind in ("jump", "goto"):
            verdict, target = kind, value["target"]
            words.append(f"{kind} {target}")
        elif kind not in ("counter", "log", "comment", "mangle", "xt"):
            others = True
        elif kind == "xt":
            others = True
            words.append("(a condition of iptables)")
    return Filter(" ".join(words), verdict, target, out, mark, never, others)


def _nft_key(left: Any) -> str:
    if isinstance(left, dict):
        if "meta" in left:
            return str(left["meta"]["key"])
        if "fib" in left:
            return f"fib {left['fib']['result']}" if "daddr" in left["fib"].get("flags", ()) else "fib"
        if "payload" in left:
            return f"{left['payload'].get('protocol', '')} {left['payload'].get('field', '')}".strip()
        if "ct" in left:
            return f"ct {left['ct']['key']}"
    return "..."


def _nft_text(key: str, value: Any) -> str:
    return f"{value:#x}" if key in ("mark", "ct mark") and isinstance(value, int) else str(value)


def _nft_values(right: Any) -> list[Any]:
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, dict) and "prefix" in right:
        return [f"{right['prefix']['addr']}/{right['prefix']['len']}"]
    return list(right) if isinstance(right, list) else [right]
