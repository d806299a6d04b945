"""What the network said of a connect that failed."""

from __future__ import annotations

from dataclasses import dataclass

from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Rejection:
    """The ICMP message that ended a connect."""

    source: IPAddress
    """Who sent it: a router, the destination, or this host."""
    prohibited: bool
    """It says that a rule forbids the connection ("administratively prohibited")."""
