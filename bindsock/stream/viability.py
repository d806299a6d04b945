"""Whether a connection can still work where it is: values and pure functions, without sockets and without a clock.

Two facts are kept apart. *Viability*: whether the connection can still work where it is. *Better path*: it can, but a new one
would leave by another interface. What follows from them is in :mod:`bindsock.stream.plan`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Network, without_scope

STALL_GRACE = 1.0
"""Seconds for which an interface may be without carrier or route before a connection on it is ended."""
ROUTE_GRACE = 0.25
"""Seconds for which a lost route is waited for although a new connection is ready. A DHCP client that is restarted takes the
default route away for some 90 ms (systemd-networkd)."""
IDLE = 5.0
"""Seconds of silence after which a connection is taken for idle."""
LATEST = 30.0
"""Seconds after which a connection leaves an expensive interface, idle or not."""
SAMPLE = 1.0
"""Seconds between two checks of whether data moved."""


class Viability(enum.Enum):
    """Whether a connection can work where it is."""

    WORKS = "works"
    STALLED = "stalled"
    """There is no carrier or no route. Often it is back within a second."""
    DEAD = "dead"
    """The interface or the local address is gone. Nothing will come through again, and TCP would notice after 15 minutes."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a connection is."""

    interface: str
    index: int
    local: IPAddress
    owner: int
    """Index of the interface that had the local address when the connection was made. It differs from ``index`` where the socket
    has the address of another interface (the weak host model)."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a reading of the network says about a connection."""

    viability: Viability
    reason: str
    """Why it does not work, or why another interface is better. Empty if it works and no other is better."""
    target: Interface | None
    """The interface by which a new connection would leave."""
    usable: bool
    """Whether a new connection could be made at all."""
    better: Interface | None = None
    """It works, but a new connection would leave by this other interface."""
    moved: Interface | None = None
    """The usable interface to which the local address has moved. The connection can move there."""
    grace: float = 0.0
    """Seconds for which the old path is waited for although a new connection is ready."""


def assess(network: Network, place: Location, decision: Decision, routed: Callable[[Interface], bool]) -> Assessment:
    """Compare the place of a connection with the network and the decision for its destination.

    :param routed: whether a route to the destination still leaves by the interface; asked only where the decision is another
    """
    target = decision.interface
    usable = target is not None or decision.unbound
    interface = network.interfaces.get(place.index)
    lost = _lost(network, place, interface)
    if lost is not None or interface is None:
        moved = _moved(network, place)
        return Assessment(Viability.DEAD, lost or "", target, usable, moved=moved)
    if not interface.running:
        return Assessment(Viability.STALLED, f"{interface.name} has no carrier", target, usable)
    if target is None or target.index == place.index:
        return Assessment(Viability.WORKS, "", target, usable)
    if not routed(interface):
        reason = f"no route to the peer leaves by {interface.name} any more"
        return Assessment(Viability.STALLED, reason, target, usable, grace=ROUTE_GRACE)
    return Assessment(Viability.WORKS, f"{target.name} is the better path", target, usable, better=target)


def _lost(network: Network, place: Location, interface: Interface | None) -> str | None:
    if interface is None:
        return f"{place.interface} is gone"
    if not interface.up:
        return f"{interface.name} is down"
    owner = network.interfaces.get(place.owner)
    if owner is None or not owner.has(place.local):
        return f"{interface.name} has lost the address {place.local}"
    return None


def _moved(network: Network, place: Location) -> Interface | None:
    owner = network.interfaces.get(place.owner)
    if owner is not None and owner.has(place.local):
        return None
    owner = network.owner_of(place.local)
    if owner is None or owner.index in (place.index, place.owner) or not (owner.up and owner.running):
        return None
    return owner


def location_of(network: Network, interface: str, index: int, local: IPAddress) -> Location:
    """The place of a connection that is being made."""
    local = without_scope(local)
    bound = network.interfaces.get(index)
    if bound is not None and bound.has(local):
        return Location(interface, index, local, index)
    owner = network.owner_of(local)
    return Location(interface, index, local, owner.index if owner is not None else index)


class Countdown:
    """When to end a connection that works, for a better path: once it is idle, at the latest after :data:`LATEST` seconds.

    :param now: monotonic seconds
    :param activity: what ``Kernel.activity`` says of its socket
    """

    def __init__(self, now: float, activity: object) -> None:
        self._begun = now
        self._quiet_since = now
        self._activity = activity

    def due(self, now: float, activity: object) -> bool:
        """Whether it is time. Call it about once every :data:`SAMPLE` seconds."""
        if activity is None or activity != self._activity:
            self._quiet_since = now
        self._activity = activity
        return now - self._quiet_since >= IDLE or now - self._begun >= LATEST
