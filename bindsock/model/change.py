"""Path changes, as they are announced to programs."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass

from bindsock.model.decision import Decision, Path


class Cause(enum.StrEnum):
    """The reason for which the watcher read the network."""

    STARTED = "started"
    EVENTS = "events"
    WAKE = "wake"
    RECONCILE = "reconcile"
    SEND_ERROR = "send error"


@dataclass(frozen=True, slots=True)
class FamilyChange:
    """The old and the new decision and path of one address family."""

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
    """A path change: the path of at least one family differs from the one that was announced last."""

    number: int
    """A number that each watcher counts from 1. A merged change has the number of its last part."""
    time: float
    """When it was noticed, in monotonic seconds."""
    cause: Cause
    ipv4: FamilyChange
    ipv6: FamilyChange

    def of(self, family: socket.AddressFamily) -> FamilyChange:
        """The change of one address family."""
        return self.ipv4 if family == socket.AF_INET else self.ipv6
