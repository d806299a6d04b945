"""Decides where a datagram socket belongs and whether it is moved in place: values and pure functions.

A socket has a :class:`Placement`: on a path, deliberately unbound, or nowhere (no interface may be used, so its datagrams are
held). A :class:`Requirement` gives the placement that the socket should have in a reading of the network. :func:`plan` compares
the two and returns :class:`Orders`, which :mod:`bindsock.datagram.mover` and :mod:`bindsock.datagram.in_place` carry out. Only a
different *path* is a reason to move, and even then a socket can stay if its source address is still usable.
"""

from __future__ import annotations

import enum
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.decision import Decision, Path, path_on
from bindsock.model.network import IPAddress, Network, Target, family_of

if TYPE_CHECKING:
    from bindsock.routing.effective import Decider


class Placement(NamedTuple):
    """Where a socket is, or should be."""

    path: Path | None
    unbound: bool = False
    """It must not be bound: its destination is this host, or belongs to a split tunnel, or the preferences say so."""
    gone: bool = False
    """No interface has the requested local address any more."""

    @property
    def interface(self) -> str | None:
        """The name of the interface that the socket is bound to."""
        return self.path.interface if self.path is not None else None

    @property
    def interface_index(self) -> int | None:
        """The index of the interface that the socket is bound to."""
        return self.path.index if self.path is not None else None


NOWHERE = Placement(None)
UNBOUND = Placement(None, unbound=True)
GONE = Placement(None, gone=True)


class Requirement(NamedTuple):
    """Decides the placement of a socket."""

    targets: tuple[Target, ...]
    """The destination, or the families. The first target with a path decides."""
    address: IPAddress | None = None
    """The local address that the program requested. The socket stays on the interface that has it."""

    @property
    def destination(self) -> IPAddress | None:
        """The destination, if the socket has a single one."""
        target = self.targets[0]
        return None if isinstance(target, socket.AddressFamily) else target

    def decisions(self, decider: Decider) -> tuple[Decision, ...]:
        """The decisions for the targets, in order."""
        return tuple(decider.decide(target) for target in self.targets)

    def first_placement(self, decider: Decider) -> Placement:
        """Where a new socket belongs, regardless of the requested local address."""
        for target in self.targets:
            path = decider.path(target)
            if path is not None:
                return Placement(path)
            if decider.decide(target).unbound:
                return UNBOUND
        return UNBOUND if decider.preferences.on_no_interface == "unbound" else NOWHERE

    def placement(self, decider: Decider) -> Placement:
        """Where the socket belongs now."""
        if self.address is None:
            return self.first_placement(decider)
        owner = decider.network.owner_of(self.address)
        if owner is None:
            return GONE
        if not (owner.up and owner.running):
            return NOWHERE
        return Placement(path_on(owner, family_of(self.address)))


class Place(NamedTuple):
    """What a socket is bound to."""

    device: int
    """The index of an interface."""
    source: IPAddress | None
    """The local address that the decision named; ``None`` if it named none."""


def place_of(path: Path) -> Place:
    """What a socket for the path is bound to."""
    return Place(path.index, path.source)


class Facts(NamedTuple):
    """The input of :func:`plan`."""

    network: Network
    placement: Placement
    """Where the socket is."""
    wanted: Placement
    """Where it belongs in this network."""
    source: IPAddress | None = None
    """The fixed local address of the socket, if it has one. Only needed while the device of the present path is alive."""
    broken: bool = False
    """An earlier move failed half-way: the socket must be bound again in any case."""
    may_overlap: bool = False
    """A second socket may take over while the first still receives."""
    held: frozenset[Place] = frozenset()
    """Where the endpoint has other working sockets."""
    hop_silent: bool = False
    """The first hop of the wanted path does not answer yet."""
    unrouted: bool = False
    """The present path has no route any more, although its device and its addresses are still there."""


