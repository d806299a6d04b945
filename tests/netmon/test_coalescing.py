"""When the network is read, and which changes are announced, on a virtual clock."""

from __future__ import annotations

import socket
from itertools import pairwise

import pytest

from bindsock.model.change import Cause, Change
from bindsock.model.decision import Decision
from bindsock.model.network import FAMILIES, Network
from bindsock.netmon.announcing import GRACE, Announcer, merged
from bindsock.netmon.coalescing import BURST, LONGEST, QUIET, RECONCILE, VERIFY, Coalescer
from bindsock.routing.effective import Decider
from bindsock.testing import network

WIFI = network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0")
WIFI_ELSEWHERE = network("2: wifi0 wifi 198.51.100.5/24", "default via 198.51.100.1 dev wifi0")
ETHERNET = network("3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0")
NOTHING = network()


def decisions(reading: Network) -> dict[socket.AddressFamily, Decision]:
    decider = Decider(reading)
    return {family: decider.decide(family) for family in FAMILIES}


def run(coalescer: Coalescer, events: list[float], until: float, cost: float = 0.0) -> list[tuple[float, Cause]]:
    """Play the events. Returns the readings as (time, cause)."""
    readings = []
    pending = sorted(events)
    while True:
        deadline = coalescer.deadline()
        if pending and pending[0] <= deadline:
            now = pending.pop(0)
            if coalescer.event(now):
                readings.append((now, Cause.EVENTS))
                coalescer.read(now, cost)
        elif deadline <= until:
            cause = coalescer.due(deadline)
            assert cause is not None, "a deadline at which nothing is due would spin"
            readings.append((deadline, cause))
            coalescer.read(deadline, cost)
        else:
            return readings


def test_the_first_event_is_acted_on_at_once_and_verified_twice() -> None:
    assert run(Coalescer(0.0), [1.0], until=10.0) == [
        (1.0, Cause.EVENTS),
        (1.0 + QUIET, Cause.EVENTS),
        (1.0 + VERIFY, Cause.RECONCILE),
    ]


def test_the_last_event_of_a_burst_is_followed_by_a_reading() -> None:
    burst = [1.0 + n / 1000 for n in range(100)]
    readings = run(Coalescer(0.0), burst, until=3.0)
    assert readings[-1][0] == burst[-1] + QUIET
    assert len(readings) == BURST + 1


def test_what_a_hurried_reading_could_not_show_waits_for_the_complete_one() -> None:
    coalescer = Coalescer(0.0)
    assert [coalescer.event(1.0 + n / 1000, urgent=False) for n in range(2 * BURST)] == [False] * 2 * BURST
    assert coalescer.deadline() == 1.0 + (2 * BURST - 1) / 1000 + QUIET
    assert coalescer.event(1.1), "and takes nothing from what cannot wait"


def test_what_is_urgent_does_not_starve_behind_what_is_not() -> None:
    coalescer = Coalescer(0.0)
    assert all(coalescer.event(1.0) for _ in range(BURST))
    coalescer.read(1.0, 0.0)
    assert not coalescer.event(1.0), "no token is left for it"
    assert not coalescer.event(1.05, urgent=False)
    assert coalescer.event(1.01 + QUIET, urgent=False), "there is one now"
    coalescer.read(1.01 + QUIET, 0.0)
    assert not coalescer.event(2.0, urgent=False)


def test_an_endless_flood_gets_few_readings_but_never_starves() -> None:
    flood = [n / 100 for n in range(6000)]
    times = [time for time, _ in run(Coalescer(0.0), flood, until=59.0)]
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) <= LONGEST
    assert len(times) <= BURST + 60 / QUIET + 2


def test_slow_readings_are_made_less_often() -> None:
    flood = [n / 100 for n in range(6000)]
    cost = 0.1
    times = [time for time, _ in run(Coalescer(0.0), flood, until=59.0, cost=cost)]
    assert len(times) <= BURST + 60 / LONGEST + 60 / (50 * cost) + 2
    assert max(b - a for a, b in pairwise(times)) <= LONGEST + 0.02


def test_it_reconciles_every_minute_without_any_event() -> None:
    assert run(Coalescer(0.0), [], until=200.0) == [(RECONCILE * n, Cause.RECONCILE) for n in (1, 2, 3)]


def test_a_refused_send_is_named_as_the_cause() -> None:
    coalescer = Coalescer(0.0)
    assert coalescer.event(1.0, Cause.SEND_ERROR)
    coalescer.read(1.0, 0.0)
    assert coalescer.due(1.0 + QUIET) is Cause.SEND_ERROR


def announcer(start: Network) -> Announcer:
    return Announcer(decisions(start))


def test_a_gain_is_announced_at_once() -> None:
    change = announcer(NOTHING).update(1.0, Cause.EVENTS, decisions(WIFI))
    assert change is not None
    assert change.number == 1
    assert change.ipv4.new_path is not None
    assert change.ipv4.new_path.interface == "wifi0"
    assert not change.ipv6.moved


def test_a_loss_is_held_for_the_grace() -> None:
    a = announcer(WIFI)
    assert a.update(1.0, Cause.EVENTS, decisions(NOTHING)) is None
    assert a.deadline() == 1.0 + GRACE
    assert a.update(1.0 + GRACE - 0.1, Cause.EVENTS, decisions(NOTHING)) is None
    change = a.update(1.0 + GRACE, Cause.EVENTS, decisions(NOTHING))
    assert change is not None
    assert change.ipv4.new_path is None
    assert a.deadline() is None


def test_a_flap_within_the_grace_is_never_heard_of() -> None:
    a = announcer(WIFI)
    assert a.update(1.0, Cause.EVENTS, decisions(NOTHING)) is None
    assert a.update(2.0, Cause.EVENTS, decisions(WIFI)) is None
    assert a.deadline() is None


def test_a_new_interface_within_the_grace_is_announced_as_one_move() -> None:
    a = announcer(WIFI)
    assert a.update(1.0, Cause.EVENTS, decisions(NOTHING)) is None
    change = a.update(1.5, Cause.EVENTS, decisions(ETHERNET))
    assert change is not None
    assert change.ipv4.old_path is not None
    assert change.ipv4.new_path is not None
    assert (change.ipv4.old_path.interface, change.ipv4.new_path.interface) == ("wifi0", "eth0")


def test_the_same_interface_in_another_network_is_a_change() -> None:
    change = announcer(WIFI).update(1.0, Cause.EVENTS, decisions(WIFI_ELSEWHERE))
    assert change is not None
    assert change.ipv4.old_path is not None
    assert change.ipv4.new_path is not None
    assert change.ipv4.old_path.interface == change.ipv4.new_path.interface == "wifi0"


def step(a: Announcer, now: float, reading: Network) -> Change:
    change = a.update(now, Cause.EVENTS, decisions(reading))
    assert change is not None
    return change


def test_merged_changes_lead_from_the_first_old_to_the_last_new() -> None:
    a = announcer(WIFI)
    both = merged(step(a, 1.0, ETHERNET), step(a, 2.0, WIFI_ELSEWHERE))
    assert both is not None
    assert both.number == 2
    assert both.ipv4.old_path is not None
    assert both.ipv4.old_path.interface == "wifi0"


def test_changes_that_cancel_out_leave_nothing_to_say() -> None:
    a = announcer(WIFI)
    assert merged(step(a, 1.0, ETHERNET), step(a, 2.0, WIFI)) is None


@pytest.mark.parametrize("now", [0.0, 59.9])
def test_nothing_is_due_without_events(now: float) -> None:
    assert Coalescer(0.0).due(now) is None
