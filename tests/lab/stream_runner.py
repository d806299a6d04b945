"""Runs the streaming program while the network changes, and compares its report with the laboratory's counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindsock.testing.lab import Lab

PROGRAM = Path(__file__).with_name("streaming.py")


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

    def told(self) -> str:
        """The message for a failed test."""
        return f"{sorted(self.missing)[:9]}... of {self.sent}; {self.statistics}; {self.left_by}; dropped {self.dropped}"

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

    def finish(self) -> Outcome:
        output, _ = self.process.communicate("", timeout=30)
        told = json.loads(output)
        arrived = {int(d.payload) for d in self.lab.datagrams()}
        now = {name: self.lab.counters(name) for name in self.lab.uplinks}
        left_by = {name: now[name].tx_packets - self.before[name].tx_packets for name in now}
        dropped = sum(now[name].tx_dropped - self.before[name].tx_dropped for name in now)
        return Outcome(arrived=arrived, left_by=left_by, dropped=dropped, **told)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
