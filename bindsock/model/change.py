"""What changed, and why it was noticed."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass

from bindsock.model.decision import Decision, Path


class Cause(enum.StrEnum):
    """What made the watcher look."""

    STARTED = "started"
    EVENTS = "events"
    WAKE = "wake"
    RECONCILE = "reconcile"
    SEND_ERROR = "send error"


@dataclass(frozen=True, slots=True)
class FamilyChange:
    """The old and the new of one address family."""

    old_decision: Decision
    new_decision: Decision
    old_path: Path | None
    new_path: Path | None

    @property
    def moved(self) -> bool:
        """Whether the path differs."""
        return self.old_path != self.new_path


@dataclass(frozen=True, slots=True)
class Change:
    """The path of at least one family differs from what was announced last."""

    number: int
    """Counts from 1 for each watcher. A merged change has the number of its last part."""
    time: float
    """Monotonic seconds at which it was seen."""
    cause: Cause
    ipv4: FamilyChange
    ipv6: FamilyChange

    def of(self, family: socket.AddressFamily) -> FamilyChange:
        return self.ipv4 if family == socket.AF_INET else self.ipv6
