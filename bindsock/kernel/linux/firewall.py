"""What nftables does with packets that this host sends. Reading its rules needs CAP_NET_ADMIN.

Present versions of iptables write nftables rules, too. Layout and numbers: ``include/uapi/linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.linux import netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bindsock.kernel.linux.netlink import Channel

NETLINK_NETFILTER = 12

_GETCHAIN = (10 << 8) | 4
_GETRULE = (10 << 8) | 7
_HEADER = struct.Struct("=BBH")
"""Family, version, resource: ``struct nfgenmsg``."""
_BE32 = struct.Struct(">i")
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_OUTGOING = (3, 4)
"""NF_INET_LOCAL_OUT and NF_INET_POST_ROUTING."""
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER = 1
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA = 2
_DATA_VERDICT = 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_TARGET_NAME = 1
_NAT_TYPE = 1
_DNAT = 1
_DROP = 0
_JUMPS = (-3, -4)
"""NFT_JUMP, NFT_GOTO."""
_ACTIONS = {"redir": "redirects", "dnat": "redirects", "nat": "redirects", "tproxy": "redirects", "reject": "rejects"}
_TARGETS = {"REDIRECT": "redirects", "DNAT": "redirects", "TPROXY": "redirects", "REJECT": "rejects"}
"""The targets of iptables."""


class _Chain(NamedTuple):
    family: int
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {_FAMILIES.get(self.family, self.family)} {self.table}"


class _Rule(NamedTuple):
    chain: _Chain
    action: str | None
    jump: str | None


def obstacles(channel: Channel, version: int) -> list[str]:
    """The chains in the path of outgoing packets that drop, reject or redirect some of them.

    The matches of their rules are not examined, so a chain may not affect a given connection.

    :param version: the IP version, 4 or 6
    :return: one phrase for each chain and action, in no particular order
    :raises KernelError: an answer cannot be understood
    :raises OSError: this process lacks the privilege, or the system has no nftables
    """
    families = (1, 2 if version == 4 else 10)
    question = _HEADER.pack(0, 0, 0)
    bases = {chain: drops for chain, drops in map(parse_chain, channel.dump(_GETCHAIN, question)) if drops is not None}
    rules = [parse_rule(payload) for payload in channel.dump(_GETRULE, question)]
    found = {f"{chain} drops by its policy": None for chain, drops in bases.items() if drops and chain.family in families}
    for chain in _reached(bases, rules):
        if chain.family in families:
            found.update({f"{chain} {rule.action}": None for rule in rules if rule.chain == chain and rule.action is not None})
    return list(found)


def _reached(bases: Iterable[_Chain], rules: list[_Rule]) -> Iterator[_Chain]:
    """The base chains, and all chains that they jump to."""
    waiting, seen = list(bases), set[_Chain]()
    while waiting:
        chain = waiting.pop()
        if chain not in seen:
            seen.add(chain)
            yield chain
            jumps = {rule.jump for rule in rules if rule.chain == chain and rule.jump is not None}
            waiting += [chain._replace(name=name) for name in jumps]


def parse_chain(payload: bytes) -> tuple[_Chain, bool | None]:
    """A chain, and whether its policy is to drop; ``None`` if it is no base chain for outgoing packets.

    :raises KernelError: the message is damaged
    """
    family = netlink.fixed(_HEADER, payload)[0]
    attributes = netlink.attributes(payload, _HEADER.size)
    chain = _Chain(family, netlink.text(attributes.get(_CHAIN_TABLE, b"")), netlink.text(attributes.get(_CHAIN_NAME, b"")))
    hook = netlink.attributes(attributes.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER)
    if hook is None or _big(hook) not in _OUTGOING:
        return chain, None
    policy = attributes.get(_CHAIN_POLICY)
    return chain, policy is not None and _big(policy) == _DROP


def parse_rule(payload: bytes) -> _Rule:
    """A rule: its action, and the chain that it jumps to.

    :raises KernelError: the message is damaged
    """
    family = netlink.fixed(_HEADER, payload)[0]
    attributes = netlink.attributes(payload, _HEADER.size)
    chain = _Chain(family, netlink.text(attributes.get(_RULE_TABLE, b"")), netlink.text(attributes.get(_RULE_CHAIN, b"")))
    action = jump = None
    for _, element in netlink.every_attribute(attributes.get(_RULE_EXPRESSIONS, b"")):
        expression = netlink.attributes(element)
        name = netlink.text(expression.get(_EXPRESSION_NAME, b""))
        data = netlink.attributes(expression.get(_EXPRESSION_DATA, b""))
        if name == "immediate":
            verdict = netlink.attributes(netlink.attributes(data.get(_IMMEDIATE_DATA, b"")).get(_DATA_VERDICT, b""))
            code = verdict.get(_VERDICT_CODE)
            if code is not None and _big(code) == _DROP:
                action = "drops"
            elif code is not None and _big(code) in _JUMPS:
                jump = netlink.text(verdict.get(_VERDICT_CHAIN, b""))
        elif name == "target":
            action = _TARGETS.get(netlink.text(data.get(_TARGET_NAME, b"")), action)
        elif name != "nat" or _big(data.get(_NAT_TYPE, b"")) == _DNAT:
            action = _ACTIONS.get(name, action)
    return _Rule(chain, action, jump)


def _big(attribute: bytes) -> int:
    """A 32-bit attribute in network byte order."""
    return int(netlink.fixed(_BE32, attribute)[0])
