"""Decides what to do with a stream connection when the network has changed: values and pure functions.

:class:`Facts` describe one connection in one reading of the network, and :func:`plan` turns them into :class:`Orders`.
:class:`bindsock.stream.follower.PathFollower` carries out the orders that concern the connection itself; its owner ends or
replaces the connection. A failed order becomes a new fact, and the plan is made again.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.options import BetterPath
from bindsock.routing.effective import Preferences, is_expensive
from bindsock.stream.multipath.plan import SubflowFacts, SubflowOrders, plan_subflows
from bindsock.stream.viability import Assessment, Location, Viability, assess


class Requirement(NamedTuple):
    """What the program requires of a connection."""

    target: IPAddress
    """The address of the peer."""
    pin: str | None = None
    """The name of the interface to which the connection is pinned."""
    better_path: BetterPath = "auto"
    """What to do with a working connection when another interface is better."""
    dead_after: float | None = None
    """Seconds without an answer after which a multipath connection is dead. For plain TCP the kernel measures them."""
    replaceable: bool = False
    """The connection will be replaced when it is lost. A stalled one is kept until its replacement is ready."""


class Facts(NamedTuple):
    """The input of :func:`plan`."""

    requirement: Requirement
    place: Location
    """Where the connection is."""
    network: Network
    decision: Decision
    """The decision for the peer's address in this network."""
    preferences: Preferences
    routed: Callable[[Interface], bool]
    """Whether a route to the peer leaves by an interface. Called only if the decision names another interface."""
    waited: bool = False
    """The connection has been stalled for the longest allowed time."""
    finished: Callable[[], bool] = lambda: False
    """As :meth:`bindsock.kernel.Kernel.has_finished`. Called only if the connection would otherwise not stay."""
    immovable: bool = False
    """The system refused to bind the socket to the interface that has its local address now."""
    subflows: SubflowFacts | None = None
    """``None`` for plain TCP."""


class Step(enum.Enum):
    """What to do with a connection."""

    STAY = enum.auto()
    """Do nothing: it works."""
    MOVE_ALONG = enum.auto()
    """Bind the socket to the interface that has its local address now. TCP survives this."""
    WAIT = enum.auto()
    """Wait for the carrier or the route, because it is stalled. Meanwhile prepare the replacement, if it is replaceable."""
    KEEP = enum.auto()
    """Keep it: it does not work, but a new one would not work, either, and the path may come back. Or the peer has ended it, and
    nothing can be lost any more."""
    END = enum.auto()
    """End it: it cannot work any more, and a new one could."""
    LEAVE = enum.auto()
    """End or replace it, although it works, because another interface is better."""
    LEAVE_WHEN_IDLE = enum.auto()
    """The same as :attr:`LEAVE`, but only once it is idle."""


class Orders(NamedTuple):
    """What to do: first the orders to the subflows, then the step."""

    step: Step
    place: Location
    """Where the connection is after the orders are carried out."""
    found: Assessment
    overdue: bool = False
    """It has been stalled for the longest allowed time."""
    subflows: SubflowOrders | None = None
    finished: bool = False
    """It is kept because nothing can be lost any more, unless the program writes again."""


def plan(facts: Facts) -> Orders:
    """Decide what to do with the connection."""
    if facts.subflows is not None:
        # When the stream has ended on both sides, so do the subflows.
        if not facts.subflows.situation.working and facts.finished():
            return _kept(facts, assess(facts.network, facts.place, facts.decision, facts.routed))
        orders = plan_subflows(
            facts.subflows,
            facts.network,
            facts.place,
            facts.decision,
            facts.routed,
            keep=facts.requirement.better_path == "keep",
        )
        return _orders(facts, orders.place, orders.found, orders)
    found = assess(facts.network, facts.place, facts.decision, facts.routed)
    if found.moved is not None and not facts.immovable:
        index = found.moved.index
        place = dataclasses.replace(facts.place, interface=found.moved.name, index=index, owner=index)
        return Orders(Step.MOVE_ALONG, place, found)
    return _orders(facts, facts.place, found)


def _orders(facts: Facts, place: Location, found: Assessment, subflows: SubflowOrders | None = None) -> Orders:
    step = _step(facts, place, found)
    if subflows is None and step not in (Step.STAY, Step.KEEP) and facts.finished():
        return _kept(facts, found)
    overdue = facts.waited and found.viability is Viability.STALLED
    return Orders(step, place, found, overdue, subflows)


def _kept(facts: Facts, found: Assessment) -> Orders:
    return Orders(Step.KEEP, facts.place, found, finished=True)


def _step(facts: Facts, place: Location, found: Assessment) -> Step:
    requirement = facts.requirement
    if found.viability is Viability.STALLED and (requirement.replaceable or not facts.waited):
        return Step.WAIT
    if found.viability is not Viability.WORKS:
        return Step.END if found.usable else Step.KEEP
    if found.better is None or requirement.better_path == "keep":
        return Step.STAY
    if requirement.better_path == "abort" or requirement.replaceable:
        return Step.LEAVE
    return Step.LEAVE_WHEN_IDLE if _saves_cost(facts, place, found.better) else Step.STAY


def _saves_cost(facts: Facts, place: Location, better: Interface) -> bool:
    """Whether the connection is on an expensive interface and the better one is not expensive."""
    interface = facts.network.interfaces.get(place.index)
    preferences = facts.preferences
    return interface is not None and is_expensive(interface, preferences) and not is_expensive(better, preferences)
