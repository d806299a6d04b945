"""Runs the streaming program while the network changes, and compares its report with the laboratory's counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindsock.testing.lab import Lab
from tests.lab.streaming import overflows

PROGRAM = Path(__file__).with_name("streaming.py")
PATIENCE = 20.0


def overflows_at_server(lab: Lab) -> int:
    """The number of datagrams that the kernel dropped because the server did not read them in time."""
    with lab.inside("server"):
        return overflows()


@dataclass
class Outcome:
    """The report of the streaming program, and the laboratory's counts."""

    sent: int
    replies: int
    overflows: int
    """Replies that the kernel dropped, since the busy machine did not let the program read them in time."""
    errors: list[str]
    statistics: dict[str, Any]
    arrived: set[int]
    left_by: dict[str, int]
    """The number of packets that each uplink's device has sent."""
    dropped: int
    """The number of packets that the uplinks' devices have dropped."""
    missed: int
    """Datagrams that the kernel dropped at the server, since the busy machine did not let it read them in time."""

    def told(self) -> str:
        """The message for a failed test."""
        dropped = f"dropped {self.dropped} and {self.missed}"
        return f"missing {self._ranges()} of {self.sent}; {self.statistics}; {self.left_by}; {dropped}"

    def _ranges(self) -> str:
        ranges: list[list[int]] = []
        for number in sorted(self.missing):
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        return ", ".join(f"{first}-{last}" for first, last in ranges)

    @property
    def missing(self) -> set[int]:
        return set(range(self.sent)) - self.arrived


class Streaming:
    """Runs the program while the network changes."""

    def __init__(self, lab: Lab, loop_name: str, user: str = "-", rate: int = 1000) -> None:
        self.lab = lab
        environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
        arguments = [lab.server.ipv4, str(lab.server.udp_port), str(rate), loop_name, user]
        lab.datagrams()
        self.overflows = overflows_at_server(lab)
        self.before = {name: lab.counters(name) for name in lab.uplinks}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def wait_until_used(self, name: str, count: int = 50) -> None:
        """Wait until an uplink's device has sent ``count`` more packets."""
        before, deadline = self.lab.counters(name).tx_packets, time.monotonic() + PATIENCE
        while self.lab.counters(name).tx_packets < before + count:
            assert time.monotonic() < deadline, f"nothing leaves by {name}"
            time.sleep(0.005)

    def finish(self, *, all_replies: bool = False) -> Outcome:
        """End the program, and wait until everything has arrived that it does not count as lost or waiting.

        :param all_replies: wait until the program has received as many replies as it has sent datagrams
        """
        output, _ = self.process.communicate("all replies" if all_replies else "", timeout=60)
        told = json.loads(output)
        lost = sum(told["statistics"][name] for name in ("lost", "waiting", "lost_on_device"))
        missed = overflows_at_server(self.lab) - self.overflows
        arrived: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while len(arrived) < told["sent"] - lost - missed and time.monotonic() < deadline:
            time.sleep(0.01)
            missed = overflows_at_server(self.lab) - self.overflows
            arrived |= {int(d.payload) for d in self.lab.datagrams()}
        now = {name: self.lab.counters(name) for name in self.lab.uplinks}
        left_by = {name: now[name].tx_packets - self.before[name].tx_packets for name in now}
        dropped = sum(now[name].tx_dropped - self.before[name].tx_dropped for name in now)
        return Outcome(arrived=arrived, left_by=left_by, dropped=dropped, missed=missed, **told)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
