"""What a change of the network means for one connection: pure, without sockets and without a clock.

Two facts are kept apart. *Viability*: whether the connection can still work where it is. *Better path*: it can, but a new one
would leave by another interface.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Network, without_scope
from bindsock.options import BetterPath
from bindsock.routing.effective import Preferences, is_expensive

STALL_GRACE = 1.0
"""Seconds for which an interface may be without carrier or route before a connection on it is given up."""
IDLE = 5.0
"""Seconds of silence after which a connection is taken for idle."""
LATEST = 30.0
"""Seconds after which a connection leaves an expensive interface, idle or not."""
SAMPLE = 1.0
"""Seconds between two looks at whether data moved."""


class Viability(enum.Enum):
    """Whether a connection can work where it is."""

    WORKS = "works"
    STALLED = "stalled"
    """No carrier, or no route any more: often back within a moment."""
    DEAD = "dead"
    """The interface or the local address is gone: nothing will ever come through again, and TCP would find out in 15 minutes."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a connection is."""

    interface: str
    index: int
    local: IPAddress
    owner: int
    """Index of the interface that had the local address when the connection was made: another than the one the socket is bound
    to where the host model is weak."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a reading of the network says about a connection."""

    viability: Viability
    reason: str
    """Why it does not work, or why another interface is better; empty if all is well."""
    target: Interface | None
    """The interface by which a new connection would leave."""
    usable: bool
    """Whether a new connection could be made at all."""
    better: Interface | None = None
    """It works, and yet a new connection would leave by this other interface."""
    moved: Interface | None = None
    """The interface to which the local address has moved, and which is usable: the connection itself can move there."""


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
        return Assessment(Viability.STALLED, f"no route to the peer leaves by {interface.name} any more", target, usable)
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
    """The place of a connection that is made now."""
    local = without_scope(local)
    bound = network.interfaces.get(index)
    if bound is not None and bound.has(local):
        return Location(interface, index, local, index)
    owner = network.owner_of(local)
    return Location(interface, index, local, owner.index if owner is not None else index)


class Countdown:
    """When a connection that works is to leave for a better path: once idle, and at the latest after a while.

    :param now: monotonic seconds
    :param activity: what ``Kernel.activity`` says of its socket
    """

    def __init__(self, now: float, activity: object) -> None:
        self._begun = now
        self._quiet_since = now
        self._activity = activity

    def due(self, now: float, activity: object) -> bool:
        """Whether it is time. To be asked about once a second."""
        if activity is None or activity != self._activity:
            self._quiet_since = now
        self._activity = activity
        return now - self._quiet_since >= IDLE or now - self._begun >= LATEST


def leaves(policy: BetterPath, network: Network, place: Location, target: Interface, preferences: Preferences) -> bool:
    """Whether a connection without an ``on_reconnect`` is to leave what works for a better path, at once or later.

    By ``"auto"`` it is kept within a cost class, and off an expensive interface it goes.
    """
    if policy != "auto":
        return policy == "abort"
    interface = network.interfaces.get(place.index)
    return interface is not None and is_expensive(interface, preferences) and not is_expensive(target, preferences)
