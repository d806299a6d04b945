"""Which orders the subflows of a multipath connection are given: values and pure functions.

The connection works if one of its subflows does. A subflow is ordered on the interface that the decision names; once it has
joined, the subflows on interfaces that are lost or were left are ended. :mod:`bindsock.stream.multipath.manager` carries the
orders out.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.model.subflows import Subflow
from bindsock.routing.multipath import may_carry_subflow
from bindsock.stream.viability import Assessment, Location, Viability, assess

if TYPE_CHECKING:
    from bindsock.kernel import RemovalReason


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the subflows of a connection are."""

    working: tuple[Location, ...]
    """Those that can work."""
    lost: tuple[IPAddress, ...] = ()
    """The local addresses of those that cannot: the interface is down, without carrier, or does not have the address any more, or
    the subflow is bound to one that was deleted."""
    forbidden: tuple[tuple[IPAddress, str], ...] = ()
    """Local address and interface of those where no subflow may be."""


def situation(
    network: Network,
    subflows: Iterable[Subflow],
    chosen: Interface | None,
    pin: str | None,
    bound: Callable[[Subflow], int | None],
) -> Situation:
    """Compare the subflows of a connection with a reading of the network.

    An interface that is deleted and made again, with the same name and address, has another index. A subflow that is bound to the
    old one stays established, and nothing leaves by it any more.

    :param chosen: the interface that the decision names, if it names one
    :param pin: the name of the interface to which the connection is pinned
    :param bound: as :meth:`bindsock.kernel.PathManager.bound`
    """
    working, lost, forbidden = [], [], []
    for subflow in subflows:
        owner = network.owner_of(subflow.local)
        index = bound(subflow)
        interface = network.interfaces.get(index) if index else owner
        if index is None or owner is None or interface is None or not all(i.up and i.running for i in (owner, interface)):
            lost.append(subflow.local)
        elif not may_carry_subflow(interface, chosen, pin):
            forbidden.append((subflow.local, interface.name))
        else:
            working.append(Location(interface.name, interface.index, subflow.local, owner.index))
    here = {location.local for location in working}
    return Situation(tuple(working), tuple(address for address in lost if address not in here), tuple(forbidden))


@dataclass(frozen=True, slots=True)
class SubflowFacts:
    """What is known of the subflows."""

    situation: Situation
    powerless: bool = False
    """The privilege to order anything is missing."""
    refused: frozenset[int] = frozenset()
    """Indices of the interfaces by which no subflow can be had for now."""
    irremovable: frozenset[IPAddress] = frozenset()
    """Local addresses of forbidden subflows that could not be ended."""
    silent_for: float | None = None
    """Seconds for which the peer has been silent, once they are too many."""


class Move(enum.Enum):
    """What to do about a move of the connection to another interface."""

    GO_ON = enum.auto()
    """Leave it as it is."""
    BEGIN = enum.auto()
    """Order a subflow on the interface that the decision names, unless that is under way."""
    RETRY = enum.auto()
    """It was refused: try again later."""
    CANCEL = enum.auto()
    """Do not go on with the one that is under way."""
    SUSPEND = enum.auto()
    """Order nothing and check nothing until it is to begin again: nothing works, and there is nowhere to go."""


@dataclass(frozen=True, slots=True)
class SubflowOrders:
    """What to do with the subflows, in this order: remove, arrive at the place, move, remove what was left."""

    found: Assessment
    """Of the whole connection."""
    place: Location
    """Where the connection is: the place of its best subflow."""
    move: Move = Move.GO_ON
    remove: tuple[tuple[IPAddress, RemovalReason], ...] = ()
    leave: tuple[IPAddress, ...] = ()
    """The subflows with these local addresses work, and are not needed any more."""
    settle: bool = False
    """A subflow works, so the peer can be told of those that were ordered in vain."""


def plan_subflows(
    facts: SubflowFacts,
    network: Network,
    place: Location,
    decision: Decision,
    routed: Callable[[Interface], bool],
    *,
    keep: bool,
) -> SubflowOrders:
    """What to do with the subflows.

    :param place: where the connection is
    :param routed: as :func:`bindsock.stream.viability.assess` takes it
    :param keep: a connection that works stays where it is, whatever is better
    """
    target = decision.interface
    found = assess(network, place, decision, routed)
    if facts.silent_for is not None:
        return SubflowOrders(_dead(found, f"nothing has come from the peer for {facts.silent_for:g} seconds"), place)
    for address, name in facts.situation.forbidden:
        if address in facts.irremovable:
            return SubflowOrders(_dead(found, f"the system has added a subflow by {name}, where it must not be"), place)
    remove: list[tuple[IPAddress, RemovalReason]] = [(address, "forbidden") for address, _ in facts.situation.forbidden]
    working = facts.situation.working
    if found.moved is not None and any(_is_at(subflow, place) for subflow in working):
        # Its address is on another interface now. A subflow is bound to the old one, and cannot be bound anew.
        working = tuple(subflow for subflow in working if not _is_at(subflow, place))
        if not working:
            return SubflowOrders(found, place, remove=tuple(remove))
    here = _best(working, place, target, keep=keep)
    if here is None:
        return _from_nowhere(facts, found, place, tuple(remove))
    if here != place:
        found = assess(network, here, decision, routed)
    remove += [(address, "lost") for address in facts.situation.lost]
    there = target is not None and here.index == target.index
    move = Move.CANCEL
    leave: tuple[IPAddress, ...] = ()
    if target is not None and not there and not (keep and found.viability is Viability.WORKS):
        if facts.powerless:
            move = Move.GO_ON
        elif target.index in facts.refused:
            move = Move.RETRY
        else:
            move = Move.BEGIN
            found = dataclasses.replace(found, viability=Viability.WORKS, better=None)
    elif there and not keep:
        leave = tuple(subflow.local for subflow in working if subflow.index != here.index)
    return SubflowOrders(found, here, move, tuple(remove), leave, settle=True)


def _from_nowhere(
    facts: SubflowFacts, found: Assessment, place: Location, remove: tuple[tuple[IPAddress, RemovalReason], ...]
) -> SubflowOrders:
    """What to do while no subflow works."""
    if found.target is None:
        return SubflowOrders(found, place, Move.SUSPEND, remove)
    if not facts.powerless and found.target.index not in facts.refused:
        return SubflowOrders(dataclasses.replace(found, viability=Viability.WORKS, better=None), place, Move.BEGIN, remove)
    if found.viability is Viability.DEAD and not facts.powerless:
        # The order may have come too soon for the interface, or too late. The next reading tells, or the connection ends soon.
        found = dataclasses.replace(found, viability=Viability.STALLED)
    return SubflowOrders(found, place, Move.GO_ON, remove)


def _best(working: Sequence[Location], place: Location, target: Interface | None, *, keep: bool) -> Location | None:
    on_target = [subflow for subflow in working if target is not None and subflow.index == target.index]
    current = [subflow for subflow in working if subflow == place]
    order = [*current, *on_target] if keep else [*on_target, *current]
    return next(iter([*order, *working]), None)


def _is_at(subflow: Location, place: Location) -> bool:
    return (subflow.local, subflow.index) == (place.local, place.index)


def _dead(found: Assessment, reason: str) -> Assessment:
    """The connection has to end, whether a new one could be made or not."""
    return dataclasses.replace(found, viability=Viability.DEAD, usable=True, reason=reason)
