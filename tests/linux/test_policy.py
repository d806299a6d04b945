"""Policy rules are read with all their conditions, and printed as ``ip rule`` prints them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any

import pytest

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink.dump import dump_routes
from bindsock.kernel.linux.rtnetlink.policy import FRA_PRIORITY, RULE, TO_TABLE, dump_rules, parse_policy_rule, read_policy
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


@pytest.mark.parametrize(
    "condition",
    [
        {"source": IPv4Network("10.1.0.0/24")},
        {"destination": IPv4Network("10.1.0.0/24")},
        {"incoming": "eth0"},
        {"outgoing": "eth0"},
        {"users": (1000, 1000)},
        {"selective": True},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_mark_is_not_exempt_by_a_rule_that_asks_for_more_than_the_mark(condition: dict[str, Any]) -> None:
    assert not PolicyRule(socket.AF_INET, 1, "lookup", 7, inverted=True, mark=0xCA6C, **condition).exempts(0xCA6C)


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


FURTHER = {
    "tun_id": (socket.AF_INET, {12: b"\0\0\0\0\0\0\0\7"}),
    "suppress_ifgroup": (socket.AF_INET, {13: b"\7\0\0\0"}),
    "l3mdev": (socket.AF_INET, {19: b"\1"}),
    "ipproto": (socket.AF_INET, {22: b"\6"}),
    "sport": (socket.AF_INET, {23: b"\x35\0\x35\0"}),
    "dport": (socket.AF_INET, {24: b"\x35\0\x35\0"}),
    "dscp": (socket.AF_INET, {25: b"\2"}),
    "dscp 0": (socket.AF_INET, {25: b"\0"}),
    "flowlabel": (socket.AF_INET6, {26: b"\0\0\0\7", 27: b"\0\0\0\xff"}),
    "sport mask": (socket.AF_INET, {23: b"\x35\0\x35\0", 28: b"\xff\0"}),
    "dscp mask": (socket.AF_INET6, {25: b"\0", 30: b"\2"}),
}


@pytest.mark.lab
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", FURTHER)
def test_a_rule_with_a_further_condition_is_never_read_as_one_for_all_packets(world: World, name: str, inverted: bool) -> None:
    family, conditions = FURTHER[name]
    body = RULE.pack(family, 0, 0, 0, 0 if name == "l3mdev" else 77, TO_TABLE, 2 if inverted else 0)
    body += netlink.attribute_u32(FRA_PRIORITY, 100)
    channel = Channel()
    try:
        try:
            channel.tell(32, body + b"".join(netlink.attribute(kind, value) for kind, value in conditions.items()), 0x600)
        except OSError as refused:
            pytest.skip(f"this kernel does not know the condition: {refused}")
        (payload,) = (p for p in dump_rules(channel, family) if (r := parse_policy_rule(p)) is not None and r.preference == 100)
    finally:
        channel.close()
    if not conditions.keys() <= netlink.attributes(payload, RULE.size).keys():
        pytest.skip("this kernel ignores the condition")
    check_not_for_all(payload)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_condition_of_a_later_kernel_is_never_read_as_none(inverted: bool) -> None:
    later = netlink.attribute(77, bytes(4))
    check_not_for_all(RULE.pack(socket.AF_INET, 0, 0, 0, 77, TO_TABLE, 2 if inverted else 0) + later)


def check_not_for_all(payload: bytes) -> None:
    rule, leads = parse_policy_rule(payload), parse_rule(payload)
    assert rule is not None
    assert rule.selective
    assert " ... " in str(rule)
    assert leads is None or not leads.plain


@pytest.mark.lab
def test_no_attribute_of_an_ordinary_rule_is_a_further_condition(world: World) -> None:
    ip("rule add pref 90 from 10.1.0.0/24 to 203.0.113.0/24 iif eth0 oif wifi0 fwmark 1/1 lookup 77 realms 3/4")
    ip("rule add pref 91 goto 32766", "-6 rule add pref 90 uidrange 0-0 lookup main suppress_prefixlength 0 protocol 7")
    channel = Channel()
    try:
        assert not [str(rule) for rule in read_policy(channel) if rule.selective]
    finally:
        channel.close()


@pytest.mark.lab
def test_a_route_for_a_type_of_service_is_not_listed_as_one_for_all(world: World) -> None:
    ip("route add default via 10.1.0.1 dev wifi0 tos 0x10 table 77", "route add 203.0.113.0/24 via 10.1.0.1 dev wifi0 table 77")
    channel = Channel()
    try:
        found = dump_routes(channel, (socket.AF_INET,), 77)
    finally:
        channel.close()
    assert [str(route.destination) for route in found] == ["203.0.113.0/24"]


def test_a_rule_with_a_port_says_that_it_has_more_conditions() -> None:
    ports = netlink.attribute(24, b"\x35\0\x35\0")
    rule = parse_policy_rule(RULE.pack(socket.AF_INET, 0, 0, 0, 254, 1, 0) + ports)
    assert rule is not None
    assert rule.selective
    assert str(rule) == "0: from all ... lookup main"
