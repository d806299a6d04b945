"""Measures by which interface each packet left, and when the kernel announced each change.

It does not rely on what the sockets report. A packet socket captures packets at the devices, and a separate process, which shares
nothing with the library's watcher, records the kernel's events.
"""

from __future__ import annotations

import itertools
import os
import select
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from bindsock.cli.demo.programs import Program
    from bindsock.kernel import Kernel
    from bindsock.model.statistics import Statistics
    from bindsock.testing.lab import Packet

TUNNEL = "tun0"
_RESET = 4


class KernelEvents:
    """Records when the kernel sends events, while its ``with`` block lasts."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._times: list[float] = []
        self._unread = b""

    def __enter__(self) -> Self:
        script = str(Path(__file__).with_name("_announcements.py"))
        self._sources = self._kernel.events()
        source = self._sources[0].fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[source],
            start_new_session=True,  # Ctrl-C in the terminal must not end it: it ends with its input
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        for source in self._sources:
            source.close()

    def first_since(self, moment: float) -> float | None:
        """The time of the first event after a moment; both in monotonic seconds."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0] and (data := os.read(self._process.stdout.fileno(), 1 << 16)):
            self._unread += data
        whole = len(self._unread) // 8 * 8
        self._times += [t for (t,) in struct.iter_unpack("d", self._unread[:whole])]
        self._unread = self._unread[whole:]
        return next((t for t in self._times if t >= moment), None)


@dataclass(frozen=True, slots=True)
class Switch:
    """A change that was made to the network."""

    label: str
    interface: str
    """The interface that was changed."""
    usable: bool
    """Whether the interface is usable after the change."""
    issued: float
    """The time just before the change was ordered, in monotonic seconds."""
    event: float
    """The time of the kernel's event, in monotonic seconds."""
    effective: str
    """The effective interface after the change."""
    moves: bool
    """Whether the effective interface is another one than before."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one program sent over one protocol, and the answers. All times are monotonic seconds."""

    program: str
    protocol: str
    sent: tuple[float, ...]
    answered: tuple[float, ...]
    """The times of the answers."""
    lost: tuple[float, ...]
    """The times when unanswered messages were sent."""
    packets: tuple[tuple[float, str], ...]
    """The time and the interface of each packet with data that left."""
    others: Mapping[str, int]
    """Packets without data (handshakes, acknowledgements) by interface."""
    connections: int = 1
    endings: tuple[tuple[float, str], ...] = ()
    """The time and the exception of each connection's end."""
    resets: int = 0
    """Resets sent into the tunnel: the kernel answers packets for closed sockets with them, by the routing table."""

    def by_interface(self) -> Counter[str]:
        return Counter(interface for _, interface in self.packets)

    def on_tunnel(self) -> int:
        """The number of packets that went into the tunnel, with data or without."""
        return self.by_interface()[TUNNEL] + self.others.get(TUNNEL, 0)

    def delay(self, switch: Switch, until: float) -> float | None:
        """Seconds from the kernel's event to the first packet by the new interface; ``None`` if none left by it before ``until``.

        :param until: when the next switch was ordered
        """
        first = next((t for t, i in self.packets if switch.issued <= t < until and i == switch.effective), None)
        return max(0.0, first - switch.event) if first is not None else None

    def woken(self, switch: Switch, until: float) -> float | None:
        """Seconds from the kernel's event until a reader saw the end of its connection; ``None`` if no connection ended."""
        first = next((t for t, _ in self.endings if switch.issued <= t < until), None)
        return max(0.0, first - switch.event) if first is not None else None

    def silence(self, start: float, end: float) -> float:
        """The longest time between two answers, in seconds."""
        times = [start, *self.answered, end]
        return max(after - before for before, after in itertools.pairwise(times))


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that was measured while the network changed."""

    start: float
    end: float
    flows: tuple[Flow, ...]
    switches: tuple[Switch, ...]
    restarts: tuple[float, ...]
    """When the program that is bound by hand was restarted."""
    unknown: Mapping[str, int]
    """Packets to the server that belong to none of the programs, by interface."""
    missed: int
    """Packets that the tap missed; unless it is 0, the counts are incomplete."""
    statistics: Statistics
    """The counts of bindsock's factory."""

    def flow(self, program: str, protocol: str) -> Flow:
        return next(f for f in self.flows if f.program == program and f.protocol == protocol)

    def programs(self) -> list[str]:
        return list(dict.fromkeys(f.program for f in self.flows))

    def moves(self) -> list[tuple[Switch, float]]:
        """The switches that move the effective interface, each with the time of the next one."""
        moves = [s for s in self.switches if s.moves]
        return list(zip(moves, [*(s.issued for s in moves[1:]), self.end], strict=True))


def observe(programs: Sequence[Program], packets: Iterable[Packet], *, horizon: float) -> tuple[tuple[Flow, ...], dict[str, int]]:
    """Assign packets to programs.

    :param packets: the packets to the server that left the host
    :param horizon: messages sent after this moment do not count as lost, since their answers may still arrive
    :return: the flows, and the number of packets of no program, by interface
    """
    tags = {p.tag.encode(): p for p in programs}
    connections = {connection: p for p in programs for connection in p.reports.connections}
    udp: dict[Program, list[tuple[float, str]]] = {p: [] for p in programs}
    tcp: dict[Program, list[tuple[float, str]]] = {p: [] for p in programs}
    others: dict[Program, Counter[str]] = {p: Counter() for p in programs}
    unknown: Counter[str] = Counter()
    resets: Counter[Program] = Counter()
    for packet in packets:
        if packet.protocol == "udp":
            owner = tags.get(packet.payload.partition(b" ")[0])
        else:
            owner = connections.get((packet.source, packet.source_port))
        if owner is None:
            unknown[packet.interface] += 1
        elif packet.protocol == "udp":
            udp[owner].append((packet.time, packet.interface))
        elif packet.payload:
            tcp[owner].append((packet.time, packet.interface))
        elif packet.flags & _RESET and packet.interface == TUNNEL:
            resets[owner] += 1
        else:
            others[owner][packet.interface] += 1
    flows = []
    for p in programs:
        telemetry, reports = p.telemetry, p.reports
        lost = tuple(t for n, t in telemetry.sent.items() if n not in telemetry.answered and t <= horizon)
        answered = tuple(sorted(telemetry.answered.values()))
        flows.append(Flow(p.name, "UDP", tuple(telemetry.sent.values()), answered, lost, tuple(udp[p]), {}))
        flows.append(
            Flow(
                p.name,
                "TCP",
                tuple(reports.sent),
                tuple(reports.answered),
                tuple(t for t in reports.sent[len(reports.answered) :] if t <= horizon),
                tuple(tcp[p]),
                dict(others[p]),
                len(reports.connections),
                tuple(reports.endings),
                resets[p],
            )
        )
    return tuple(flows), dict(unknown)