class Step(enum.Enum):
    """What to do with the socket."""

    STAY = enum.auto()
    """Only record the new placement."""
    HOLD = enum.auto()
    """Leave the socket where it is, and hold its datagrams."""
    IN_PLACE = enum.auto()
    """Bind the same socket to another interface."""
    OVERLAP = enum.auto()
    """Let a second socket take over while the first still receives."""
    TAKE_BACK = enum.auto()
    """Let an old socket take over that is already on the interface."""
    AWAIT = enum.auto()
    """Stay on the old path, which works, until the first hop of the new one answers."""
    UNBIND = enum.auto()
    """Unbind the socket."""
    END = enum.auto()
    """Fail: there will never be a path again."""


class Orders(NamedTuple):
    """What to do: count the drops of a dead device, then take the step."""

    step: Step
    placement: Placement
    """The placement of the socket after the step."""
    count_drops: bool = False
    """The old device is dead: count what it dropped."""
    gap: bool = False
    """The old path is dead: hold datagrams until the step succeeds."""
    hold: bool = False
    """Hold datagrams after the step, too, until the first hop answers."""


def plan(facts: Facts) -> Orders:
    """Decide how to move a socket to where it belongs."""
    facts = _without_needless_source(facts)
    path, wanted = facts.placement.path, facts.wanted
    count_drops = path is not None and not device_alive(facts.network, path)
    works = path is not None and alive(facts.network, path, facts.source)
    step = _step(facts, works)
    gap = facts.broken or facts.unrouted or not works
    if facts.hop_silent and not gap and path is not None and wanted.path is not None and path.index != wanted.path.index:
        return Orders(Step.AWAIT, facts.placement, count_drops)
    hold = facts.hop_silent and step in (Step.STAY, Step.IN_PLACE, Step.OVERLAP, Step.TAKE_BACK)
    return Orders(step, wanted, count_drops, gap, hold)


def _without_needless_source(facts: Facts) -> Facts:
    """A socket on the interface that has the source address already need not be bound to it, and stays as it is."""
    path, wanted = facts.placement.path, facts.wanted.path
    if path is None or wanted is None or facts.broken or path.index != wanted.index or path.source is not None:
        return facts
    if wanted.source is None or wanted.source != facts.source:
        return facts
    return facts._replace(wanted=facts.wanted._replace(path=replace(wanted, source=None)))


def _step(facts: Facts, works: bool) -> Step:
    """
    :param works: whether the present path still works
    """
    path, wanted = facts.placement.path, facts.wanted
    if wanted.gone:
        return Step.END
    if wanted.path is None and not wanted.unbound:
        return Step.HOLD
    sourceless = facts.source is not None and facts.source.is_unspecified
    if wanted == facts.placement and not facts.broken and not sourceless:
        return Step.STAY
    if wanted.path is None:
        return Step.UNBIND
    same = path is not None and path.index == wanted.path.index and not facts.broken
    if same and path is not None and path.source != wanted.path.source:
        return Step.OVERLAP if facts.may_overlap and works else Step.IN_PLACE
    if same and path is not None:
        return Step.STAY if facts.source is None or works else Step.IN_PLACE
    if place_of(wanted.path) in facts.held:
        return Step.TAKE_BACK
    if path is None or facts.broken or not facts.may_overlap:
        return Step.IN_PLACE
    return Step.OVERLAP if works else Step.IN_PLACE


def alive(network: Network, path: Path, source: IPAddress | None) -> bool:
    """Whether answers can still arrive by the path."""
    interface = network.interfaces.get(path.index)
    if interface is None or not (interface.up and interface.running):
        return False
    if source is None:
        return bool(interface.usable_addresses(path.family)) or path.source is not None
    if source == path.source:
        return network.owner_of(source) is not None
    return interface.has(source)


def device_alive(network: Network, path: Path) -> bool:
    """Whether the device of the path can send."""
    interface = network.interfaces.get(path.index)
    return interface is not None and interface.up and interface.running
