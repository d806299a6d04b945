"""``bindsock demo HOST`` on the machine itself, without a laboratory."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bindsock.cli.demo import command
from bindsock.testing.lab import LabUnavailable
from bindsock.testing.simulated import SimulatedKernel

from .conftest import Run, only_vpn


@pytest.fixture
def port() -> Iterator[str]:
    """The port of a listening socket on this machine. The system accepts the connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_a_connection_is_shown_beside_a_plain_one(kernel: SimulatedKernel, port: str, run: Run) -> None:
    status, out, _ = run("demo", "127.0.0.1", "--port", port)
    assert status == 0
    assert "effective interface: en0" in out
    assert f"127.0.0.1 port {port}" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("bindsock ", "asyncio "))]
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("bindsock", "nothing", "127.0.0.1", "lo0"),
        ("asyncio", "nothing", "127.0.0.1", "lo0"),
    ]
    assert "all 2 facts held" in out


def test_a_refused_connection_is_a_fact_that_did_not_hold(kernel: SimulatedKernel, port: str, run: Run) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        status, out, err = run("demo", "127.0.0.1", "--port", str(unheard.getsockname()[1]), "--json")
    found = json.loads(out)
    assert status == 1
    assert found["held"] is False
    assert [f["held"] for f in found["facts"]] == [True, False]
    assert found["connections"][0]["error"]
    assert "effective interface: en0" in err


def test_without_an_effective_interface_nothing_is_held(kernel: SimulatedKernel, port: str, run: Run) -> None:
    kernel.change(only_vpn())
    status, out, _ = run("demo", "203.0.113.9", "--port", port)
    assert status == 1
    assert "✗ there is an effective interface" in out


def test_where_there_are_no_namespaces_the_machine_is_shown_without_a_host_too(
    kernel: SimulatedKernel, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "_NAMESPACES", tmp_path / "none")
    status, out, _ = run("demo")
    assert status == 0
    assert "effective interface: en0" in out
    assert "bindsock demo example.com" in out


def test_a_laboratory_that_cannot_be_built_is_exit_status_3_with_the_reason(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise LabUnavailable("this process is not root and may not make user namespaces: Operation not permitted")

    (tmp_path / "net").touch()
    monkeypatch.setattr(command, "_NAMESPACES", tmp_path / "net")
    monkeypatch.setattr(command, "enter_user_namespace", refuse)
    status, out, err = run("demo")
    assert (status, out) == (3, "")
    assert err.startswith("bindsock: this process is not root and may not make user namespaces: Operation not permitted; ")


def test_a_picture_that_cannot_be_written_is_noticed_before_anything_runs(run: Run, tmp_path: Path) -> None:
    status, _, err = run("demo", "--svg", str(tmp_path / "missing" / "timeline.svg"))
    assert status == 2
    assert "no such directory" in err


def test_a_picture_of_the_machine_itself_is_a_usage_error(kernel: SimulatedKernel, run: Run, tmp_path: Path) -> None:
    assert run("demo", "127.0.0.1", "--svg", str(tmp_path / "timeline.svg"))[0] == 2
