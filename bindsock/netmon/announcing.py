"""Announces path changes to listeners: a new path at once, a lost path after a grace period.

:class:`Announcer` is pure; the caller passes the time.
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
"""Seconds after which a lost path is announced."""


class Announcer:
    """Turns readings into path changes: new paths at once, lost paths after :data:`GRACE`."""

    def __init__(self, decisions: Mapping[socket.AddressFamily, Decision]) -> None:
        self._decisions = dict(decisions)
        self._paths: dict[socket.AddressFamily, Path | None] = {f: path_of(d) for f, d in decisions.items()}
        self._lost_since: dict[socket.AddressFamily, float] = {}
        self._number = 0

    def update(self, now: float, cause: Cause, decisions: Mapping[socket.AddressFamily, Decision]) -> Change | None:
        """Process a new reading.

        :param now: the time in monotonic seconds
        :param cause: why the network was read
        :param decisions: one for each family
        :return: the change to announce, if there is one
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
        """When the next lost path must be announced, in monotonic seconds."""
        return min(self._lost_since.values()) + GRACE if self._lost_since else None


class Announcements:
    """The path changes of one watcher, and the listeners."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._announcer: Announcer | None = None
        self._listeners: list[ChangeListener] = []
        self._postponed: Cause | None = None

    def __bool__(self) -> bool:
        """Whether there is a listener."""
        return bool(self._listeners)

    def start(self, decider: Decider) -> None:
        """Start from this reading: announce what differs from it."""
        self._announcer = Announcer(_decisions(decider))
        self._postponed = None

    def add(self, listener: ChangeListener) -> None:
        """Add a listener for future changes. Call :meth:`catch_up` first, so that it gets no earlier change."""
        self._listeners.append(listener)

    def remove(self, listener: ChangeListener) -> None:
        """Remove a listener. Does nothing if it was not added."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def end(self) -> None:
        """Tell all listeners that there are no more changes."""
        for listener in list(self._listeners):
            listener.end()

    @property
    def postponed(self) -> bool:
        """Whether :meth:`catch_up` has something to announce."""
        return self._postponed is not None

    def postpone(self, cause: Cause) -> None:
        """Announce later, by :meth:`catch_up`, so that the program can send first."""
        self._postponed = cause

    def catch_up(self, now: float, decider: Decider) -> None:
        """Announce the postponed changes."""
        if self._postponed is not None:
            self.announce(now, self._postponed, decider)

    def announce(self, now: float, cause: Cause, decider: Decider) -> None:
        """Announce what a reading has changed. Lost paths are announced only after the grace period.

        :param decider: the decider of the reading
        """
        self._postponed = None
        assert self._announcer is not None
        change = self._announcer.update(now, cause, _decisions(decider))
        if change is not None:
            self._statistics.changes += 1
            for listener in list(self._listeners):
                listener.put(change)

    def held_until(self) -> float | None:
        """When the next lost path must be announced, in monotonic seconds."""
        return self._announcer.deadline() if self._announcer is not None else None

    def deadline(self, now: float) -> float | None:
        """When the next announcement is due, in monotonic seconds."""
        return now if self._postponed is not None and self._listeners else self.held_until()


def _decisions(decider: Decider) -> dict[socket.AddressFamily, Decision]:
    return {family: decider.decide(family) for family in FAMILIES}


def merged(first: Change, second: Change) -> Change | None:
    """Merge two consecutive changes into one; ``None`` if they cancel out."""

    def family(a: FamilyChange, b: FamilyChange) -> FamilyChange:
        return FamilyChange(a.old_decision, b.new_decision, a.old_path, b.new_path)

    change = Change(second.number, second.time, second.cause, family(first.ipv4, second.ipv4), family(first.ipv6, second.ipv6))
    return change if change.ipv4.moved or change.ipv6.moved else None
