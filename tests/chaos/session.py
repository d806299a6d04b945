"""A laboratory with the programs in it, which runs rounds."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import trustme

from bindsock.testing.lab import Lab, Packet, Tap, VpnMode
from tests.chaos import server
from tests.chaos.actions import BLOCKING, Action, carry_out
from tests.chaos.commanding import Process
from tests.chaos.networks import Drawing, described
from tests.chaos.observed import Observed
from tests.chaos.packets import Census, Endpoints, describe, program_of
from tests.nat64 import TRANSLATED, add_translated_address

LOOPS = ("asyncio", "uvloop")
PATIENCE = 30.0
"""Seconds within which everything must work again after the network is restored: longer than a dial without an answer takes."""
_LOOK = 0.1
_SHOWN = 10


class ProgramEnded(RuntimeError):
    """A program has ended, or no longer answers."""


class Session:
    """Programs on each event loop in a laboratory of their own.

    :param drawing: the network
    :param interval: seconds between two messages of a conversation
    :param without: kinds of conversations to leave out
    """

    def __init__(self, drawing: Drawing, *, interval: float, without: Collection[str] = ()) -> None:
        self._drawing = drawing
        self._interval = interval
        self._without = without
        self._exits = contextlib.ExitStack()
        self._programs: dict[str, Process] = {}
        self._arrived: Counter[str] = Counter()
        self._read = 0
        self._errors: IO[bytes]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self.lab = undo.enter_context(Lab(uplinks=self._drawing.uplinks, kinds=self._drawing.kinds))
            if self._drawing.nat64:
                add_translated_address(self.lab)
            self._errors = undo.enter_context(tempfile.TemporaryFile())
            directory = Path(undo.enter_context(tempfile.TemporaryDirectory()))
            authority = trustme.CA()
            authority.cert_pem.write_to_path(directory / "authority.pem")
            issued = authority.issue_cert(self.lab.server.name)
            issued.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
            with self.lab.inside("server"):
                settings: dict[str, Any] = {
                    "certificate": str(directory / "server.pem"),
                    "datagram_port": self.lab.server.udp_port if self._drawing.nat64 else None,
                    "names": self.lab.server.ipv6 if self._drawing.nat64 else None,
                }
                self._server = Process("server", json.dumps(settings), errors=self._errors.fileno())
            undo.callback(self._server.close)
            servers = {"4": self.lab.server.ipv4, "6": self.lab.server.ipv6}
            self._census = Census(
                Endpoints(
                    frozenset({*servers.values(), TRANSLATED}), self.lab.server.udp_port, server.PORTS, self.lab.vpn_server
                ),
                # What leaves by a stacked interface leaves by the one beneath, too.
                ignored=frozenset(f"{name}-base" for name in self._drawing.uplinks),
            )
            self._tap: Tap = undo.enter_context(self.lab.tap(outgoing=None))
            with self.lab.inside("host"):
                for loop in LOOPS:
                    settings = {
                        "name": loop,
                        "loop": loop,
                        "servers": servers,
                        "datagram_port": self.lab.server.udp_port,
                        "names": self.lab.server.ipv6 if self._drawing.nat64 else None,
                        "authority": str(directory / "authority.pem"),
                        "interval": self._interval,
                        "without": sorted(self._without),
                    }
                    self._programs[loop] = Process("program", json.dumps(settings), errors=self._errors.fileno())
                    undo.callback(self._programs[loop].close)
            for process in (self._server, *self._programs.values()):
                process.wait_until_ready()
            for program in self._programs.values():
                program.ask(command="start")
            self._exits = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def round(self, actions: Sequence[Action], mode: VpnMode | None, tell: Callable[[str], None]) -> Observed:
        """Carry out actions, wait until all conversations work, and end the VPN.

        :param actions: they must leave the network usable
        :param mode: the mode of the VPN
        :param tell: called with each progress message
        :raises ProgramEnded: one of the programs does not answer
        """
        try:
            return self._round(actions, mode, tell)
        except RuntimeError as error:
            raise ProgramEnded(f"{error}; standard error:\n{self._complaints()}") from error

    def _round(self, actions: Sequence[Action], mode: VpnMode | None, tell: Callable[[str], None]) -> Observed:
        start = time.monotonic()
        due = start
        for number, action in enumerate(actions, start=1):
            due += action.pause
            while (left := due - time.monotonic()) > 0:
                self._look()
                time.sleep(min(left, _LOOK))
            tell(f"{number} of {len(actions)}: {action}")
            self._look()  # before a device is removed: afterwards a packet's device is unknown
            carry_out(self.lab, action)
            due = max(due, time.monotonic())
        tell("all must go on now")
        for program in self._programs.values():
            program.ask(command="mark")
        deadline = time.monotonic() + PATIENCE
        faults: dict[str, list[str]] = {name: [] for name in self._programs}
        # Read the packets before the last reports, so that the reports count every datagram that left.
        while True:
            time.sleep(_LOOK)
            self._look()
            reports = self._reports_after(faults)
            if not any(report["stuck"] for report in reports.values()) or time.monotonic() > deadline:
                break
        observed = self._observe(actions, reports, start)
        if mode is not None and mode not in BLOCKING:
            self.lab.vpn_down()
        return observed

    def end(self) -> Observed:
        """Let the programs close everything.

        :raises ProgramEnded: one of the programs does not answer
        """
        start = time.monotonic()
        try:
            faults = {name: report["faults"] for name, report in self._reports("end").items()}
            self._look()
            return self._observe((), self._reports_after(faults), start)
        except RuntimeError as error:
            raise ProgramEnded(f"{error}; standard error:\n{self._complaints()}") from error

    def _reports(self, command: str) -> dict[str, dict[str, Any]]:
        return {name: program.ask(command=command) for name, program in self._programs.items()}

    def _reports_after(self, faults: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
        """Ask for reports, and add the earlier faults to theirs.

        :param faults: the faults by program; updated
        """
        reports = self._reports("report")
        for name, report in reports.items():
            report["faults"] = faults[name] = faults[name] + report["faults"]
        return reports

    def _look(self) -> None:
        self._census.take(self._tap.take())
        for datagram in self.lab.datagrams():
            self._arrived[program_of(datagram.payload)] += 1

    def _observe(self, actions: Sequence[Action], reports: Mapping[str, Mapping[str, Any]], start: float) -> Observed:
        told = self._server.ask(command="report")
        for report in reports.values():
            for flow, ports in report["waiting_ports"].items():
                last = [describe(packet, start) for port in ports for packet in self._census.last(port)]
                report["stuck"][flow] += "".join(f"\n      packet: {line}" for line in last or ["none"])
        self._arrived.update(told["arrived"])
        wrong = self._census.take_wrong()
        more = (f"and of {len(wrong) - _SHOWN} more connections",) if len(wrong) > _SHOWN else ()
        stories = (_told(story, count, start) for story, count in wrong[:_SHOWN])
        return Observed(
            actions=tuple(actions),
            packets=self._census.by_device(),
            wrong=(*stories, *more),
            unseen=self._tap.dropped,
            left=dict(self._census.left),
            arrived=dict(self._arrived),
            reports=reports,
            server_faults=tuple(told["faults"]),
            complaints=self._complaints(),
            network=described(self.lab) if any(report["stuck"] for report in reports.values()) else "",
        )

    def _complaints(self) -> str:
        self._errors.seek(self._read)
        text = self._errors.read()
        self._read += len(text)
        return text.decode(errors="replace")


def _told(story: Sequence[Packet], count: int, start: float) -> str:
    first, *before = (describe(packet, start) for packet in story)
    return "\n      ".join([f"{first} ({count} such)", *(f"before it: {line}" for line in before)])
