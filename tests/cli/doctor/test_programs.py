"""The VPN program is recognised by the rules that it documents. Recorded rules are in ``test_doctor_lab.py``."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from bindsock.cli.doctor.programs import guesses, ownership
from bindsock.model.network import InterfaceKind, Lookup, Network, Route, RouteKind
from bindsock.model.policy import PolicyRule
from bindsock.testing import interface, network

ETH0 = interface("2: eth0 wifi 10.1.0.2/24")
BESIDE = "default via 10.1.0.1 dev 2 metric 600"


def tunnel(name: str, kind: InterfaceKind = InterfaceKind.TUNNEL) -> str:
    return f"3: {name} {kind} 10.66.0.2/24"


def rule(table: int, preference: int = 100, **more: Any) -> PolicyRule:
    return PolicyRule(socket.AF_INET, preference, "lookup", table, **more)


def programs(seen: Network, *rules: PolicyRule) -> list[str]:
    return [guess.program for guess in guesses(seen, rules, seen.routes)]


@pytest.mark.parametrize(
    ("rules", "program"),
    [
        ([rule(51820, 32765, inverted=True, mark=0xCA6C)], "wg-quick"),
        ([rule(51821, 32763, inverted=True, mark=0xCA6D)], "wg-quick"),
        ([rule(0x6D6F6C65, 99, inverted=True, mark=0x6D6F6C65)], "Mullvad"),
        ([rule(254, 5210, mark=0x80000, mask=0xFF0000), rule(52, 5270)], "Tailscale"),
        ([rule(220, 220)], "strongSwan"),
        ([rule(205, 32765, inverted=True, mark=0xE1F1)], "NordVPN"),
        ([rule(7120, 110, inverted=True, mark=0x1BD00)], "NetBird"),
        ([rule(65743, 32765, inverted=True, mark=0x100CF)], "Cloudflare WARP"),
    ],
)
def test_a_program_is_told_by_its_rules(rules: list[PolicyRule], program: str) -> None:
    (guess,) = guesses(network(ETH0, tunnel("tun0"), BESIDE), rules, ())
    assert guess.program == program
    assert f"the rule `{rules[-1]}`" == guess.evidence


def test_a_rule_to_main_or_of_an_administrator_tells_no_program() -> None:
    assert programs(network(ETH0, BESIDE), rule(254, 0), rule(77, 100), rule(78, 101, mark=1)) == []


def test_a_marked_rule_that_no_program_is_known_by_is_some_wireguard() -> None:
    (program,) = programs(network(ETH0, tunnel("wg1"), BESIDE), rule(52103, 31265, inverted=True, mark=0xCB87))
    assert program.startswith("WireGuard")


@pytest.mark.parametrize(
    ("name", "kind", "program"),
    [
        ("tailscale0", InterfaceKind.TUNNEL, "Tailscale"),
        ("wg0-mullvad", InterfaceKind.TUNNEL, "Mullvad"),
        ("proton0", InterfaceKind.TUNNEL, "Proton VPN"),
        ("pvpnksintrf0", InterfaceKind.DUMMY, "Proton VPN"),
        ("nordlynx", InterfaceKind.TUNNEL, "NordVPN"),
        ("ztabcdef12", InterfaceKind.TUNNEL, "ZeroTier"),
        ("fastd0", InterfaceKind.TUNNEL, "fastd"),
        ("dns0", InterfaceKind.TUNNEL, "iodine"),
    ],
)
def test_a_program_is_told_by_its_device(name: str, kind: InterfaceKind, program: str) -> None:
    assert programs(network(ETH0, tunnel(name, kind), BESIDE)) == [program]


@pytest.mark.parametrize("route", ["default dev 3 metric 5", "default via 10.66.0.1 dev 3"])
def test_a_device_with_a_name_of_its_own_is_of_no_program_that_leaves_its_devices_unnamed(route: str) -> None:
    assert programs(network(ETH0, tunnel("mesh0"), BESIDE, route)) == []
    assert programs(network(ETH0, tunnel("tun0"), BESIDE, route)) != []


def test_an_uplink_that_is_called_like_one_is_none() -> None:
    assert programs(network("2: zt0 wifi 10.1.0.2/24", BESIDE)) == []


@pytest.mark.parametrize(
    ("routes", "how"),
    [
        (["default dev 3 metric 50", BESIDE], "a default route with metric 50, better than that of the others"),
        (["default dev 3"], "a default route: it has replaced all others"),
        (["0.0.0.0/1 dev 3", "128.0.0.0/1 dev 3", BESIDE], "0.0.0.0/1 and 128.0.0.0/1, beside the default route"),
    ],
)
def test_it_is_told_how_the_default_was_taken(routes: list[Any], how: str) -> None:
    seen = network(ETH0, tunnel("tun0"), *routes)
    (owner,) = ownership(seen, (), seen.routes)
    assert (owner.interface, owner.tunnel, owner.how) == ("tun0", True, how)


def test_without_a_default_route_nobody_has_it() -> None:
    seen = network(ETH0)
    (owner,) = ownership(seen, (), seen.routes)
    assert (owner.interface, owner.how) == (None, "there is no IPv4 default route")


def test_a_kill_switch_of_routes_is_told() -> None:
    anywhere = ipaddress.ip_network("0.0.0.0/0")
    through = Route(anywhere, 3, table=51820)
    dead = Route(anywhere, None, metric=4294967280, table=51820, kind=RouteKind.UNREACHABLE)
    seen = Network({2: ETH0, 3: interface(tunnel("wg0"))}, unbound={socket.AF_INET: Lookup(through)})
    (owner,) = ownership(seen, [rule(51820, 32765, inverted=True, mark=0xCA6C)], [through, dead])
    assert owner.how == (
        "table 51820, to which the rule `32765: not from all fwmark 0xca6c lookup 51820` leads; "
        "the table ends in an unreachable route (a kill switch for IPv4)"
    )
