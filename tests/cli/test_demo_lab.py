"""The demonstration itself, once, and interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bindsock.testing.lab import available
from tests.lab.ordinary_user import python_as_nobody, skip_without_user_namespaces

OBSTACLE = available(vpn=True)
pytestmark = [pytest.mark.lab, pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))]

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


def children(process: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found |= {child} | children(child)
    return found


def failed(found: dict[str, Any]) -> list[str]:
    """The facts that did not hold, but for those about times if everything happened: a busy machine may stop any program."""
    return [f["text"] for f in found["facts"] if not f["held"] and None in f["numbers"].get("seconds", [None])]


def test_every_fact_holds_and_the_numbers_and_the_picture_agree(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    finished = subprocess.run(
        [sys.executable, "-m", "bindsock", "demo", "--json", "--svg", str(picture)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    found = json.loads(finished.stdout)
    assert failed(found) == []
    assert finished.returncode == (0 if found["held"] else 1)
    assert found["explain"]["interface"] == "wifi0"
    assert found["explain"]["tunnels"] == ["tun0"]
    assert found["loop"]["unbound"]["answered"] == 0
    assert found["loop"]["bound"]["answered"] == found["loop"]["bound"]["sent"]
    flows = {(f["program"], f["protocol"]): f for f in found["cling"]["flows"]}
    assert len(flows) == 6
    assert "tun0" not in flows["bindsock", "UDP"]["packets"]
    assert set(flows["bindsock", "UDP"]["packets"]) == {"wifi0", "eth0", "wwan0"}
    assert set(flows["plain asyncio", "UDP"]["packets"]) == {"tun0"}
    assert {e["error"] for e in flows["bindsock", "TCP"]["endings"]} == {"InterfaceChanged"}
    assert [s["effective"] for s in found["cling"]["switches"] if s["moves"]] == ["eth0", "wifi0", "wwan0", "eth0"]
    act = finished.stderr.partition("3. The cling")[2].partition("the timeline is in")[0]
    assert max(map(len, act.splitlines())) <= 80
    assert "wifi0 is switched off" in finished.stderr
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_an_ordinary_user_sees_every_fact_hold_too() -> None:
    if not os.stat("/dev/net/tun").st_mode & 0o002:
        pytest.skip("/dev/net/tun is not open to all users")
    skip_without_user_namespaces()
    finished = python_as_nobody("-m", "bindsock", "demo", "--json", timeout=110)
    assert finished.stdout, finished.stderr
    found = json.loads(finished.stdout)
    assert failed(found) == []
    assert finished.returncode == (0 if found["held"] else 1)


def test_ctrl_c_leaves_nothing_behind_and_gives_the_cursor_back() -> None:
    ours, theirs = os.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        subprocess.Popen(
            [sys.executable, "-m", "bindsock", "demo"],
            # Not in asyncio's debug mode, which reports slow callbacks on standard error.
            env={**os.environ, "TERM": "xterm-256color", "PYTHONASYNCIODEBUG": "", "PYTHONDEVMODE": ""},
            stdout=theirs,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        os.close(theirs)
        shown = b""
        while b"effective interface: wifi0" not in shown or HIDE_CURSOR not in shown:
            shown += terminal.read(1 << 16)
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := terminal.read(1 << 16):
                shown += data
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert len(started) >= 3  # the server, the two ends of the VPN, the recorder of the kernel's events
    assert [child for child in started if os.path.exists(f"/proc/{child}")] == []
