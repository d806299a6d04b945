"""The effect of a network change on one connection."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from bindsock.model.network import Interface, Network
from bindsock.routing.effective import Decider
from bindsock.stream.viability import (
    IDLE,
    LATEST,
    Assessment,
    Countdown,
    Location,
    Viability,
    assess,
    location_of,
)
from bindsock.testing import interface, network

PEER = ip_address("198.51.100.7")
LOCAL = ip_address("192.0.2.5")
PLACE = Location("wifi0", 2, LOCAL, 2)
WIFI = interface("2: wifi0 wifi 192.0.2.5/24")
ETHERNET = interface("3: eth0 wired 203.0.113.5/24")
BY_WIFI = "default via 192.0.2.1 dev 2 metric 600"
BY_ETHERNET = "default via 203.0.113.1 dev eth0 metric 700"


def judge(reading: Network, place: Location = PLACE, *, pin: str | None = None) -> Assessment:
    def routed(interface: Interface) -> bool:
        return any(r.interface == interface.index for r in reading.routes)

    return assess(reading, place, Decider(reading, interface=pin).decide(PEER), routed)


def test_all_is_well_where_a_new_connection_would_leave_by_the_same_interface() -> None:
    found = judge(network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET))
    assert (found.viability, found.better, found.reason) == (Viability.WORKS, None, "")


@pytest.mark.parametrize(
    ("wifi", "reason"),
    [
        (None, "wifi0 is gone"),
        (interface("2: wifi0 wifi 192.0.2.5/24 down"), "wifi0 is down"),
        (interface("2: wifi0 wifi"), "wifi0 has lost the address 192.0.2.5"),
        (interface("2: wifi0 wifi 192.0.2.77/24"), "wifi0 has lost the address 192.0.2.5"),
        (interface("9: wifi0 wifi 192.0.2.5/24"), "wifi0 is gone"),
    ],
)
def test_dead_where_the_interface_or_the_address_is_gone(wifi: Interface | None, reason: str) -> None:
    parts = [] if wifi is None else [wifi]
    found = judge(network(*parts, ETHERNET, BY_ETHERNET))
    assert (found.viability, found.reason, found.target) == (Viability.DEAD, reason, ETHERNET)
    assert found.usable


def test_dead_and_nothing_else_usable() -> None:
    found = judge(network("2: wifi0 wifi down"))
    assert found.viability is Viability.DEAD
    assert not found.usable


def test_renumbered_is_dead_though_the_interface_is_the_same() -> None:
    renumbered = interface("2: wifi0 wifi 192.0.2.99/24")
    found = judge(network(renumbered, BY_WIFI))
    assert (found.viability, found.target) == (Viability.DEAD, renumbered)


def test_another_address_beside_the_own_one_harms_nobody() -> None:
    found = judge(network("2: wifi0 wifi 192.0.2.99/24 192.0.2.5/24", BY_WIFI))
    assert found.viability is Viability.WORKS


def test_a_rename_harms_nobody() -> None:
    found = judge(network("2: wlp3s0 wifi 192.0.2.5/24", BY_WIFI))
    assert found.viability is Viability.WORKS


def test_without_carrier_it_is_stalled() -> None:
    found = judge(network("2: wifi0 wifi 192.0.2.5/24 no-carrier", ETHERNET, BY_WIFI, BY_ETHERNET))
    assert (found.viability, found.reason, found.target) == (Viability.STALLED, "wifi0 has no carrier", ETHERNET)


def test_without_a_route_it_is_stalled() -> None:
    found = judge(network(WIFI, ETHERNET, BY_ETHERNET))
    assert (found.viability, found.target) == (Viability.STALLED, ETHERNET)
    assert "no route" in found.reason


def test_without_any_route_it_stays() -> None:
    found = judge(network(WIFI, ETHERNET))
    assert found.viability is Viability.WORKS
    assert not found.usable


def test_a_better_path_does_not_make_it_any_less_viable() -> None:
    by_wifi = "default via 192.0.2.1 dev 2 metric 800"
    found = judge(network(WIFI, ETHERNET, by_wifi, BY_ETHERNET))
    assert (found.viability, found.better) == (Viability.WORKS, ETHERNET)


def test_a_pin_knows_no_better_path() -> None:
    by_wifi = "default via 192.0.2.1 dev 2 metric 800"
    found = judge(network(WIFI, ETHERNET, by_wifi, BY_ETHERNET), pin="wifi0")
    assert (found.viability, found.better) == (Viability.WORKS, None)


def test_the_address_may_have_moved_along_with_the_network() -> None:
    bridge = interface("4: br0 bridge 192.0.2.5/24")
    found = judge(network("2: wifi0 wifi", bridge, "default via 192.0.2.1 dev br0"))
    assert (found.viability, found.moved) == (Viability.DEAD, bridge)


def test_the_address_of_another_interface_is_looked_for_where_it_was() -> None:
    reading = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET)
    weak = location_of(reading, "wifi0", 2, ip_address("203.0.113.5"))
    assert weak.owner == 3
    assert judge(reading, weak).viability is Viability.WORKS
    assert judge(network(WIFI, BY_WIFI), weak).viability is Viability.DEAD


def test_counting_down_ends_when_idle() -> None:
    countdown = Countdown(100.0, 1)
    assert not countdown.due(100.0 + IDLE - 1, 1)
    assert countdown.due(100.0 + IDLE, 1)


def test_counting_down_begins_again_with_each_byte_and_ends_nevertheless() -> None:
    countdown = Countdown(100.0, 0)
    for second in range(1, int(LATEST)):
        assert not countdown.due(100.0 + second, second)
    assert countdown.due(100.0 + LATEST, 30)


def test_unknown_activity_is_not_idle() -> None:
    countdown = Countdown(100.0, None)
    assert not countdown.due(100.0 + IDLE, None)
    assert countdown.due(100.0 + LATEST, None)


def test_connections_with_the_same_pin_share_a_decider() -> None:
    decider = Decider(network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET))
    other = decider.with_pin("eth0")
    assert other.pin == "eth0"
    assert decider.with_pin("eth0") is other
    assert decider.with_pin(None) is decider
    assert other.with_pin("eth0") is other
