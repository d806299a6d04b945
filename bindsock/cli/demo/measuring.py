"""What is measured: by which interface each packet left, as the devices saw it, and when the kernel announced the change.

The sockets' own word is not taken for it. Packets are seen by a packet socket beside the devices; the kernel's events are
noted by a process of its own that shares nothing with the library's watcher.
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
    """Notes when the kernel announced anything, from when it is entered until it is left."""

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
            start_new_session=True,  # a terminal's Ctrl-C is not for it: it ends with its input
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
        """When the first event after a moment came, monotonic seconds."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0] and (data := os.read(self._process.stdout.fileno(), 1 << 16)):
            self._unread += data
        whole = len(self._unread) // 8 * 8
        self._times += [t for (t,) in struct.iter_unpack("d", self._unread[:whole])]
        self._unread = self._unread[whole:]
        return next((t for t in self._times if t >= moment), None)


@dataclass(frozen=True, slots=True)
class Switch:
    """Something that was done to the network."""

    label: str
    interface: str
    """To which interface."""
    usable: bool
    """Whether it is usable from then on."""
    issued: float
    """Monotonic seconds just before it was ordered."""
    event: float
    """When the kernel announced it."""
    effective: str
    """The interface that is effective from then on."""
    moves: bool
    """Whether that is another one than before."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one program sent by one protocol, and what became of it. All times are monotonic seconds."""

    program: str
    protocol: str
    sent: tuple[float, ...]
    answered: tuple[float, ...]
    """When the answers came."""
    lost: tuple[float, ...]
    """When those were sent that have no answer."""
    packets: tuple[tuple[float, str], ...]
    """When, and by which interface, each packet with data left."""
    others: Mapping[str, int]
    """Packets without data (handshakes, acknowledgements) by interface."""
    connections: int = 1
    endings: tuple[tuple[float, str], ...] = ()
    """When connections ended, and by which exception."""
    resets: int = 0
    """Resets in the tunnel: the kernel answers with them what comes for sockets that are gone, and they follow the routes."""

    def by_interface(self) -> Counter[str]:
        return Counter(interface for _, interface in self.packets)

    def on_tunnel(self) -> int:
        """All packets that went into the tunnel, with data or without."""
        return self.by_interface()[TUNNEL] + self.others.get(TUNNEL, 0)

    def delay(self, switch: Switch, until: float) -> float | None:
        """Seconds from the kernel's event to the first packet by the new interface; ``None`` if none left by it before ``until``.

        :param until: when the next switch was ordered
        """
        first = next((t for t, i in self.packets if switch.issued <= t < until and i == switch.effective), None)
        return max(0.0, first - switch.event) if first is not None else None

    def woken(self, switch: Switch, until: float) -> float | None:
        """Seconds from the kernel's event to the end of a connection, as its reader saw it, ``None`` if none ended."""
        first = next((t for t, _ in self.endings if switch.issued <= t < until), None)
        return max(0.0, first - switch.event) if first is not None else None

    def silence(self, start: float, end: float) -> float:
        """The longest time between two answers, in seconds."""
        times = [start, *self.answered, end]
        return max(after - before for before, after in itertools.pairwise(times))


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen while the network changed."""

    start: float
    end: float
    flows: tuple[Flow, ...]
    switches: tuple[Switch, ...]
    restarts: tuple[float, ...]
    """When the program that is bound by hand was started again."""
    unknown: Mapping[str, int]
    """Packets to the server that are none of the programs', by interface."""
    missed: int
    """Packets that the tap could not keep: not 0 means that the counts have holes."""
    statistics: Statistics
    """What bindsock's factory has counted itself."""

    def flow(self, program: str, protocol: str) -> Flow:
        return next(f for f in self.flows if f.program == program and f.protocol == protocol)

    def programs(self) -> list[str]:
        return list(dict.fromkeys(f.program for f in self.flows))

    def moves(self) -> list[tuple[Switch, float]]:
        """The switches that move the effective interface, each with the time of the next of them."""
        moves = [s for s in self.switches if s.moves]
        return list(zip(moves, [*(s.issued for s in moves[1:]), self.end], strict=True))


def observe(programs: Sequence[Program], packets: Iterable[Packet], *, horizon: float) -> tuple[tuple[Flow, ...], dict[str, int]]:
    """Tell whose packets they are.

    :param packets: what left the host for the server
    :param horizon: what was sent after this moment is not lost yet: its answer may be on its way
    :return: the flows, and how many packets by each interface are nobody's
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
