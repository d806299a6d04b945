"""Runs rounds of chaos until the time is over, and collects their outcome."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bindsock.testing.lab import VpnMode
from tests.chaos.actions import Action, plan, with_end
from tests.chaos.networks import DRAWN, NETWORKS, Drawing, draw
from tests.chaos.observed import Observed, failures, growth, left_behind, packets, vanished
from tests.chaos.session import ProgramEnded, Session
from tests.chaos.shrinking import shortest_prefix


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the command line."""

    seed: int
    seconds: float
    """Seconds during which new rounds start."""
    modes: tuple[VpnMode | None, ...]
    """The modes of the VPN, one for each round in turn; ``None`` is no VPN."""
    networks: tuple[str, ...] = ()
    """The networks, one for all the modes in turn; if there is none, one with two or three uplinks, depending on the seed."""
    round_seconds: float = 20.0
    """The duration of a round's actions in seconds."""
    only: int | None = None
    """The number of the only round to run; ``None`` for all."""
    prefix: int | None = None
    """The number of actions to run of each round, from the first; ``None`` for all."""
    interval: float = 0.025
    """Seconds between two messages of a conversation."""
    without: frozenset[str] = frozenset()
    """Kinds of conversations to leave out, for example ``multipath``."""
    shrink: bool = True
    keep_going: bool = False
    """Whether to continue after a failed round."""

    def network(self, number: int) -> str:
        """The name of the network in a round."""
        networks = self.networks or (random.Random(self.seed).choice(("two", "three")),)
        return networks[self._turn(number) % len(networks)]

    def drawing(self, number: int) -> Drawing:
        """The network in a round. What is drawn is another one for each turn of the modes."""
        name = self.network(number)
        return draw(f"{self.seed}/{self._turn(number)}") if name == DRAWN else NETWORKS[name]

    def _turn(self, number: int) -> int:
        """How often all modes have had their turn."""
        return (number - 1) // len(self.modes)

    def mode(self, number: int) -> VpnMode | None:
        """How the VPN takes the default route in a round."""
        return self.modes[(number - 1) % len(self.modes)]

    def actions(self, number: int) -> list[Action]:
        """The actions of a round, without those that make the network usable again."""
        uplinks = self.drawing(number).uplinks
        actions = plan(f"{self.seed}/{number}", uplinks, self.mode(number), self.round_seconds)
        return actions[: self.prefix]

    def title(self, number: int) -> str:
        """The number of a round, its network and the mode of its VPN."""
        name = self.network(number)
        network = f"{name} with {self.drawing(number)}" if name == DRAWN else name
        return f"round {number} (network {network}, {self.mode(number) or 'no VPN'})"

    def session(self, number: int) -> Session:
        """Programs in the network of a round."""
        return Session(self.drawing(number), interval=self.interval, without=self.without)


@dataclass(frozen=True, slots=True)
class Failed:
    """A round with faults."""

    number: int
    texts: tuple[str, ...]
    actions: tuple[Action, ...]
    prefix: int | None = None
    """The number of actions, from the first, that still fail; ``None`` if this was not searched for."""


@dataclass(slots=True)
class Outcome:
    """The outcome of all rounds."""

    rounds: int = 0
    failed: list[Failed] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)
    """What grew from round to round, or was still held at the end."""
    packets: dict[str, dict[str, int]] = field(default_factory=dict)
    accepted: int = 0
    sent: int = 0
    waiting: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    lost_on_device: int = 0
    vanished: int = 0
    """The number of datagrams that were counted as sent but left by no device."""
    arrived: int = 0
    unseen: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """The number of errors that programs must expect, by conversation and type."""
    resident: dict[str, list[int]] = field(default_factory=dict)
    """The programs' memory in kilobytes at the end of each round."""
    by_kind: dict[str, dict[str, int]] = field(default_factory=dict)
    """By network and mode of the VPN: the number of rounds, of failed ones, of actions, and of packets that left."""

    @property
    def held(self) -> bool:
        return not self.failed and not self.lasting

    def add_round(self, kind: str, **counts: int) -> None:
        """Add to the counts of rounds of one kind."""
        counted = self.by_kind.setdefault(kind, dict.fromkeys(("rounds", "failed", "actions", "packets"), 0))
        for name, count in counts.items():
            counted[name] += count

    def add(self, observed: Observed) -> None:
        """Add the counts of a session at its end."""
        for interface, kinds in observed.packets.items():
            for kind, count in kinds.items():
                self.packets.setdefault(interface, {})
                self.packets[interface][kind] = self.packets[interface].get(kind, 0) + count
        self.arrived += sum(observed.arrived.values())
        self.unseen += observed.unseen
        self.vanished += sum(vanished(observed).values())
        for report in observed.reports.values():
            self._add_counted(report)

    def _add_counted(self, report: Mapping[str, Any]) -> None:
        counted = report["statistics"]
        self.accepted += report["accepted"]
        self.sent += sum(counted["sent"].values())
        self.waiting += counted["waiting"]
        self.lost_on_device += counted["lost_on_device"]
        for reason, count in counted["lost_by"].items():
            self.lost[reason] = self.lost.get(reason, 0) + count
        for flow, errors in report["errors"].items():
            for name, count in errors.items():
                key = f"{flow.rpartition('-')[0]}: {name}"
                self.errors[key] = self.errors.get(key, 0) + count


