"""Policy rules are read with all their conditions, and printed as ``ip rule`` prints them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable

import pytest

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink.policy import RULE, parse_policy_rule, read_policy
from bindsock.kernel.linux.rtnetlink.rules import parse_rule
from bindsock.model.policy import PolicyRule
from tests.linux.namespaces import World, ip
from tests.unprivileged import may_become_nobody

RULES = [
    "from all lookup main suppress_prefixlength 0",
    "not from all fwmark 0xca6c lookup 51820",
    "from all fwmark 0x80000/0xff0000 lookup default",
    "from 10.1.0.0/24 to 203.0.113.0/24 lookup 77",
    "from all iif eth0 oif wifi0 lookup 78",
    f"from all uidrange {'1000-2000' if may_become_nobody() else '0-0'} lookup 79",
    "from all unreachable",
    "from all blackhole",
    "from all prohibit",
    "from all lookup 4000000000",
]


@pytest.mark.lab
def test_a_rule_reads_as_ip_prints_it(world: World) -> None:
    for preference, rule in enumerate(RULES, 100):
        ip(f"rule add pref {preference} {rule}")
    printed = subprocess.run(["ip", "rule"], check=True, capture_output=True, text=True).stdout
    channel = Channel()
    try:
        read = [str(rule) for rule in read_policy(channel) if rule.family == socket.AF_INET]
    finally:
        channel.close()
    assert read == [line.replace("\t", " ").strip() for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("mark", "mask", "inverted", "asked", "expected"),
    [
        (0xCA6C, 0xFFFFFFFF, True, 0xCA6C, True),
        (0xCA6C, 0xFFFFFFFF, True, 1, False),
        (0xCA6C, 0xFFFFFFFF, False, 0xCA6C, False),
        (0x80000, 0xFF0000, True, 0x80001, True),
        (0, 0xFFFFFFFF, True, 0, False),
        (None, 0xFFFFFFFF, True, 7, False),
    ],
)
def test_a_mark_is_exempt_where_an_inverted_rule_asks_for_it(
    mark: int | None, mask: int, inverted: bool, asked: int, expected: bool
) -> None:
    rule = PolicyRule(socket.AF_INET, 1, "lookup", 7, inverted=inverted, mark=mark, mask=mask)
    assert rule.exempts(asked) is expected


def test_a_rule_of_another_family_is_passed_over() -> None:
    assert parse_policy_rule(RULE.pack(128, 0, 0, 0, 254, 1, 0)) is None  # RTNL_FAMILY_IPMR


@pytest.mark.parametrize("parse", [parse_policy_rule, parse_rule])
@pytest.mark.parametrize(
    ("to_length", "source_length", "prefix"),
    [
        (0, 64, netlink.attribute(2, bytes(4))),
        (64, 0, netlink.attribute(1, bytes(4))),
        (0, 24, netlink.attribute(2, bytes(3))),
        (0, 24, netlink.attribute(2, bytes(16))),
        (0, 24, b""),
    ],
    ids=["source too long", "destination too long", "address too short", "wrong family", "no address"],
)
def test_a_rule_whose_prefix_is_damaged_is_refused(
    parse: Callable[[bytes], object], to_length: int, source_length: int, prefix: bytes
) -> None:
    with pytest.raises(KernelError):
        parse(RULE.pack(socket.AF_INET, to_length, source_length, 0, 254, 1, 0) + prefix)


def test_a_rule_with_a_port_says_that_it_has_more_conditions() -> None:
    ports = netlink.attribute(24, b"\x35\0\x35\0")
    rule = parse_policy_rule(RULE.pack(socket.AF_INET, 0, 0, 0, 254, 1, 0) + ports)
    assert rule is not None
    assert rule.selective
    assert str(rule) == "0: from all ... lookup main"
