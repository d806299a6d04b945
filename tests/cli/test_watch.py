from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from bindsock.cli import main, watch
from bindsock.model.decision import Decision
from bindsock.model.network import Network
from bindsock.testing import SimulatedKernel, interface, network

from .conftest import LOOPBACK, WIFI, WIRED, Run, beneath_vpn, only_vpn


def wired_only() -> Network:
    return network(LOOPBACK, WIRED, "default via 198.51.100.1 dev en1 metric 700")


def elsewhere() -> Network:
    """Another Wi-Fi network: the same interface with another address and gateway."""
    wifi = interface("2: en0 wifi 203.0.113.77/24")
    return network(LOOPBACK, wifi, "default via 203.0.113.1 dev en0 metric 600")


def created_anew() -> Network:
    wifi = interface("9: en0 wifi 203.0.113.77/24")
    return network(LOOPBACK, wifi, "default via 203.0.113.1 dev en0 metric 600")


@pytest.fixture
def play(kernel: SimulatedKernel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Change to the next network as soon as the current one is reported."""

    def begin(*networks: Network) -> None:
        coming: Iterator[Network] = iter(networks)

        def then_next(method: Any) -> Any:
            def reported(self: Any, *arguments: Any) -> None:
                method(self, *arguments)
                following = next(coming, None)
                if following is not None:
                    kernel.change(following)

            return reported

        for reporter in (watch.JsonReporter, watch.TextReporter):
            monkeypatch.setattr(reporter, "state", then_next(reporter.state))
            monkeypatch.setattr(reporter, "change", then_next(reporter.change))

    return begin


def test_the_state_comes_first_and_then_each_change_on_a_line_of_its_own(play: Any, run: Run) -> None:
    play(wired_only(), beneath_vpn())
    status, out, err = run("watch", "--json", "--count", "2", "-4")
    state, first, second = map(json.loads, out.splitlines())
    assert (status, err) == (0, "")
    assert (state["event"], state["ipv4"]["decision"]["interface"]) == ("state", "en0")
    assert (first["event"], first["number"], first["cause"]) == ("change", 1, "events")
    assert (first["ipv4"]["from"]["interface"], first["ipv4"]["to"]["interface"]) == ("en0", "en1")
    assert (second["number"], second["ipv4"]["to"]["interface"]) == (2, "en0")
    assert "ipv6" not in state | first | second


def test_a_change_tells_what_was_taken_and_refused_and_why(play: Any, run: Run) -> None:
    play(wired_only(), beneath_vpn())
    _, out, _ = run("watch", "--count", "2", "-4")
    last = out[out.rindex("change 2") :]
    assert "IPv4: en1 → en0, bypassing utun4" in last
    assert "+ en0    utun4 is delegated to it, default route via 192.0.2.1" in last
    assert "- utun4  is a tunnel" in last


def test_the_same_interface_elsewhere_is_a_change_with_what_differs(play: Any, run: Run) -> None:
    play(elsewhere())
    _, out, _ = run("watch", "--count", "1", "-4")
    assert "IPv4: en0, address 192.0.2.5 → 203.0.113.77, gateway 192.0.2.1 → 203.0.113.1" in out


def test_an_interface_that_was_created_anew_is_told_by_its_index(play: Any, run: Run) -> None:
    play(elsewhere(), created_anew())
    _, out, _ = run("watch", "--count", "2", "-4")
    assert "IPv4: en0, created anew (index 2 → 9)" in out


def test_a_change_of_the_other_family_is_not_reported(kernel: SimulatedKernel, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ipv6 = (WIFI, "default via 2001:db8:2::1 dev en0 metric 600")
    ipv4_moved = network(LOOPBACK, WIRED, "default via 198.51.100.1 dev en1", *ipv6)
    ipv6_moved = network(LOOPBACK, WIRED, "default via 198.51.100.1 dev en1", WIFI, "default via 2001:db8:2::9 dev en0")
    state = watch.JsonReporter.state

    def then_change(self: watch.JsonReporter, decisions: Sequence[Decision]) -> None:
        state(self, decisions)
        kernel.change(ipv4_moved)
        asyncio.get_running_loop().call_later(0.3, kernel.change, ipv6_moved)

    monkeypatch.setattr(watch.JsonReporter, "state", then_change)
    status, out, _ = run("watch", "--json", "--count", "1", "-6")
    (_, change) = map(json.loads, out.splitlines())
    assert status == 0
    assert change["ipv6"]["to"]["gateway"] == "2001:db8:2::9"
    assert "ipv4" not in change


def test_a_start_without_network_is_reported_as_such(kernel: SimulatedKernel, play: Any, run: Run) -> None:
    kernel.change(only_vpn())
    play(beneath_vpn())
    status, out, _ = run("watch", "--count", "1", "-4")
    assert status == 0
    assert "IPv4: no effective interface" in out
    assert "IPv4: none → en0" in out


def test_an_encoding_without_arrows_is_no_traceback(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play(wired_only())
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    status = main(["watch", "--count", "1", "-4"])
    assert status == 0
    assert b"IPv4: en0 ? en1" in out.getvalue()


def test_nothing_is_left_open(play: Any, kernel: SimulatedKernel, run: Run) -> None:
    play(wired_only())
    run("watch", "--count", "1", "-4")
    assert kernel.open_sources == 0


def test_ctrl_c_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bindsock", "watch", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "state"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert all(json.loads(line)["event"] == "change" for line in out.splitlines())
