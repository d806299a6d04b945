"""``bindsock watch`` on a terminal: what a user sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from bindsock.testing.lab import Lab, available

OBSTACLE = available(vpn=True)
pytestmark = [pytest.mark.lab, pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))]

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A terminal that runs a command."""

    def __init__(self, *arguments: str, columns: int, **environment: str) -> None:
        self._ours, theirs = os.openpty()
        self.resize(columns)
        self.shown = ""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bindsock", *arguments],
                env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            )
        finally:
            os.close(theirs)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def until(self, text: str) -> str:
        """Wait for a line that contains the text. Returns the output since the last call up to the end of this line, without
        styles."""
        start = len(self._plain())
        while text not in (new := self._plain()[start:]) or not new.endswith("\n"):
            self.shown += os.read(self._ours, 65536).decode()
        return new

    def end(self) -> str:
        """Press Ctrl-C.

        :return: the last line
        """
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(self._ours, 65536):
                self.shown += data.decode()
        self.process.wait(20)
        return self._plain().splitlines()[-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _plain(self) -> str:
        return _STYLE.sub("", self.shown).replace("\r\n", "\n")


Start = Callable[..., Terminal]


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, columns: int = 80, **environment: str) -> Terminal:
            terminal = Terminal(*arguments, columns=columns, **environment)
            stack.callback(terminal.close)
            return terminal

        yield begin


def test_it_shows_the_state_then_changes_in_the_present_width_and_ends_cleanly(lab: Lab, start: Start) -> None:
    lab.vpn_up("metric")
    terminal = start("watch", "-4", columns=60)
    state = terminal.until("- lo     is the loopback")
    assert "IPv4: wifi0, bypassing tun0\n    + wifi0  default route via 10.1.0.1, metric 600\n" in state
    assert "    - eth0   usable (default route via 10.2.0.1, metric\n             700), but wifi0 has metric 600\n" in state
    assert "- tun0   is a tunnel" in state
    terminal.resize(40)
    lab.down("wifi0")
    change = terminal.until("- lo     is the loopback")
    assert "IPv4: wifi0 → eth0, bypassing tun0" in change
    assert "    + eth0   default route via 10.2.0.1,\n             metric 700\n" in change
    assert "- wifi0  is down" in change
    last = terminal.end()
    assert terminal.process.returncode == 130
    assert re.fullmatch(r"(\^C)?\r?\d\d:\d\d:\d\d\.\d{3}  ended after 1 change", last)


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_is_left_out_where_it_is_not_wanted(start: Start, environment: dict[str, str], coloured: bool) -> None:
    terminal = start("watch", "-4", **environment)
    terminal.until("is the loopback")
    colours = re.findall(r"\x1b\[(?:\d+;)*3[0-7]", terminal.shown)
    assert bool(colours) is coloured
    assert not {c[-2:] for c in colours} & {"31", "32"}, "red and green look the same to many"
    assert "IPv4: wifi0" in terminal.shown


def test_its_json_is_the_same_on_a_terminal(start: Start) -> None:
    terminal = start("watch", "-4", "--json")
    assert terminal.until("}").startswith('{"event": "state"')
    assert "\x1b" not in terminal.shown
