"""``bindsock doctor`` in the laboratory, on replayed changes of real VPN programs, with and without privileges."""

from __future__ import annotations

import json
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from bindsock.cli.doctor import system
from bindsock.cli.doctor.firewall import from_iptables
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.linux.namespaces import as_nobody
from tests.vpn.machine import missing
from tests.vpn.recorded import DIRECTORY, needed, replayed

if TYPE_CHECKING:
    from bindsock.testing.lab import Lab
    from tests.cli.conftest import Run

pytestmark = pytest.mark.lab

RECORDED = {
    "wg-quick": ("wg0", "wg-quick"),
    "wg-quick-ipv6-endpoint": ("wg0", "wg-quick"),
    "wg-quick-halves": ("wg0", "WireGuard"),
    "wg-quick-table-off": ("wg0", "WireGuard"),
    "openvpn-static-def1": ("tun0", "OpenVPN"),
    "openvpn-static-replace": ("tun0", "OpenVPN"),
    "openvpn-tls": ("tun0", "OpenVPN"),
    "openvpn-tls-tap": ("tap0", "OpenVPN"),
    "openconnect": ("tun0", "openconnect"),
    "tinc": ("tinc0", "tinc"),
    "n2n": ("n2n0", "n2n"),
    "charon-libipsec": ("ipsec0", "strongSwan"),
    "wg-quick-drop": ("wg0", "wg-quick"),
}
"""By recording: the device that has the default route, and the program's name."""


def doctor(run: Run, lab: Lab, *arguments: str) -> tuple[int, dict[str, Any]]:
    status, out, err = run("doctor", "--json", "--port", str(lab.server.tcp_port), *arguments)
    assert err == ""
    return status, json.loads(out)


@pytest.mark.parametrize("name", RECORDED)
def test_a_program_is_recognised_by_what_it_did(vpn: None, lab: Lab, run: Run, name: str) -> None:
    if (reason := missing(*needed(name))) is not None:
        pytest.skip(reason)
    device, program = RECORDED[name]
    with replayed(name):
        _, report = doctor(run, lab, "--no-probe")
    assert report["default"][0]["interface"] == device
    assert report["default"][0]["tunnel"]
    assert any(guess["program"].startswith(program) for guess in report["programs"]), report["programs"]


def test_without_a_vpn_nothing_is_found_and_nothing_is_to_do(lab: Lab, run: Run) -> None:
    status, report = doctor(run, lab, lab.server.ipv4)
    assert status == 0
    assert report["programs"] == []
    assert report["advice"] == ["nothing: connections leave by wifi0"]
    assert report["failures"] == []


def test_each_uplink_and_family_is_probed_beneath_the_vpn(vpn: None, lab: Lab, run: Run) -> None:
    lab.vpn_up("metric")
    with nothing_through_the_tunnel(lab, "tun0"):
        for host, addresses in ((lab.server.ipv4, "IPv4"), (lab.server.ipv6, "IPv6")):
            status, report = doctor(run, lab, host)
            assert status == 0
            assert [(p["interface"], p["family"], p["tcp"]["error"]) for p in report["probes"]] == [
                ("wifi0", addresses, None),
                ("eth0", addresses, None),
            ]
            assert [lab.interface_of(p["tcp"]["source"]) for p in report["probes"]] == ["wifi0", "eth0"]


def test_an_uplink_that_the_vpn_left_without_a_route_has_a_cure_first(vpn: None, lab: Lab, run: Run) -> None:
    lab.vpn_up("replace")
    status, report = doctor(run, lab, lab.server.ipv4)
    assert status == 1
    assert "it has replaced all others" in report["default"][0]["how"]
    assert f"via {lab.gateway('wifi0')} dev wifi0" in report["advice"][0], "the VPN's host route names the gateway"
    assert "bindsock repair" in report["advice"][0]


@pytest.mark.skipif(shutil.which("iptables-restore") is None, reason="iptables is not installed")
@pytest.mark.parametrize(("name", "verdict"), [("wg-quick-drop", "drop"), ("wg-quick-reject", "reject")])
def test_a_kill_switch_is_found_and_not_got_around(vpn: None, lab: Lab, run: Run, name: str, verdict: str) -> None:
    with replayed(name):
        status, report = doctor(run, lab, "--timeout", "1", lab.server.ipv4)
    assert status == 1
    assert {(o["interface"], o["verdict"], o["certain"]) for o in report["firewall"]["obstacles"]} == {
        ("wifi0", verdict, True),
        ("eth0", verdict, True),
    }
    assert "does not circumvent it" in report["advice"][0]


def test_a_rule_that_lets_the_mark_pass_is_no_obstacle(lab: Lab, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = from_iptables((DIRECTORY / "wg-quick-drop.iptables").read_text(), socket.AF_INET)
    monkeypatch.setattr(system, "firewall", lambda: (chains, []))
    for options, interfaces in (((), ["wifi0", "eth0"]), (("--mark", "0xca6c"), [])):
        _, report = doctor(run, lab, "--no-probe", *options)
        assert [o["interface"] for o in report["firewall"]["obstacles"]] == interfaces


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
def test_a_redirect_of_nft_is_found(vpn: None, lab: Lab, run: Run) -> None:
    with replayed("sshuttle-nft"):
        _, report = doctor(run, lab, "--no-probe")
    assert {o["verdict"] for o in report["firewall"]["obstacles"]} == {"redirect"}


def test_a_strict_filter_is_found(lab: Lab, run: Run) -> None:
    lab.ip("link", "show", "wifi0")
    with open("/proc/sys/net/ipv4/conf/eth0/rp_filter", "w", encoding="ascii") as file:
        file.write("1")
    _, report = doctor(run, lab, "--no-probe")
    assert [u["strict_filter"] for u in report["uplinks"]] == [False, True]
    assert any("net.ipv4.conf.eth0.rp_filter" in step for step in report["advice"])


def test_nobody_gets_the_report_and_is_told_what_is_missing(vpn: None, lab: Lab) -> None:
    lab.vpn_up("policy")
    port, host = lab.server.tcp_port, lab.server.ipv4

    def report() -> tuple[int, str]:
        import contextlib
        import io

        from bindsock.cli import main

        with contextlib.redirect_stdout(io.StringIO()) as output:
            status = main(["doctor", "--json", "--port", str(port), host])
        return status, output.getvalue()

    status, out = as_nobody(report)
    said = json.loads(out)
    assert status == 0
    assert said["capabilities"] == []
    assert said["default"][0]["interface"] == "tun0"
    assert [g["program"] for g in said["programs"]] == ["wg-quick"]
    assert [p["tcp"]["error"] for p in said["probes"]] == [None, None]
    if shutil.which("nft") or shutil.which("iptables-save"):
        assert said["firewall"]["failures"]


def test_a_redacted_report_has_none_of_the_addresses(vpn: None, lab: Lab, run: Run) -> None:
    lab.vpn_up("replace")
    status, out, _ = run("doctor", "--redact", "--port", str(lab.server.tcp_port), lab.server.ipv4)
    assert status == 1
    for name in ("wifi0", "eth0"):
        assert lab.address(name) not in out
        assert lab.gateway(name) not in out
    assert lab.server.ipv4 not in out
    assert "what to do" in out
