"""What a factory counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counters of one factory, since it was made. ``factory.statistics()`` returns a copy."""

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
    held: int = 0
    """Datagrams that were held while there was no path, and sent later."""
    lost: int = 0
    """Datagrams that were refused and could not be held or sent later."""
    lost_on_device: int = 0
    """Datagrams that a device had accepted and dropped when its carrier went, as far as the system tells."""
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
