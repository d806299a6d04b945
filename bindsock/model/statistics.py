"""The counters of a factory."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

UNBOUND = "unbound"
"""The interface name under which datagrams of unbound sockets are counted."""


class Loss(enum.StrEnum):
    """Why an accepted datagram was never sent."""

    TOO_OLD = "too old"
    """It was held for the longest allowed time, and there was still no path."""
    TOO_MANY = "too many"
    """It was the oldest held datagram when there was no room for another."""
    UNREACHABLE = "unreachable"
    """The system refused it for half a second although the path was intact."""
    REFUSED = "refused"
    """The system refused it for another reason; the error was reported to the protocol."""
    CLOSED = "closed"
    """The transport was closed before it was sent, or even before it was passed to the transport."""


@dataclass(slots=True)
class Statistics:
    """Counters of one factory since it was made. ``factory.statistics()`` returns a copy.

    Every datagram that ``sendto()`` of a datagram transport has accepted is counted once: in :attr:`sent`, by the name of the
    interface, in :attr:`waiting`, or in :attr:`lost`. Datagrams that a program sends by its own sockets (``loop.sock_sendto()``,
    trio's sockets) are counted in :attr:`sent`.
    """

    events: int = 0
    """How often the kernel reported a relevant event."""
    coalesced: int = 0
    """Events that did not cause a reading of the network by themselves."""
    readings: int = 0
    """How often the network was read."""
    changes: int = 0
    """Announced path changes."""
    overruns: int = 0
    """How often the kernel dropped events, so that the whole network was read again."""
    tracked: int = 0
    """Sockets that are followed now."""
    rebinds: int = 0
    """Moved sockets: datagram sockets, in place or by a second socket, and multipath connections, by another subflow."""
    rebinds_failed: int = 0
    """Failed moves; each is tried again."""
    sent: dict[str, int] = field(default_factory=dict)
    """Datagrams that the system accepted, by the name of the interface that the socket was bound to, or :data:`UNBOUND`."""
    waiting: int = 0
    """Datagrams that wait now: for a path, for their turn, or for room in the socket."""
    held: int = 0
    """Datagrams that were held, because there was no path or it was not their turn yet, and sent later."""
    lost: int = 0
    """Datagrams that were accepted and never sent, for all reasons together."""
    lost_by: dict[str, int] = field(default_factory=dict)
    """The same by reason: one of :class:`Loss`."""
    lost_on_device: int = 0
    """Datagrams in :attr:`sent` that a device accepted and then dropped, as far as the system reports it."""
    foreign: int = 0
    """Datagrams from other addresses than the peer's that a connected socket received while it moved. They were dropped."""
    ended: int = 0
    """Streams that were ended with InterfaceChanged."""
    reconnected: int = 0
    """Connections that were replaced."""
    redialled: int = 0
    """Dials that started over because the path changed meanwhile."""
    recovery: float | None = None
    """Seconds from the kernel's event to the move of the last socket, for the latest change."""
    longest_recovery: float | None = None
    """The longest :attr:`recovery` so far, in seconds."""

    def lose(self, count: int, reason: Loss) -> None:
        """Count lost datagrams."""
        if count:
            self.lost += count
            self.lost_by[str(reason)] = self.lost_by.get(str(reason), 0) + count
