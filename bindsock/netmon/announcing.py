"""When a change is announced: a gain at once, a loss after a grace. And to whom.

:class:`Announcer` is pure and fed with times.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bindsock.model.change import Cause, Change, FamilyChange
from bindsock.model.decision import Decision, Path, path_of
from bindsock.model.network import FAMILIES

if TYPE_CHECKING:
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.listening import ChangeListener
    from bindsock.routing.effective import Decider

GRACE = 5.0


class Announcer:
    """Turns readings into changes: gains at once, losses after a grace."""

    def __init__(self, decisions: Mapping[socket.AddressFamily, Decision]) -> None:
        self._decisions = dict(decisions)
        self._paths: dict[socket.AddressFamily, Path | None] = {f: path_of(d) for f, d in decisions.items()}
        self._lost_since: dict[socket.AddressFamily, float] = {}
        self._number = 0

    def update(self, now: float, cause: Cause, decisions: Mapping[socket.AddressFamily, Decision]) -> Change | None:
        """What is to be announced of a new reading.

        :param decisions: one for each family
        """
        changes: dict[socket.AddressFamily, FamilyChange] = {}
        for family, decision in decisions.items():
            old_decision, old_path, new_path = self._decisions[family], self._paths[family], path_of(decision)
            lost = old_path is not None and new_path is None
            held = lost and now < self._lost_since.setdefault(family, now) + GRACE
            if not held:
                self._lost_since.pop(family, None)
            if held or new_path == old_path:
                decision, new_path = old_decision, old_path
            self._decisions[family], self._paths[family] = decision, new_path
            changes[family] = FamilyChange(old_decision, decision, old_path, new_path)
        if not any(change.moved for change in changes.values()):
            return None
        self._number += 1
        return Change(self._number, now, cause, changes[socket.AF_INET], changes[socket.AF_INET6])

    def deadline(self) -> float | None:
        """When a loss that is being held must be announced."""
        return min(self._lost_since.values()) + GRACE if self._lost_since else None


class Announcements:
    """The changes of one watcher, and those who listen to them."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._announcer: Announcer | None = None
        self._listeners: list[ChangeListener] = []
        self._postponed: Cause | None = None

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def start(self, decider: Decider) -> None:
        """Announce what differs from this from now on."""
        self._announcer = Announcer(_decisions(decider))
        self._postponed = None

    def add(self, listener: ChangeListener) -> None:
        """Announce to a listener from now on, but nothing that has happened already. :meth:`catch_up` comes first."""
        self._listeners.append(listener)

    def remove(self, listener: ChangeListener) -> None:
        """Announce nothing more to it. Harmless if it does not listen."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def end(self) -> None:
        """Tell all listeners that nothing more comes."""
        for listener in list(self._listeners):
            listener.end()

    def postpone(self, cause: Cause) -> None:
        """There is something to announce, but whatever sends comes first. :meth:`catch_up` announces it."""
        self._postponed = cause

    def catch_up(self, now: float, decider: Decider) -> None:
        """Announce what was postponed."""
        if self._postponed is not None:
            self.announce(now, self._postponed, decider)

    def announce(self, now: float, cause: Cause, decider: Decider) -> None:
        """Announce what a reading has changed, unless it is a loss that may be made good yet.

        :param decider: the reading's
        """
        self._postponed = None
        assert self._announcer is not None
        change = self._announcer.update(now, cause, _decisions(decider))
        if change is not None:
            self._statistics.changes += 1
            for listener in list(self._listeners):
                listener.put(change)

    def held_until(self) -> float | None:
        """When a loss that is being held must be announced."""
        return self._announcer.deadline() if self._announcer is not None else None

    def deadline(self, now: float) -> float | None:
        """When there is something to announce."""
        return now if self._postponed is not None and self._listeners else self.held_until()


def _decisions(decider: Decider) -> dict[socket.AddressFamily, Decision]:
    return {family: decider.decide(family) for family in FAMILIES}


def merged(first: Change, second: Change) -> Change | None:
    """Two changes in a row as one, ``None`` if they cancel out."""

    def family(a: FamilyChange, b: FamilyChange) -> FamilyChange:
        return FamilyChange(a.old_decision, b.new_decision, a.old_path, b.new_path)

    change = Change(second.number, second.time, second.cause, family(first.ipv4, second.ipv4), family(first.ipv6, second.ipv6))
    return change if change.ipv4.moved or change.ipv6.moved else None
