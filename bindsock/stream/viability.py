"""Assesses whether a connection can still work: values and pure functions, without sockets and without a clock.

There are two separate questions. *Viability*: can the connection still work where it is? *Better path*: it can, but would a new
connection leave by another interface? :mod:`bindsock.stream.plan` decides what to do then.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bindsock.errors import InterfaceChanged
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Network, without_scope

STALL_GRACE = 1.0
"""Seconds to wait for the carrier or the route of an interface before its connections are ended."""
ROUTE_GRACE = 0.25
"""Seconds to wait for a lost route although a new connection is ready. A DHCP client that restarts removes the default route for
about 90 ms (systemd-networkd)."""
IDLE = 5.0
"""Seconds without data after which a connection counts as idle."""
LATEST = 30.0
"""Seconds after which a connection on an expensive interface is ended even if it is not idle."""
SAMPLE = 1.0
"""Seconds between two checks whether data has moved."""


class Viability(enum.Enum):
    """Whether a connection can work where it is."""

    WORKS = "works"
    STALLED = "stalled"
    """There is no carrier or no route. Often it returns within a second."""
    DEAD = "dead"
    """The interface or the local address is gone for good. TCP itself would notice after 15 minutes."""


@dataclass(frozen=True, slots=True)
class Location:
    """The interface and the local address of a connection."""

    interface: str
    index: int
    local: IPAddress
    owner: int
    """The index of the interface that had the local address when the connection was made. It differs from ``index`` if the socket
    has the address of another interface (the weak host model)."""


class Assessment(NamedTuple):
    """The state of a connection in a reading of the network."""

    viability: Viability
    reason: str
    """Why it does not work, or why another interface is better. Empty if it works and no other is better."""
    target: Interface | None
    """The interface by which a new connection would leave."""
    usable: bool
    """Whether a new connection could be made at all."""
    better: Interface | None = None
    """The other interface by which a new connection would leave, if the connection works."""
    moved: Interface | None = None
    """The usable interface to which the local address has moved. The connection can move there."""
    grace: float = 0.0
    """Seconds to wait for the old path although a new connection is ready."""

    def ended(self, peer: IPAddress, interface: str | None) -> InterfaceChanged:
        """The error of a connection that is ended for this reason.

        :param peer: the address of the peer
        :param interface: the name of the interface that the connection used
        """
        successor = self.target.name if self.target is not None else None
        message = f"the connection to {peer} over {interface} was ended: {self.reason}"
        return InterfaceChanged(message, interface=interface, new_interface=successor)


def assess(network: Network, place: Location, decision: Decision, routed: Callable[[Interface], bool]) -> Assessment:
    """Compare the place of a connection with the network and the decision for its destination.

    :param routed: whether a route to the destination leaves by an interface; called only if the decision names another one
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
    """The place of a new connection."""
    local = without_scope(local)
    bound = network.interfaces.get(index)
    if bound is not None and bound.has(local):
        return Location(interface, index, local, index)
    owner = network.owner_of(local)
    return Location(interface, index, local, owner.index if owner is not None else index)


class Countdown:
    """Decides when to end a working connection for a better path: once it is idle, or after :data:`LATEST` seconds.

    :param now: the time in monotonic seconds
    :param activity: the result of ``Kernel.activity`` for its socket
    """

    def __init__(self, now: float, activity: object) -> None:
        self._begun = now
        self._quiet_since = now
        self._activity = activity

    def due(self, now: float, activity: object) -> bool:
        """Whether to end the connection now. Call this every :data:`SAMPLE` seconds."""
        if activity is None or activity != self._activity:
            self._quiet_since = now
        self._activity = activity
        return now - self._quiet_since >= IDLE or now - self._begun >= LATEST
