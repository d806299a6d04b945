"""``bindsock doctor`` on a scripted network of a system without policy rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bindsock.cli.doctor.advice import advice
from bindsock.testing import SimulatedKernel, network
from tests.cli.conftest import LOOPBACK, TUNNEL, WIFI, WIRED, Run, only_vpn


def test_the_report_has_a_part_for_each_question(kernel: SimulatedKernel, run: Run) -> None:
    status, out, err = run("doctor", "--no-probe")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for title in ("who has the default route", "uplinks", "in the way", "this process", "what to do"):
        assert title in lines
    assert "  IPv4  utun4  a default route with metric 50, better than that of the others" in lines
    assert any(line.split()[:2] == ["*", "en0"] and line.endswith("IPv4  via 192.0.2.1") for line in lines)


def test_a_family_can_be_left_out(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("doctor", "--no-probe", "--json", "-6")
    report = json.loads(out)
    assert [d["family"] for d in report["effective"]] == ["IPv6"]
    assert {f["family"] for u in report["uplinks"] for f in u["families"]} == {"IPv6"}


def test_where_no_route_is_left_the_cure_is_the_first_step(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    status, out, _ = run("doctor", "--no-probe", "--json", "-4")
    report = json.loads(out)
    assert status == 1
    assert report["advice"][0].startswith("give en0 a route to ")


def test_without_an_uplink_one_has_to_be_connected(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(network(LOOPBACK))
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert status == 1
    assert report["probes"] == []
    assert report["advice"] == ["connect an uplink: only tunnels have carrier and an address (there is no other interface)"]


def test_what_is_excluded_is_neither_probed_nor_cured(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("doctor", "--no-probe", "--json", "--exclude", "en1")
    (en1,) = [u for u in json.loads(out)["uplinks"] if u["name"] == "en1"]
    assert {(f["fit"], f["reason"], f["route_hint"]) for f in en1["families"]} == {(False, "excluded by 'en1'", None)}


def a_report(**parts: Any) -> dict[str, Any]:
    fit = {"family": "IPv4", "fit": True, "usable": True, "reason": None, "route_hint": None, "effective": True}
    return {
        "uplinks": [{"name": "eth0", "strict_filter": False, "families": [fit]}],
        "firewall": {"obstacles": [], "failures": []},
        "probes": [],
        "effective": [{"interface": "eth0"}],
        **parts,
    }


def probed(error: str | None, dns: str | None = None) -> dict[str, Any]:
    return {
        "interface": "eth0",
        "family": "IPv4",
        "dns": {"error": dns},
        "tcp": {"address": "192.0.2.9", "port": 443, "error": error},
    }


DROP = {"interface": "eth0", "verdict": "drop", "certain": True, "rule": "R"}


def test_a_failure_that_a_firewall_explains_is_told_once() -> None:
    steps = advice(a_report(firewall={"obstacles": [DROP], "failures": []}, probes=[probed("timed out")]))
    assert len(steps) == 1
    assert steps[0].startswith("a firewall drops packets that leave by eth0, by `R`")


def test_a_failure_without_an_explanation_says_what_could_not_be_seen() -> None:
    (step,) = advice(a_report(firewall={"obstacles": [], "failures": ["nft: refused"]}, probes=[probed("timed out")]))
    assert step.endswith("run this as root to see its rules")
    (step,) = advice(a_report(probes=[probed("refused")]))
    assert step == "192.0.2.9 port 443 cannot be reached by eth0 (refused)"


def test_where_all_is_well_nothing_is_to_do() -> None:
    assert advice(a_report(probes=[probed(None)])) == ["nothing: connections leave by eth0"]


def test_a_pin_without_an_interface_is_what_is_wrong(kernel: SimulatedKernel, run: Run) -> None:
    status, out, _ = run("doctor", "--json", "--interface", "nope", "192.0.2.9")
    report = json.loads(out)
    assert (status, report["probes"]) == (1, [])
    assert report["advice"] == ["there is no interface nope; there are lo0, en0, en1, utun4"]
    _, out, _ = run("doctor", "--json", "--interface", "en9", "192.0.2.9")
    assert json.loads(out)["advice"] == ["there is no interface en9; did you mean en1?"]


def test_a_pinned_interface_that_is_no_use_is_what_is_wrong(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("doctor", "--json", "--no-probe", "--interface", "en1", "-6")
    assert json.loads(out)["advice"] == ["en1 is pinned, but has no IPv6 address: omit --interface, or name another"]


@pytest.mark.parametrize("options", [(), ("--no-probe",)])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("en0", "en0 is pinned, but has no usable IPv6 address (link-local only)"),
        ("lo0", "lo0 is pinned, but is the loopback"),
    ],
)
def test_a_pinned_interface_whose_addresses_stay_on_the_link_is_no_use(
    kernel: SimulatedKernel, run: Run, name: str, reason: str, options: tuple[str, ...]
) -> None:
    kernel.change(network(LOOPBACK, "2: en0 wifi 192.0.2.5/24 fe80::5/64", "default via 192.0.2.1 dev en0 metric 600"))
    status, out, _ = run("doctor", "--json", "-6", *options, "--interface", name, "2001:db8::1")
    report = json.loads(out)
    assert (status, report["probes"]) == (1, [])
    assert report["advice"] == [f"{reason}: omit --interface, or name another"]


@pytest.mark.parametrize("pin", [(), ("--interface", "en1")])
def test_a_host_that_no_uplink_can_reach_is_no_success(kernel: SimulatedKernel, run: Run, pin: tuple[str, ...]) -> None:
    kernel.change(network(LOOPBACK, WIRED, "default via 198.51.100.1 dev en1 metric 700"))
    status, out, _ = run("doctor", "--json", *pin, "2001:db8::1")
    assert status == 1
    assert json.loads(out)["advice"] == ["nothing was probed, since no uplink can reach 2001:db8::1 (en1 has no IPv6 address)"]


def test_a_pinned_interface_without_a_route_is_no_success(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(network(LOOPBACK, WIFI, WIRED, "default via 192.0.2.1 dev en0 metric 600"))
    status, out, _ = run("doctor", "--json", "--no-probe", "--interface", "en1", "-4")
    report = json.loads(out)
    assert status == 1
    (step,) = report["advice"]
    assert step.startswith("give en1 a route to ")
    assert step.endswith("; or let bindsock do it: `bindsock repair --interface en1`, which shows what it would do")
    (en1,) = [u for u in report["uplinks"] if u["name"] == "en1"]
    assert en1["families"][0]["reason"] == "has no default route"
    assert run("doctor", "--no-probe", "--interface", "en0", "-4")[0] == 0


def test_a_pinned_tunnel_is_examined(kernel: SimulatedKernel, run: Run) -> None:
    status, out, _ = run("doctor", "--json", "--no-probe", "--interface", "utun4", "-4")
    report = json.loads(out)
    assert (status, report["advice"]) == (0, ["nothing: connections leave by utun4"])
    assert [u["name"] for u in report["uplinks"] if any(f["effective"] for f in u["families"])] == ["utun4"]
    kernel.change(network(LOOPBACK, TUNNEL))
    status, out, _ = run("doctor", "--json", "--no-probe", "--interface", "utun4", "-4")
    (step,) = json.loads(out)["advice"]
    assert status == 1
    assert step.startswith("give utun4 a route to ")
    assert "bindsock repair" not in step


def test_the_advice_is_about_the_pinned_interface_only(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(
        network(LOOPBACK, WIFI, WIRED, TUNNEL, "default dev utun4 metric 50", "default via 192.0.2.1 dev en0 metric 600")
    )
    _, out, _ = run("doctor", "--json", "--no-probe", "--interface", "en1", "-4")
    (step,) = json.loads(out)["advice"]
    assert step.startswith("give en1 a route to ")


def test_the_advice_names_no_destination_that_nobody_typed(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    _, out, _ = run("doctor", "--no-probe", "--json", "-4")
    assert json.loads(out)["advice"][0].startswith("give en0 a route to the Internet")


def test_the_mark_that_a_firewall_lets_pass_is_told() -> None:
    (step,) = advice(a_report(firewall={"obstacles": [{**DROP, "exempt_mark": 0xCA6C}], "failures": []}))
    assert step.endswith("; packets with the mark 0xca6c pass: with CAP_NET_ADMIN, give `--mark 0xca6c`")
