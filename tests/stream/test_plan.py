"""The commands for a multipath connection, as tables of its states."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bindsock.model.network import Interface, InterfaceKind, Network
from bindsock.model.subflows import Subflow
from bindsock.options import BetterPath
from bindsock.routing.effective import Decider, Preferences
from bindsock.stream.multipath.plan import Move, Situation, SubflowFacts, SubflowOrders
from bindsock.stream.plan import Facts, Orders, Requirement, Step, plan
from bindsock.stream.viability import ROUTE_GRACE, Location, Viability
from bindsock.testing import interface, network

PEER = ip_address("198.51.100.7")
HERE, THERE = ip_address("192.0.2.5"), ip_address("203.0.113.5")
ON_WIFI, ON_ETHERNET = Location("wifi0", 2, HERE, 2), Location("eth0", 3, THERE, 3)

WIFI = interface("2: wifi0 wifi 192.0.2.5/24")
CELLULAR = replace(WIFI, kind=InterfaceKind.CELLULAR)
ETHERNET = interface("3: eth0 wired 203.0.113.5/24")
BRIDGE = interface("4: br0 bridge 192.0.2.5/24")
BY_WIFI = "default via 192.0.2.1 dev wifi0 metric 600"
BY_ETHERNET = "default via 203.0.113.1 dev eth0 metric 700"
BY_ETHERNET_FIRST = "default via 203.0.113.1 dev eth0 metric 100"
BY_BRIDGE = "default via 192.0.2.1 dev br0 metric 100"

BOTH = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET)
ETHERNET_BETTER = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
CELLULAR_WORSE = network(CELLULAR, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
UNPLUGGED = network(replace(WIFI, running=False), ETHERNET, BY_WIFI, BY_ETHERNET)
UNPLUGGED_ALONE = network(replace(WIFI, running=False), BY_WIFI)
ROUTE_LOST = network(WIFI, ETHERNET, BY_ETHERNET)
WIFI_GONE = network(ETHERNET, BY_ETHERNET)
NOTHING = network("2: wifi0 wifi down")
BRIDGED = network("2: wifi0 wifi", BRIDGE, ETHERNET, BY_BRIDGE, BY_ETHERNET)


def facts(seen: Network, requirement: Requirement | None = None, place: Location = ON_WIFI) -> Facts:
    requirement = requirement or Requirement(PEER)
    decider = Decider(seen, Preferences(), interface=requirement.pin)

    def routed(interface: Interface) -> bool:
        return (interface.index, socket.AF_INET) in seen.reachable

    return Facts(requirement, place, seen, decider.decide(PEER), decider.preferences, routed)


@pytest.mark.parametrize(
    ("seen", "better_path", "step"),
    [
        (BOTH, "auto", Step.STAY),
        (BOTH, "abort", Step.STAY),
        (ETHERNET_BETTER, "auto", Step.STAY),
        (ETHERNET_BETTER, "keep", Step.STAY),
        (ETHERNET_BETTER, "abort", Step.LEAVE),
        (CELLULAR_WORSE, "auto", Step.LEAVE_WHEN_IDLE),
        (CELLULAR_WORSE, "keep", Step.STAY),
        (CELLULAR_WORSE, "abort", Step.LEAVE),
        (UNPLUGGED, "auto", Step.WAIT),
        (UNPLUGGED, "keep", Step.WAIT),
        (UNPLUGGED_ALONE, "auto", Step.WAIT),
        (ROUTE_LOST, "auto", Step.WAIT),
        (WIFI_GONE, "auto", Step.END),
        (WIFI_GONE, "keep", Step.END),
        (NOTHING, "auto", Step.KEEP),
        (BRIDGED, "auto", Step.MOVE_ALONG),
        (BRIDGED, "keep", Step.MOVE_ALONG),
    ],
)
def test_what_a_reading_means_for_a_connection(seen: Network, better_path: BetterPath, step: Step) -> None:
    assert plan(facts(seen, Requirement(PEER, better_path=better_path))).step is step


@pytest.mark.parametrize(
    ("seen", "better_path", "step"),
    [
        (BOTH, "auto", Step.STAY),
        (ETHERNET_BETTER, "auto", Step.LEAVE),
        (ETHERNET_BETTER, "keep", Step.STAY),
        (CELLULAR_WORSE, "auto", Step.LEAVE),
        (UNPLUGGED, "auto", Step.WAIT),
        (WIFI_GONE, "keep", Step.END),
    ],
)
def test_what_it_means_for_one_that_is_replaced(seen: Network, better_path: BetterPath, step: Step) -> None:
    assert plan(facts(seen, Requirement(PEER, better_path=better_path, replaceable=True))).step is step


@pytest.mark.parametrize("replaceable", [False, True])
@pytest.mark.parametrize("seen", [ETHERNET_BETTER, CELLULAR_WORSE, UNPLUGGED, ROUTE_LOST, WIFI_GONE])
def test_one_that_the_peer_has_ended_is_kept(seen: Network, replaceable: bool) -> None:
    requirement = Requirement(PEER, better_path="auto" if replaceable else "abort", replaceable=replaceable)
    orders = plan(facts(seen, requirement)._replace(finished=lambda: True, waited=True))
    assert (orders.step, orders.finished, orders.overdue) == (Step.KEEP, True, False)


@pytest.mark.parametrize("seen", [BOTH, BRIDGED, NOTHING])
def test_whether_the_peer_has_ended_one_is_not_asked_without_need(seen: Network) -> None:
    def finished() -> bool:
        raise AssertionError("it was asked")

    assert not plan(facts(seen)._replace(finished=finished)).finished


def test_a_multipath_connection_whose_stream_is_over_needs_no_subflow() -> None:
    for situation in (Situation(()), Situation((), lost=(HERE,))):
        subflows = SubflowFacts(situation)
        orders = plan(facts(WIFI_GONE)._replace(subflows=subflows, finished=lambda: True))
        assert (orders.step, orders.finished, orders.subflows) == (Step.KEEP, True, None)


def test_one_that_has_been_stalled_for_long_ends_if_another_could_be_made() -> None:
    assert plan(facts(UNPLUGGED)._replace(waited=True)).step is Step.END
    assert plan(facts(UNPLUGGED_ALONE)._replace(waited=True)).step is Step.KEEP
    assert plan(facts(BOTH)._replace(waited=True)).step is Step.STAY


def test_one_that_is_replaced_is_never_ended_for_being_stalled() -> None:
    orders = plan(facts(UNPLUGGED, Requirement(PEER, replaceable=True))._replace(waited=True))
    assert (orders.step, orders.overdue) == (Step.WAIT, True)


def test_a_lost_route_is_given_a_moment_and_a_lost_carrier_none() -> None:
    assert plan(facts(ROUTE_LOST)).found.grace == ROUTE_GRACE
    assert plan(facts(UNPLUGGED)).found.grace == 0.0


def test_it_moves_along_with_its_address_unless_that_was_refused() -> None:
    orders = plan(facts(BRIDGED))
    assert orders.place == Location("br0", 4, HERE, 4)
    assert plan(facts(BRIDGED)._replace(place=orders.place)).step is Step.STAY
    assert plan(facts(BRIDGED)._replace(immovable=True)).step is Step.END


def over(seen: Network, *working: Location, keep: bool = False, place: Location = ON_WIFI, **known: Any) -> Orders:
    """The commands for a multipath connection with these subflows."""
    situation = known.pop("situation", Situation(working))
    subflows = replace(SubflowFacts(situation), **known)
    requirement = Requirement(PEER, better_path="keep" if keep else "auto")
    return plan(facts(seen, requirement, place)._replace(subflows=subflows))


def subflow_orders(orders: Orders) -> SubflowOrders:
    assert orders.subflows is not None
    return orders.subflows


@pytest.mark.parametrize(
    ("seen", "working", "keep", "known", "move", "step"),
    [
        (BOTH, [ON_WIFI], False, {}, Move.CANCEL, Step.STAY),
        (ETHERNET_BETTER, [ON_WIFI], False, {}, Move.BEGIN, Step.STAY),
        (ETHERNET_BETTER, [ON_WIFI], True, {}, Move.CANCEL, Step.STAY),
        (ETHERNET_BETTER, [ON_WIFI], False, {"refused": frozenset({3})}, Move.RETRY, Step.STAY),
        (ETHERNET_BETTER, [ON_WIFI], False, {"unprivileged": True}, Move.GO_ON, Step.STAY),
        (ROUTE_LOST, [ON_WIFI], True, {}, Move.BEGIN, Step.STAY),
        (WIFI_GONE, [], False, {}, Move.BEGIN, Step.STAY),
        (WIFI_GONE, [], False, {"refused": frozenset({3})}, Move.GO_ON, Step.WAIT),
        (WIFI_GONE, [], False, {"unprivileged": True}, Move.GO_ON, Step.END),
        (UNPLUGGED, [], False, {"unprivileged": True}, Move.GO_ON, Step.WAIT),
        (NOTHING, [], False, {}, Move.SUSPEND, Step.KEEP),
        (BOTH, [ON_WIFI], False, {"silent_for": 7.0}, Move.GO_ON, Step.END),
        (BRIDGED, [Location("wifi0", 2, HERE, 4)], False, {}, Move.GO_ON, Step.END),
        (BRIDGED, [Location("br0", 4, HERE, 4)], False, {}, Move.CANCEL, Step.STAY),
    ],
)
def test_which_order_is_given_to_the_subflows(
    seen: Network, working: list[Location], keep: bool, known: dict[str, Any], move: Move, step: Step
) -> None:
    orders = over(seen, *working, keep=keep, **known)
    assert (subflow_orders(orders).move, orders.step) == (move, step)


def test_what_has_joined_is_where_the_connection_is_and_the_rest_is_ended() -> None:
    orders = over(ETHERNET_BETTER, ON_WIFI, ON_ETHERNET)
    assert orders.place == ON_ETHERNET
    assert subflow_orders(orders).leave == (HERE,)
    orders = over(WIFI_GONE, situation=Situation((ON_ETHERNET,), lost=(HERE,)))
    assert (orders.place, subflow_orders(orders).remove) == (ON_ETHERNET, ((HERE, "lost"),))


@pytest.mark.parametrize(
    ("before", "carriers", "prompt"),
    [
        (["a"], ["a"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["b"], False),
        (["a"], ["b"], True),
        (["a", "b"], ["c", "d"], True),
        ([], ["a"], True),
        (None, ["a"], False),
    ],
)
def test_a_peer_is_prompted_when_no_subflow_is_left_of_those_before(
    before: list[str] | None, carriers: list[str], prompt: bool
) -> None:
    made = {name: Subflow(HERE, port, PEER, 443) for port, name in enumerate("abcd")}
    seen = Situation((ON_WIFI,), carriers=frozenset(made[name] for name in carriers))
    known = frozenset(made[name] for name in before) if before is not None else None
    assert subflow_orders(over(BOTH, situation=seen, before=known)).prompt is prompt


def test_a_peer_is_not_prompted_while_no_subflow_works() -> None:
    before = frozenset({Subflow(HERE, 1, PEER, 443)})
    assert not subflow_orders(over(WIFI_GONE, situation=Situation((), lost=(HERE,)), before=before)).prompt


def test_one_that_is_to_be_kept_ends_no_subflow_that_works() -> None:
    orders = over(ETHERNET_BETTER, ON_WIFI, ON_ETHERNET, keep=True)
    assert orders.place == ON_WIFI
    assert subflow_orders(orders).leave == ()


def test_a_subflow_where_none_may_be_is_ended_or_the_connection_is() -> None:
    inside = ip_address("10.66.0.2")
    forbidden = Situation((ON_WIFI,), forbidden=((inside, "tun0"),))
    orders = over(BOTH, situation=forbidden)
    assert (orders.step, subflow_orders(orders).remove) == (Step.STAY, ((inside, "forbidden"),))
    orders = over(BOTH, situation=forbidden, irremovable=frozenset({inside}))
    assert orders.step is Step.END
    assert "tun0" in orders.found.reason


def test_what_is_refused_where_nothing_works_is_stalled_until_it_ends() -> None:
    orders = over(WIFI_GONE, refused=frozenset({3}))
    assert orders.found.viability is Viability.STALLED
