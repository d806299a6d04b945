"""When a change is announced: a gain at once, a loss after a grace. Pure, fed with times."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from bindsock.model.change import Cause, Change, FamilyChange
from bindsock.model.decision import Decision, Path, path_of

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
        announced = False
        changes: dict[socket.AddressFamily, FamilyChange] = {}
        for family, decision in decisions.items():
            old_decision, old_path, new_path = self._decisions[family], self._paths[family], path_of(decision)
            announce = new_path != old_path
            if not announce or new_path is not None:
                self._lost_since.pop(family, None)
            elif now < self._lost_since.setdefault(family, now) + GRACE:
                announce = False
            if announce:
                announced = True
                self._lost_since.pop(family, None)
                self._decisions[family], self._paths[family] = decision, new_path
                changes[family] = FamilyChange(old_decision, decision, old_path, new_path)
            else:
                changes[family] = FamilyChange(old_decision, old_decision, old_path, old_path)
        if not announced:
            return None
        self._number += 1
        return Change(self._number, now, cause, changes[socket.AF_INET], changes[socket.AF_INET6])

    def deadline(self) -> float | None:
        """When a loss that is being held must be announced."""
        return min(self._lost_since.values()) + GRACE if self._lost_since else None


def merged(first: Change, second: Change) -> Change | None:
    """Two changes in a row as one, ``None`` if they cancel out."""

    def family(a: FamilyChange, b: FamilyChange) -> FamilyChange:
        return FamilyChange(a.old_decision, b.new_decision, a.old_path, b.new_path)

    change = Change(second.number, second.time, second.cause, family(first.ipv4, second.ipv4), family(first.ipv6, second.ipv6))
    return change if change.ipv4.moved or change.ipv6.moved else None
