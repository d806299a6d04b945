"""What the network said of a connect that failed."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Rejection:
    """The ICMP message that ended a connect."""

    source: IPAddress
    """Who sent it: a router, the destination, or this host."""
    prohibited: bool
    """It says that a rule forbids the connection ("administratively prohibited")."""


class Departure(enum.Enum):
    """What becomes of an attempt to connect before it leaves this host."""

    UNKNOWN = enum.auto()
    LEFT = enum.auto()
    """It leaves."""
    DROPPED = enum.auto()
    """It is dropped: by the firewall, by a policy (a BPF program's), or since the queue of the device is full."""
    RESET = enum.auto()
    """It is dropped, and answered with a reset: by the firewall."""
