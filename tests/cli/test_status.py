from __future__ import annotations

import io
import json
import sys

import pytest

from bindsock.cli import main
from bindsock.testing.simulated import SimulatedKernel

from .conftest import Run, only_vpn


def test_the_first_line_names_the_interface_beneath_the_vpn(kernel: SimulatedKernel, run: Run) -> None:
    status, out, _ = run("status")
    assert status == 0
    assert out.splitlines()[0] == "effective interface: en0"


def test_each_family_is_told_apart_with_its_basis_and_the_tunnel_above(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("status")
    ipv4, ipv6 = (line.split() for line in out.splitlines()[2:4])
    assert ipv4[:4] == ["IPv4", "en0", "via", "192.0.2.1"]
    assert ipv4[-2:] == ["bypassing", "utun4"]
    assert ipv6[:4] == ["IPv6", "en0", "via", "2001:db8:2::1"]


def test_the_table_marks_the_effective_interface_and_tells_delegates(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("status")
    table = out.splitlines()
    assert [line.split()[1] for line in table if line.startswith("*")] == ["en0"]
    tunnel = next(number for number, line in enumerate(table) if line.split()[:2] == ["utun4", "tunnel"])
    assert table[tunnel + 1].strip() == "delegate: en0"


def test_an_expensive_interface_that_the_vpn_names_is_marked_and_believed(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("status", "-4", "--expensive", "en0")
    assert out.splitlines()[0] == "effective interface: en0"
    assert "expensive" in out


def test_on_request_it_is_not_believed(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("status", "-4", "--expensive", "en0", "--cost", "cheapest")
    assert out.splitlines()[0] == "effective interface: en1"
    assert "expensive" in out


def test_no_effective_interface_is_exit_status_1_and_says_why(kernel: SimulatedKernel, run: Run) -> None:
    kernel.change(only_vpn())
    status, out, _ = run("status", "--family", "4")
    assert status == 1
    assert out.splitlines()[0] == "effective interface: none"
    assert "en0  " in out
    assert "no default route" in out


def test_one_family_is_enough_for_exit_status_0(kernel: SimulatedKernel, run: Run) -> None:
    assert run("status", "--include", "en1")[0] == 0
    assert run("status", "--include", "en1", "-6")[0] == 1


def test_json_is_one_document_with_everything_the_text_has(kernel: SimulatedKernel, run: Run) -> None:
    status, out, err = run("status", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["effective_interface"] == "en0"
    assert found["effective"]["ipv4"]["interface"] == "en0"
    assert found["effective"]["ipv4"]["gateway"] == "192.0.2.1"
    assert found["effective"]["ipv4"]["tunnels"] == ["utun4"]
    assert {c["interface"]: c["taken"] for c in found["effective"]["ipv4"]["candidates"]}["en1"] is False
    assert found["effective"]["ipv6"]["interface"] == "en0"
    tunnel = next(i for i in found["interfaces"] if i["name"] == "utun4")
    assert tunnel == {
        "name": "utun4",
        "index": 4,
        "alternative_names": [],
        "kind": "tunnel",
        "up": True,
        "running": True,
        "mtu": 1500,
        "delegate": "en0",
        "expensive": False,
        "constrained": False,
        "addresses": [
            {
                "address": "10.66.0.2",
                "prefix_length": 24,
                "usable": True,
                "tentative": False,
                "deprecated": False,
                "temporary": False,
            }
        ],
    }


def test_json_has_only_the_families_that_were_asked_for(kernel: SimulatedKernel, run: Run) -> None:
    _, out, _ = run("status", "--json", "-6")
    assert list(json.loads(out)["effective"]) == ["ipv6"]


def test_a_pin_beats_detection(kernel: SimulatedKernel, run: Run) -> None:
    assert run("status", "--interface", "en1", "-4")[1].startswith("effective interface: en1\n")
    assert run("status", "--interface", "en7")[0] == 1


def test_one_reading_serves_the_whole_answer(kernel: SimulatedKernel, run: Run) -> None:
    run("status")
    assert kernel.readings == 1


def test_where_no_interface_is_left_it_names_the_command_that_helps(kernel: SimulatedKernel, run: Run) -> None:
    for options in (("--interface", "nope"), ("--exclude", "*")):
        assert "\nto see what to do: bindsock doctor\n" in run("status", *options)[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 200])
def test_a_narrow_terminal_gets_the_addresses_below_their_interface(
    kernel: SimulatedKernel, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["status"]) == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    if columns == 40:
        number = lines.index("* en0  wifi, up, mtu 1500")
        assert lines[number + 1 : number + 3] == ["    192.0.2.5/24", "    2001:db8:2::5/64"]


def test_on_a_narrow_terminal_a_reason_goes_on_below_itself(kernel: SimulatedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["status", "-4", "--interface", "nope"]) == 1
    lines = terminal.getvalue().splitlines()
    number = lines.index("       -  nope  is pinned, but there is")
    assert lines[number + 1] == "                no interface of that"
