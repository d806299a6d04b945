"""Where a datagram socket belongs, and how it gets there: values and pure functions.

A socket has a :class:`Placement`: on a path, deliberately unbound, or nowhere (no interface may be used, so sends are held).
A new reading of the network gives the placement that it should have, and :func:`step` says what leads from one to the other. Only
a different *path* counts; even then a socket whose own source address is still there need not be touched.
"""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.decision import Decision, Path
from bindsock.model.network import Interface, IPAddress, Network, Target, family_of, without_scope

if TYPE_CHECKING:
    from bindsock.routing.effective import Decider


class Placement(NamedTuple):
    """Where a socket is, or should be."""

    path: Path | None
    unbound: bool = False
    """It must not be bound: its destination is this host, or a split tunnel's own, or the preferences say so."""


NOWHERE = Placement(None)
UNBOUND = Placement(None, unbound=True)


class LocalAddressGone(Exception):
    """The address that the socket was to have as its own is no longer there."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What decides the place of a socket."""

    targets: tuple[Target, ...]
    """The destination; or the families, the one that counts first."""
    address: IPAddress | None = None
    """The local address that was asked for explicitly: the socket stays with it."""

    @property
    def destination(self) -> IPAddress | None:
        """The one destination, if there is one."""
        target = self.targets[0]
        return None if isinstance(target, socket.AddressFamily) else target

    def decisions(self, decider: Decider) -> tuple[Decision, ...]:
        """The decisions for the targets, the one that counts first."""
        return tuple(decider.decide(target) for target in self.targets)

    def first_place(self, decider: Decider) -> Placement:
        """Where a new socket belongs, whatever address it was asked to have."""
        for target in self.targets:
            decision = decider.decide(target)
            if decision.interface is not None:
                return Placement(decider.path(target))
            if decision.unbound:
                return UNBOUND
        return UNBOUND if decider.preferences.on_no_interface == "unbound" else NOWHERE

    def place(self, decider: Decider) -> Placement:
        """Where the socket belongs now.

        :raises LocalAddressGone: the local address that was asked for is gone
        """
        if self.address is None:
            return self.first_place(decider)
        owner = decider.network.owner_of(self.address)
        if owner is None:
            raise LocalAddressGone
        if not (owner.up and owner.running):
            return NOWHERE
        family = family_of(self.address)
        return Placement(Path(family, owner.name, owner.index, frozenset(owner.usable_addresses(family)), None))


class Step(enum.Enum):
    """What leads from one place to another."""

    STAY = enum.auto()
    """Nothing but to remember the new place."""
    WAIT = enum.auto()
    """Hold what is sent."""
    IN_PLACE = enum.auto()
    """The same socket is bound anew."""
    OVERLAP = enum.auto()
    """A second socket takes over; the first still receives."""
    UNBIND = enum.auto()


def step(old: Placement, new: Placement, source: IPAddress | None, network: Network) -> Step:
    """How a socket gets from one place to another.

    :param source: the local address of the socket, if it has one of its own
    :param network: the reading in which the new place is right
    """
    if new == old:
        return Step.STAY
    if new == NOWHERE:
        return Step.WAIT
    if new.path is None:
        return Step.UNBIND
    if old.path is None:
        return Step.IN_PLACE
    if old.path.index == new.path.index:
        return Step.STAY if source is None or alive(network, old.path, source) else Step.IN_PLACE
    return Step.OVERLAP if alive(network, old.path, source) else Step.IN_PLACE


def alive(network: Network, path: Path, source: IPAddress | None) -> bool:
    """Whether what was sent by the path can still be answered by it."""
    interface = network.interfaces.get(path.index)
    if interface is None or not (interface.up and interface.running):
        return False
    if source is None:
        return bool(interface.usable_addresses(path.family))
    return owns(interface, source)


def owns(interface: Interface, address: IPAddress) -> bool:
    """Whether the address is one of the interface's."""
    plain = without_scope(address)
    return any(a.address == plain for a in interface.addresses)
