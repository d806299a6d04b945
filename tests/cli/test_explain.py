from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from bindsock.model.network import Interface, IPAddress
from bindsock.routing.effective import decide
from bindsock.testing.simulated import SimulatedKernel

from .conftest import Run, beneath_vpn, only_vpn


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The names that the system's resolver resolves."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: object, family: int = 0, **_: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        parts = [(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in known[host]]
        return [(f, socket.SOCK_STREAM, 6, "", (a, 0)) for f, a in parts if family in (0, f)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_an_address_is_explained_with_the_decisions_own_words(kernel: SimulatedKernel, run: Run) -> None:
    status, out, err = run("explain", "203.0.113.9")
    assert (status, err) == (0, "")
    from ipaddress import ip_address

    assert out == f"{decide(beneath_vpn(), ip_address('203.0.113.9'))}\n"


def test_all_addresses_of_a_name_are_explained(kernel: SimulatedKernel, run: Run, names: dict[str, list[str]]) -> None:
    names["www.example.com"] = ["203.0.113.9", "2001:db8:9::9", "203.0.113.9"]
    _, out, _ = run("explain", "www.example.com")
    assert out.splitlines()[0] == "www.example.com:"
    assert [line.split()[0] for line in out.splitlines() if " leaves by " in line] == ["203.0.113.9", "2001:db8:9::9"]


def test_family_restricts_what_a_name_resolves_to(kernel: SimulatedKernel, run: Run, names: dict[str, list[str]]) -> None:
    names["www.example.com"] = ["203.0.113.9", "2001:db8:9::9"]
    _, out, _ = run("explain", "--json", "-6", "www.example.com")
    (host,) = json.loads(out)["hosts"]
    assert [a["address"] for a in host["addresses"]] == ["2001:db8:9::9"]


def test_a_name_without_address_is_exit_status_1_and_does_not_hide_the_others(
    kernel: SimulatedKernel, run: Run, names: dict[str, list[str]]
) -> None:
    status, out, err = run("explain", "nowhere.example.com", "203.0.113.9")
    assert status == 1
    assert err == "bindsock: nowhere.example.com has no address: Name or service not known\n"
    assert "203.0.113.9 leaves by en0" in out


def test_one_reachable_address_of_a_name_is_enough(kernel: SimulatedKernel, run: Run, names: dict[str, list[str]]) -> None:
    names["www.example.com"] = ["203.0.113.9", "2001:db8:9::9"]
    assert run("explain", "--interface", "en1", "www.example.com")[0] == 0
    assert run("explain", "--interface", "en1", "-6", "www.example.com")[0] == 1


def test_where_the_vpn_left_no_route_the_cure_is_told(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    status, out, _ = run("explain", "203.0.113.9")
    assert status == 1
    assert out.splitlines()[-1] == "  advice: give en0 a route to 203.0.113.9"


def test_an_interface_whose_route_leads_elsewhere_is_not_called_reachable(
    kernel: SimulatedKernel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_route(interface: Interface, destination: IPAddress) -> bool:
        return False

    monkeypatch.setattr(kernel, "has_route", has_route)
    status, out, _ = run("explain", "--json", "203.0.113.9")
    (address,) = json.loads(out)["hosts"][0]["addresses"]
    assert status == 1
    assert address["decision"]["interface"] == "en0"
    assert address["reachable"] is False
    assert address["advice"] == "give en0 a route to 203.0.113.9"


def test_no_cure_is_offered_for_what_the_user_excluded(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    status, out, _ = run("explain", "--exclude", "en*", "203.0.113.9")
    assert status == 1
    assert "advice" not in out


def test_the_machine_itself_is_reachable_unbound(kernel: SimulatedKernel, run: Run) -> None:
    status, out, _ = run("explain", "127.0.0.1")
    assert status == 0
    assert "not bound" in out


def test_without_a_host_the_default_of_each_family_is_explained(kernel: SimulatedKernel, run: Run) -> None:
    status, out, _ = run("explain", "--json")
    defaults = json.loads(out)["defaults"]
    assert status == 0
    assert [(d["decision"]["target"], d["decision"]["interface"]) for d in defaults] == [("IPv4", "en0"), ("IPv6", "en0")]


def test_without_a_host_and_without_an_interface_it_is_exit_status_1(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    assert run("explain")[0] == 1


def test_an_address_of_the_other_family_is_an_error_of_its_own(kernel: SimulatedKernel, run: Run) -> None:
    status, _, err = run("explain", "-6", "203.0.113.9")
    assert status == 1
    assert err == "bindsock: 203.0.113.9 is an IPv4 address\n"


def test_the_routes_that_match_are_listed_on_demand(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("explain", "--routes", "203.0.113.9")
    listed = [line for line in out.splitlines() if line.startswith("  route: ")]
    assert listed
    assert all("default" in line or "203.0.113" in line or "/1 " in line for line in listed)
    assert "route:" not in run("explain", "203.0.113.9")[1]
    document = json.loads(run("explain", "--routes", "--json", "203.0.113.9")[1])
    (address,) = document["hosts"][0]["addresses"]
    assert [f"  route: {line}" for line in address["routes"]] == listed


def test_of_a_family_the_routes_that_stand_for_its_default_are_listed(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("explain", "--routes", "-4")
    assert any(line.startswith("  route: default via ") for line in out.splitlines())


def test_what_is_no_host_name_is_told_with_what_may_be_meant(kernel: SimulatedKernel, run: Run) -> None:
    status, out, err = run("explain", "example.com:443", "")
    assert (status, out.strip()) == (1, "")
    assert err == "bindsock: 'example.com:443' is not a host name; did you mean example.com?\nbindsock: '' is not a host name\n"


def test_a_pin_without_an_interface_has_an_advice(kernel: SimulatedKernel, run: Run) -> None:
    for hosts in ((), ("192.0.2.9",)):
        status, out, _ = run("explain", "-4", "--interface", "nope", *hosts)
        assert status == 1
        assert "  advice: there is no interface nope; there are lo0, en0, en1, utun4\n" in out
        assert "name a host" not in out