def run(settings: Settings, tell: Callable[[str], None], outcome: Outcome, show: Callable[[str], None]) -> None:
    """Run the rounds.

    :param tell: called with each progress message
    :param show: called with a description of each failed round at once
    :param outcome: updated during the run, so that it is there after Ctrl-C
    """
    deadline = time.monotonic() + settings.seconds
    numbers = iter((settings.only,)) if settings.only is not None else itertools.count(1)
    for number in _until(deadline, numbers):
        same = _same_network(settings, itertools.chain((number,), _until(deadline, numbers)))
        failed = _session(settings, number, same, tell, outcome)
        if failed is None:
            continue
        show("\n  ".join([f"{settings.title(failed.number)} failed:", *failed.texts]))
        if settings.shrink and settings.prefix is None:
            failed = dataclasses.replace(failed, prefix=_shortest(settings, failed, tell))
        outcome.failed.append(failed)
        if not settings.keep_going:
            return


def _until(deadline: float, numbers: Iterator[int]) -> Iterator[int]:
    """The first number in any case, and the others until the deadline."""
    for number in numbers:
        yield number
        if time.monotonic() >= deadline:
            return


def _same_network(settings: Settings, numbers: Iterator[int]) -> Iterator[int]:
    """The numbers up to the last one before the network changes."""
    for number in numbers:
        yield number
        if settings.drawing(number + 1) != settings.drawing(number):
            return


def _session(
    settings: Settings, first: int, numbers: Iterator[int], tell: Callable[[str], None], outcome: Outcome
) -> Failed | None:
    """Run rounds with the same programs in the network of the first one, until one fails."""
    reports: list[Mapping[str, Mapping[str, Any]]] = []
    observed: Observed | None = None
    try:
        with settings.session(first) as session:
            for number in numbers:
                actions = settings.actions(number)
                kind = f"{settings.network(number)}, {settings.mode(number) or 'no VPN'}"
                outcome.rounds += 1
                outcome.add_round(kind, rounds=1)
                before = packets(observed)
                try:
                    observed = _round(session, settings, number, actions, tell)
                except ProgramEnded as ended:
                    outcome.add_round(kind, failed=1)
                    return Failed(number, (str(ended),), tuple(actions))
                texts = failures(observed)
                outcome.add_round(kind, failed=bool(texts), actions=len(observed.actions), packets=packets(observed) - before)
                if texts:
                    return Failed(number, tuple(texts), tuple(actions))
                reports.append(observed.reports)
                for name, report in observed.reports.items():
                    outcome.resident.setdefault(name, []).append(report["resident"])
            tell("the programs close everything")
            try:
                observed = session.end()
            except ProgramEnded as ended:
                outcome.lasting.append(str(ended))
            else:
                outcome.lasting += [*growth(reports), *left_behind(observed.reports), *failures(observed)]
    finally:
        if observed is not None:
            outcome.add(observed)
    return None


def _round(session: Session, settings: Settings, number: int, actions: Sequence[Action], tell: Callable[[str], None]) -> Observed:
    mode, title = settings.mode(number), settings.title(number)
    uplinks = settings.drawing(number).uplinks
    return session.round(with_end(actions, uplinks, mode), mode, lambda text: tell(f"{title}: {text}"))


def _shortest(settings: Settings, failed: Failed, tell: Callable[[str], None]) -> int | None:
    """Find the shortest beginning of the round that still fails. Each try has its own laboratory."""

    def fails(length: int) -> bool:
        tell(f"round {failed.number} again, the first {length} actions")
        with settings.session(failed.number) as session:
            try:
                return bool(failures(_round(session, settings, failed.number, failed.actions[:length], tell)))
            except ProgramEnded:
                return True

    return shortest_prefix(len(failed.actions), fails)
