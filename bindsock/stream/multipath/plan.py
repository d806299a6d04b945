"""Decides which subflows of a multipath connection to add and to remove: values and pure functions.

The connection works if one of its subflows works. A subflow is added on the interface of the decision. Once it is established,
the subflows on other interfaces are removed. :mod:`bindsock.stream.multipath.manager` carries out the orders.
"""

from __future__ import annotations

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
    """The subflows of a connection in a reading of the network."""

    working: tuple[Location, ...]
    """The places of the subflows that can work."""
    lost: tuple[IPAddress, ...] = ()
    """The local addresses of the subflows that cannot work: the interface is down, without carrier, or has lost the address, or
    the subflow is bound to a deleted interface."""
    forbidden: tuple[tuple[IPAddress, str], ...] = ()
    """The local address and the interface of each subflow on a forbidden interface."""
    carriers: frozenset[Subflow] = frozenset()
    """The subflows that can work."""


def situation(
    network: Network,
    subflows: Iterable[Subflow],
    chosen: Interface | None,
    pin: str | None,
    bound: Callable[[Subflow], int | None],
) -> Situation:
    """Compare the subflows of a connection with a reading of the network.

    An interface that is deleted and created again, with the same name and address, has another index. A subflow that is bound to
    the old one stays established, but cannot send any more.

    :param chosen: the interface of the decision, if it has one
    :param pin: the name of the interface to which the connection is pinned
    :param bound: as :meth:`bindsock.kernel.PathManager.bound`
    """
    working, lost, forbidden, carriers = [], [], [], []
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
            carriers.append(subflow)
    here = {location.local for location in working}
    left = tuple(address for address in lost if address not in here)
    return Situation(tuple(working), left, tuple(forbidden), frozenset(carriers))


@dataclass(frozen=True, slots=True)
class SubflowFacts:
    """The state of the subflows, as the input of :func:`plan_subflows`."""

    situation: Situation
    unprivileged: bool = False
    """The privilege to add or remove subflows is missing."""
    refused: frozenset[int] = frozenset()
    """The indices of the interfaces on which no subflow can be added for now."""
    irremovable: frozenset[IPAddress] = frozenset()
    """The local addresses of forbidden subflows that could not be removed."""
    silent_for: float | None = None
    """Seconds without an answer from the peer, once they exceed the user timeout."""
    before: frozenset[Subflow] | None = None
    """The subflows that could work before, as far as the peer has been told of them; ``None`` if that is unknown."""


class Move(enum.Enum):
    """What to do about a move of the connection to another interface."""

    GO_ON = enum.auto()
    """Go on with the move in progress, if there is one."""
    BEGIN = enum.auto()
    """Add a subflow on the interface of the decision, unless that is in progress."""
    RETRY = enum.auto()
    """Try again later, because the subflow was refused."""
    CANCEL = enum.auto()
    """Cancel the move in progress."""
    SUSPEND = enum.auto()
    """Stop all timers until the next move: no subflow works, and there is no other interface."""


@dataclass(frozen=True, slots=True)
class SubflowOrders:
    """What to do with the subflows, in this order: remove some, record the place, move, remove those that are not needed."""

    found: Assessment
    """The assessment of the whole connection."""
    place: Location
    """The place of the connection, which is the place of its best subflow."""
    move: Move = Move.GO_ON
    remove: tuple[tuple[IPAddress, RemovalReason], ...] = ()
    leave: tuple[IPAddress, ...] = ()
    """The local addresses of the subflows that work, but are not needed any more."""
    settle: bool = False
    """Remove the subflows that were requested in vain, because a working subflow can tell the peer."""
    prompt: bool = False
    """Make the peer send what it has kept, because none of the subflows by which it has sent works any more."""


def plan_subflows(
    facts: SubflowFacts,
    network: Network,
    place: Location,
    decision: Decision,
    routed: Callable[[Interface], bool],
    *,
    keep: bool,
) -> SubflowOrders:
    """Decide which subflows to add and to remove.

    :param place: where the connection is
    :param routed: as for :func:`bindsock.stream.viability.assess`
    :param keep: do not move a working connection to a better interface
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
        # Its address is on another interface now. The subflow is bound to the old one, and cannot be bound to another.
        working = tuple(subflow for subflow in working if not _is_at(subflow, place))
        if not working:
            return SubflowOrders(found, place, remove=tuple(remove))
    here = _best(working, place, target, keep=keep)
    if here is None:
        return _without_working_subflow(facts, found, place, tuple(remove))
    if here != place:
        found = assess(network, here, decision, routed)
    remove += [(address, "lost") for address in facts.situation.lost]
    there = target is not None and here.index == target.index
    move = Move.CANCEL
    leave: tuple[IPAddress, ...] = ()
    if target is not None and not there and not (keep and found.viability is Viability.WORKS):
        if facts.unprivileged:
            move = Move.GO_ON
        elif target.index in facts.refused:
            move = Move.RETRY
        else:
            move = Move.BEGIN
            found = found._replace(viability=Viability.WORKS, better=None)
    elif there and not keep:
        leave = tuple(subflow.local for subflow in working if subflow.index != here.index)
    prompt = facts.before is not None and facts.before.isdisjoint(facts.situation.carriers)
    return SubflowOrders(found, here, move, tuple(remove), leave, settle=True, prompt=prompt)


def _without_working_subflow(
    facts: SubflowFacts, found: Assessment, place: Location, remove: tuple[tuple[IPAddress, RemovalReason], ...]
) -> SubflowOrders:
    """Decide what to do while no subflow works."""
    if found.target is None:
        return SubflowOrders(found, place, Move.SUSPEND, remove)
    if not facts.unprivileged and found.target.index not in facts.refused:
        return SubflowOrders(found._replace(viability=Viability.WORKS, better=None), place, Move.BEGIN, remove)
    if not facts.unprivileged:
        # The interface may not have been ready yet, or not any more. The next reading shows it; otherwise the connection ends
        # soon. If its place works, the peer has ended its last subflow.
        reason = found.reason if found.viability is not Viability.WORKS else "the peer has ended its last subflow"
        found = found._replace(viability=Viability.STALLED, better=None, reason=reason)
    return SubflowOrders(found, place, Move.GO_ON, remove)


def _best(working: Sequence[Location], place: Location, target: Interface | None, *, keep: bool) -> Location | None:
    on_target = [subflow for subflow in working if target is not None and subflow.index == target.index]
    current = [subflow for subflow in working if subflow == place]
    order = [*current, *on_target] if keep else [*on_target, *current]
    return next(iter([*order, *working]), None)


def _is_at(subflow: Location, place: Location) -> bool:
    return (subflow.local, subflow.index) == (place.local, place.index)


def _dead(found: Assessment, reason: str) -> Assessment:
    """The assessment that ends the connection, whether or not a new one could be made."""
    return found._replace(viability=Viability.DEAD, usable=True, reason=reason)
