"""Which firewall rules block a bound socket: rules of real programs, and other forms."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from bindsock.cli.doctor.firewall import exempt_mark, from_iptables, from_nft, obstacles

RECORDED = Path(__file__).parents[2] / "vpn" / "recorded"


def found(saved: str, interface: str = "wifi0", mark: int = 0) -> list[tuple[str, bool]]:
    return [(o.verdict, o.certain) for o in obstacles(from_iptables(saved, socket.AF_INET), [interface], mark)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wg-quick-drop.iptables", [("drop", True)]),
        ("wg-quick-drop.ip6tables", [("drop", True)]),
        ("wg-quick-reject.iptables", [("reject", True)]),
        ("sshuttle-nat.iptables", [("redirect", False)]),
    ],
)
def test_what_real_programs_made_is_understood(name: str, expected: list[tuple[str, bool]]) -> None:
    assert found((RECORDED / name).read_text()) == expected


def test_a_kill_switch_lets_its_own_device_and_mark_pass() -> None:
    saved = (RECORDED / "wg-quick-drop.iptables").read_text()
    assert found(saved, "wg0") == []
    assert found(saved, mark=0xCA6C) == []


FILTER = "*filter\n:OUTPUT {policy} [0:0]\n:vpn - [0:0]\n{rules}\nCOMMIT\n"


@pytest.mark.parametrize(
    ("policy", "rules", "expected"),
    [
        ("ACCEPT", "", []),
        ("DROP", "", [("drop", True)]),
        ("DROP", "-A OUTPUT -o wifi0 -j ACCEPT", []),
        ("DROP", "-A OUTPUT -o tun+ -j ACCEPT", [("drop", True)]),
        ("DROP", "-A OUTPUT -o wifi0 -p udp -j ACCEPT", [("drop", True)]),
        ("ACCEPT", "-A OUTPUT -o wifi+ -j DROP", [("drop", True)]),
        ("ACCEPT", "-A OUTPUT -d 192.0.2.0/24 -j DROP", [("drop", False)]),
        ("ACCEPT", "-A OUTPUT -m addrtype --dst-type LOCAL -j DROP", []),
        ("ACCEPT", "-A OUTPUT -m addrtype ! --dst-type LOCAL -j DROP", [("drop", True)]),
        ("ACCEPT", "-A OUTPUT -m addrtype --dst-type UNICAST -j DROP", [("drop", True)]),
        ("ACCEPT", "-A OUTPUT -m addrtype ! --dst-type UNICAST -j DROP", []),
        ("ACCEPT", "-A OUTPUT -m addrtype --dst-type BROADCAST -j DROP", [("drop", False)]),
        ("DROP", "-A OUTPUT -m socket -j ACCEPT", [("drop", True)]),
        ("ACCEPT", "-A OUTPUT -m socket -j DROP", [("drop", False)]),
        ("ACCEPT", "-A OUTPUT -m connmark --mark 0x1 -j DROP", [("drop", False)]),
        ("ACCEPT", "-A OUTPUT -j vpn\n-A vpn ! -o tun0 -j REJECT", [("reject", True)]),
        ("ACCEPT", "-A OUTPUT -p tcp -j vpn\n-A vpn ! -o tun0 -j REJECT", [("reject", False)]),
        ("ACCEPT", "-A OUTPUT -j vpn\n-A vpn -j RETURN\n-A vpn -j DROP", []),
        ("ACCEPT", "-A OUTPUT -j vpn\n-A vpn -j vpn", []),
        ("ACCEPT", "-A OUTPUT -m comment --comment 'a b -j DROP' -j ACCEPT", []),
        ("ACCEPT", "-A OUTPUT -j NFQUEUE --queue-num 0", []),
        ("ACCEPT", "-A INPUT -j DROP", []),
        ("ACCEPT", "-A OUTPUT -m mark --mark 0x1/0x1 -j DROP", []),
    ],
)
def test_a_packet_is_followed_through_the_chains(policy: str, rules: str, expected: list[tuple[str, bool]]) -> None:
    assert found(FILTER.format(policy=policy, rules=rules)) == expected


def nft(*rules: list[dict[str, Any]], family: str = "inet", table: str = "killswitch", policy: str = "accept") -> str:
    place = {"family": family, "table": table}
    chain = {**place, "name": "output", "hook": "output", "policy": policy}
    entries = [{"metainfo": {}}, {"chain": chain}, *({"rule": {**place, "chain": "output", "expr": rule}} for rule in rules)]
    return json.dumps({"nftables": entries})


def match(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def vmap(key: str, *elements: list[Any]) -> dict[str, Any]:
    return {"vmap": {"key": {"meta": {"key": key}}, "data": {"set": list(elements)}}}


LOCAL = {"fib": {"result": "type", "flags": ["daddr"]}}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (nft(), []),
        (nft(policy="drop"), [("drop", True)]),
        (nft([match("oifname", "wifi0"), {"accept": None}], policy="drop"), []),
        (nft([match("oifname", {"set": ["lo", "tun0"]}), {"accept": None}], policy="drop"), [("drop", True)]),
        (nft([match("oifname", "wg0", "!="), match("mark", 0xCA6C, "!="), {"counter": {}}, {"drop": None}]), [("drop", True)]),
        (nft([match("skuid", 1000), {"reject": None}]), [("reject", False)]),
        (nft([{"match": {"op": "==", "left": LOCAL, "right": "local"}}, {"drop": None}]), []),
        (nft([{"match": {"op": "!=", "left": LOCAL, "right": "local"}}, {"drop": None}]), [("drop", True)]),
        (nft([match("oifname", "tun*"), {"drop": None}]), []),
        (nft([match("oifname", "@uplinks"), {"drop": None}]), [("drop", False)]),
        (nft([match("oifname", "@uplinks"), {"accept": None}], policy="drop"), [("drop", True)]),
        (nft([match("mark", 5, "<"), {"drop": None}]), [("drop", False)]),
        (nft([vmap("oifname", ["eth0", {"accept": None}], ["wifi0", {"drop": None}])]), [("drop", True)]),
        (nft([vmap("oifname", ["*", {"drop": None}], [{"elem": {"val": "wifi0", "comment": "x"}}, {"accept": None}])]), []),
        (nft([vmap("mark", ["*", {"reject": None}], [5, {"accept": None}])]), [("reject", True)]),
        (nft([match("skuid", 1000), vmap("oifname", ["wifi0", {"drop": None}])]), [("drop", False)]),
        (nft([{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": "@verdicts"}}]), []),
        (nft([{"drop": None}], family="ip", table="filter"), []),
        (nft([{"drop": None}], family="bridge"), []),
    ],
)
def test_the_same_of_nft(listed: str, expected: list[tuple[str, bool]]) -> None:
    assert [(o.verdict, o.certain) for o in obstacles(from_nft(listed), ["wifi0"])] == expected


def test_an_obstacle_names_the_rule() -> None:
    (obstacle,) = obstacles(from_nft(nft([match("oifname", "wg0", "!="), {"drop": None}])), ["wifi0"])
    assert obstacle.rule == "inet killswitch output: oifname != wg0 drop"


def test_marks_are_told_as_the_option_takes_them() -> None:
    chains = from_nft(nft([match("oifname", "wg0", "!="), match("mark", 0xCA6C, "!="), {"drop": None}]))
    (obstacle,) = obstacles(chains, ["wifi0"])
    assert obstacle.rule == "inet killswitch output: oifname != wg0 mark != 0xca6c drop"
    assert exempt_mark(chains, obstacle) == 0xCA6C


@pytest.mark.parametrize(
    ("listed", "mark"),
    [
        (nft([match("mark", 0xCA6C), {"accept": None}], policy="drop"), 0xCA6C),
        (nft([match("mark", 0xCA6C, "!="), {"drop": None}], [{"drop": None}]), None),
        (nft(policy="drop"), None),
    ],
)
def test_a_mark_is_only_told_if_it_passes_every_rule(listed: str, mark: int | None) -> None:
    chains = from_nft(listed)
    assert exempt_mark(chains, obstacles(chains, ["wifi0"])[0]) == mark


REJECT = """*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT ! -o tun0 -m mark ! --mark 0xca6c -j REJECT
COMMIT
"""


@pytest.mark.parametrize(
    ("other", "mark"),
    [
        (nft([match("oifname", "tun0", "!="), {"drop": None}]), None),
        (nft([match("oifname", "tun0", "!="), {"drop": None}], family="ip"), None),
        (nft([match("oifname", "tun0", "!="), {"drop": None}], family="ip6"), 0xCA6C),
        (nft(), 0xCA6C),
    ],
)
def test_a_mark_is_only_told_if_it_passes_the_other_firewalls_of_the_family(other: str, mark: int | None) -> None:
    chains = [*from_iptables(REJECT, socket.AF_INET), *from_nft(other)]
    assert exempt_mark(chains, obstacles(chains, ["wifi0"])[0]) == mark


def test_a_mark_passes_a_firewall_of_both_families_only_if_it_passes_in_both() -> None:
    chains = from_nft(nft([match("oifname", "tun0", "!="), match("mark", 0xCA6C, "!="), {"drop": None}]))
    (both,) = obstacles(chains, ["wifi0"])
    assert exempt_mark(chains, both) == 0xCA6C
    chains += from_iptables(REJECT.replace("-m mark ! --mark 0xca6c ", ""), socket.AF_INET)
    assert exempt_mark(chains, both) is None
