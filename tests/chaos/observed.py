"""The observations of a round, and the faults among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.actions import Action

_GROWN_BYTES = 8 << 10
"""Kilobytes by which a program may grow, in addition to a fifth of its size."""
_GROWN_DESCRIPTORS = 8
FEWEST = 9
"""The minimum number of rounds that shows growth: a program also grows as it starts."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The observations of a round. All counts are since the start of the programs."""

    actions: tuple[Action, ...]
    packets: Mapping[str, Mapping[str, int]]
    """The number of packets that left, by device and kind."""
    wrong: tuple[str, ...]
    """Packets that left by the wrong device, or whose kind is unknown."""
    unseen: int
    """The number of packets that the tap missed."""
    left: Mapping[tuple[str, str], int]
    """The number of datagrams that the tap saw leave, by program and device."""
    arrived: Mapping[str, int]
    """The number of datagrams that the server received, by program."""
    reports: Mapping[str, Mapping[str, Any]]
    """The report of each program: see :meth:`tests.chaos.program.Program.report`."""
    server_faults: tuple[str, ...] = ()
    complaints: str = ""
    """The standard error of all processes."""
    network: str = ""
    """The network and its connections, for a person to read, if a conversation was not answered in time."""


def failures(observed: Observed) -> list[str]:
    """The faults, one sentence each."""
    found = [f"a packet that should not have left: {text}" for text in observed.wrong]
    found += [f"the server: {text}" for text in observed.server_faults]
    for name, report in observed.reports.items():
        found += [f"{name}: {text}" for text in report["faults"]]
        found += [
            f"{name}: {flow} was not answered once the network was whole again ({state})"
            for flow, state in report["stuck"].items()
        ]
        found += [f"{name}: {text}" for text in _of_the_sums(observed, name, report)]
    found += [f"standard error: {line}" for line in observed.complaints.splitlines()[-5:]]
    if observed.network:
        found.append(f"the network at that time:\n    {observed.network}")
    return found


def _of_the_sums(observed: Observed, name: str, report: Mapping[str, Any]) -> list[str]:
    counted = report["statistics"]
    sent: dict[str, int] = counted["sent"]
    found = []
    total = sum(sent.values()) + counted["waiting"] + counted["lost"]
    if total != report["accepted"]:
        found.append(
            f"{report['accepted']} datagrams were accepted, and {total} are counted: sent {sent}, waiting {counted['waiting']}, "
            f"lost {counted['lost']}"
        )
    if sum(counted["lost_by"].values()) != counted["lost"]:
        found.append(f"{counted['lost']} datagrams are lost, but by reason {counted['lost_by']}")
    if sent.get("unbound"):
        found.append(f"{sent['unbound']} datagrams were sent unbound")
    if not observed.unseen:
        for (program, interface), count in observed.left.items():
            if program == name and interface and count > sent.get(interface, 0):
                found.append(f"{count} datagrams left by {interface}, and {sent.get(interface, 0)} are counted")
    return found


def left_behind(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the programs still hold after they have closed everything.

    :param reports: the last report of each program
    """
    found = []
    for name, report in reports.items():
        if report["descriptors"] > report["resting"]:
            opened = "; ".join(report["opened"])
            found.append(f"{name}: {report['descriptors'] - report['resting']} descriptors are left, of these: {opened}")
        named = [task for task in report["tasks"] if not task.startswith("Task-1")]
        if named:
            found.append(f"{name}: tasks are left: {', '.join(named)}")
    return found


def growth(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The numbers that grow from round to round: the minimum of the last third is above the maximum of the first third.

    :param rounds: the reports at the end of each round, of the same programs
    """
    if len(rounds) < FEWEST:
        return []
    third = len(rounds) // 3
    found = []
    for name in rounds[0]:
        for key, share, more in (("resident", 1.2, _GROWN_BYTES), ("descriptors", 1.0, _GROWN_DESCRIPTORS)):
            first = max(reports[name][key] for reports in rounds[:third])
            last = min(reports[name][key] for reports in rounds[-third:])
            if last > first * share + more:
                found.append(f"{name}: {key} grew from {first} to {last} in {len(rounds)} rounds")
    return found


def packets(observed: Observed | None) -> int:
    """The number of packets that have left."""
    return sum(sum(kinds.values()) for kinds in observed.packets.values()) if observed is not None else 0


def vanished(observed: Observed) -> dict[str, int]:
    """The number of datagrams, by program, that are counted as sent but left by no device: a neighbour did not answer, for
    example.

    Most of the datagrams in ``lost_on_device`` did leave by a device.
    """
    result = {}
    for name, report in observed.reports.items():
        counted = report["statistics"]
        left = sum(count for (program, _), count in observed.left.items() if program == name)
        result[name] = sum(counted["sent"].values()) - left
    return result
