"""Networks written as ``ip`` prints them."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from bindsock.model.network import Interface, InterfaceAddress, InterfaceKind, Route, RouteKind
from bindsock.testing import interface, network

V4, V6 = socket.AF_INET, socket.AF_INET6


def only_route(line: str, *interfaces: str) -> Route:
    (found,) = network(*interfaces, line).routes
    return found


def test_an_interface_has_what_its_line_says() -> None:
    line = (
        "7: wwan0 cellular 192.0.2.5/24 2001:db8::5/64!tentative 2001:db8::6/64!deprecated!temporary "
        "no-carrier dormant expensive constrained last-resort mtu 1400 altname wwp0s1 altname modem delegate 3"
    )
    assert interface(line) == Interface(
        "wwan0",
        7,
        InterfaceKind.CELLULAR,
        up=True,
        running=False,
        addresses=(
            InterfaceAddress(ip_address("192.0.2.5"), 24),
            InterfaceAddress(ip_address("2001:db8::5"), 64, tentative=True),
            InterfaceAddress(ip_address("2001:db8::6"), 64, deprecated=True, temporary=True),
        ),
        mtu=1400,
        delegate=3,
        expensive=True,
        constrained=True,
        last_resort=True,
        dormant=True,
        alternative_names=("wwp0s1", "modem"),
    )


def test_an_interface_that_is_down_has_no_carrier() -> None:
    down = interface("eth0 wired 192.0.2.5/24 down")
    assert (down.up, down.running) == (False, False)


def test_interfaces_are_counted_unless_they_have_a_number() -> None:
    made = network("lo loopback\neth0 wired\n9: wifi0 wifi", "tun0 tunnel delegate eth0").interfaces
    assert {index: found.name for index, found in made.items()} == {1: "lo", 2: "eth0", 9: "wifi0", 4: "tun0"}
    assert made[4].delegate == 2


def test_a_route_has_what_its_line_says() -> None:
    line = "198.51.100.0/24 via 192.0.2.1 dev eth0 metric 600 table 52 pref high scoped"
    expected = Route(ip_network("198.51.100.0/24"), 1, ip_address("192.0.2.1"), 600, 52, scoped=True, preference=1)
    assert only_route(line, "eth0 wired") == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("default dev eth0", Route(ip_network("0.0.0.0/0"), 1)),
        ("default via fe80::1 dev eth0", Route(ip_network("::/0"), 1, ip_address("fe80::1"))),
        ("default6 dev eth0", Route(ip_network("::/0"), 1)),
        ("default via inet6 fe80::1 dev eth0", Route(ip_network("0.0.0.0/0"), 1, ip_address("fe80::1"))),
        ("192.0.2.9 dev eth0", Route(ip_network("192.0.2.9/32"), 1)),
        ("default dev 44 table default", Route(ip_network("0.0.0.0/0"), 44, table=253)),
        ("blackhole 10.0.0.0/8", Route(ip_network("10.0.0.0/8"), None, kind=RouteKind.BLACKHOLE)),
        ("unreachable default6 table main", Route(ip_network("::/0"), None, kind=RouteKind.UNREACHABLE)),
    ],
)
def test_a_route_is_read_as_ip_prints_it(line: str, expected: Route) -> None:
    assert only_route(line, "eth0 wired 192.0.2.5/24") == expected


def test_values_are_taken_as_they_are_and_in_their_place() -> None:
    eth0, anywhere = interface("5: eth0 wired 192.0.2.5/24"), Route(ip_network("0.0.0.0/0"), 5)
    made = network("10.0.0.0/8 dev eth0", eth0, anywhere, "blackhole 10.1.0.0/16")
    assert made.interfaces == {5: eth0}
    assert [str(found.destination) for found in made.routes] == ["10.0.0.0/8", "0.0.0.0/0", "10.1.0.0/16"]


def test_default_routes_are_confirmed_but_where_it_is_said_that_they_are_not() -> None:
    lines = "eth0 wired 192.0.2.5/24\nwifi0 wifi 192.0.2.6/24", "default dev eth0", "default dev wifi0 metric 9"
    assert set(network(*lines).defaults) == {(1, V4), (2, V4)}
    assert set(network(*lines, unconfirmed=["wifi0"]).defaults) == {(1, V4)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["eth0"], "the line ends too early"),
        (["eth0 ethernet"], "ethernet"),
        (["eth0 wired expansive"], "expansive"),
        (["eth0 wired 192.0.2.5/24!old"], "old"),
        (["eth0 wired mtu"], "the line ends too early"),
        (["x: eth0 wired"], "x"),
        (["eth0 wired", "default via 192.0.2.1 dev wifi0"], "there is no interface 'wifi0'"),
        (["eth0 wired", "default dev eth0 onlink"], "unknown word 'onlink'"),
        (["eth0 wired", "default dev eth0 pref best"], "'best' is not high, medium or low"),
        (["eth0 wired", "default dev"], "the line ends too early"),
        (["1: eth0 wired", "1: wifi0 wifi"], "eth0 and wifi0 have the same index 1"),
    ],
)
def test_a_line_that_cannot_be_understood_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(*lines)
