"""What is known about a failed connect: the ICMP message that ended it, and whether this host itself dropped its packets."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bindsock.model.network import IPAddress


@dataclass(frozen=True, slots=True)
class Rejection:
    """The ICMP message that ended a connect."""

    source: IPAddress
    """The sender: a router, the destination, or this host."""
    prohibited: bool
    """The message is "administratively prohibited": a firewall rule forbids the connection."""
    host_unreachable: bool = False
    """The message is "host unreachable". This host sends it to itself if the next hop does not answer (linux net/ipv4/route.c,
    ipv4_link_failure)."""


class Departure(enum.Enum):
    """Whether the packets of a connect leave this host."""

    UNKNOWN = enum.auto()
    LEFT = enum.auto()
    """They leave."""
    DROPPED = enum.auto()
    """This host drops them: by its firewall, by a BPF program, or because the queue of the device is full."""
    RESET = enum.auto()
    """The firewall of this host drops them and answers with a reset."""
