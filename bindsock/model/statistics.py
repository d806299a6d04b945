"""What a factory counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

UNBOUND = "unbound"
"""Stands for the interface of what is sent by a socket that is bound to none."""


class Loss(enum.StrEnum):
    """Why a datagram that was accepted was never sent."""

    TOO_OLD = "too old"
    """It was held for as long as a datagram is, and there was no path yet."""
    TOO_MANY = "too many"
    """It was the oldest of those that were held when there was no room for another."""
    UNREACHABLE = "unreachable"
    """The system refused it for half a second although the path was intact."""
    REFUSED = "refused"
    """The system refused it for a reason of its own; the protocol was told."""
    CLOSED = "closed"
    """The transport was closed before it could be sent, or even before it was given to it."""


@dataclass(slots=True)
class Statistics:
    """Counters of one factory, since it was made. ``factory.statistics()`` returns a copy.

    Every datagram that the ``sendto()`` of a datagram transport has accepted is in one of three: in :attr:`sent`, by the name of
    the interface, in :attr:`waiting`, or in :attr:`lost`. What a program sends by a socket of its own (``loop.sock_sendto()``,
    trio's sockets) is in :attr:`sent`.
    """

    events: int = 0
    """How often an event source had something to say."""
    coalesced: int = 0
    """Events that did not cause a reading of their own."""
    readings: int = 0
    changes: int = 0
    overruns: int = 0
    """How often the kernel dropped events, so that everything was read again."""
    tracked: int = 0
    """Sockets that are followed now."""
    rebinds: int = 0
    """Sockets moved: datagram sockets, in place or by a second endpoint, and multipath connections, by another subflow."""
    rebinds_failed: int = 0
    """Attempts that failed; each is retried."""
    sent: dict[str, int] = field(default_factory=dict)
    """Datagrams that the system took, by the name of the interface that the socket was bound to, or :data:`UNBOUND`."""
    waiting: int = 0
    """Datagrams that wait now: for a path, for their turn, or for room in the socket."""
    held: int = 0
    """Datagrams that were held, since there was no path or it was not their turn yet, and sent later."""
    lost: int = 0
    """Datagrams that were accepted and never sent, for all reasons together."""
    lost_by: dict[str, int] = field(default_factory=dict)
    """The same by reason: one of :class:`Loss`."""
    lost_on_device: int = 0
    """Of those in :attr:`sent`: datagrams that a device had accepted and dropped when its carrier went, as far as the system
    tells."""
    foreign: int = 0
    """Datagrams of strangers that slipped into a connected socket while it moved, and were dropped."""
    ended: int = 0
    """Streams ended with InterfaceChanged."""
    reconnected: int = 0
    redialled: int = 0
    """Dials that were started over because their path changed meanwhile."""
    recovery: float | None = None
    """Seconds from the kernel's event to the last socket moved, of the latest change."""
    longest_recovery: float | None = None

    def lose(self, count: int, reason: Loss) -> None:
        """Count datagrams that are lost."""
        if count:
            self.lost += count
            self.lost_by[str(reason)] = self.lost_by.get(str(reason), 0) + count
