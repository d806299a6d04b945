"""Sockets whose interface or source address the program itself has chosen."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from bindsock.dial.chosen import has_chosen_multicast, is_left_alone, on_own_uplink, own_address, uplink_of
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, interface, network

LOOPBACK = interface("1: lo loopback 127.0.0.1/8")
WIFI = interface("2: wifi0 wifi 192.0.2.1/24 2001:db8:2::1/64")
ETHERNET = interface("3: eth0 wifi 198.51.100.1/24")
DOWN = interface("4: usb0 wifi 203.0.113.1/24 down")
TUNNEL = interface("5: tun0 tunnel 10.8.0.2/24")
NETWORK = network(
    LOOPBACK,
    WIFI,
    ETHERNET,
    DOWN,
    TUNNEL,
    "default via 192.0.2.254 dev wifi0",
    "default via 198.51.100.254 dev eth0 metric 9",
)
FAR = ip_address("203.0.113.99")

UPLINKS = {
    "the effective one's": ("192.0.2.1", Preferences(), None, "wifi0"),
    "another uplink's": ("198.51.100.1", Preferences(), None, "eth0"),
    "of the other family": ("2001:db8:2::1", Preferences(), None, "wifi0"),
    "one that is excluded": ("198.51.100.1", Preferences(exclude=["eth*"]), None, None),
    "one that is down": ("203.0.113.1", Preferences(), None, None),
    "a tunnel's": ("10.8.0.2", Preferences(), None, None),
    "the loopback's": ("127.0.0.1", Preferences(), None, None),
    "nobody's": ("192.0.2.77", Preferences(), None, None),
    "another than the pin's": ("198.51.100.1", Preferences(), "wifi0", None),
}


@pytest.mark.parametrize("what", UPLINKS)
def test_a_local_address_stands_for_the_uplink_that_has_it(what: str) -> None:
    address, preferences, pin, expected = UPLINKS[what]
    decider = Decider(NETWORK, preferences, interface=pin)
    uplink = uplink_of(decider, ip_address(address))
    assert (uplink.name if uplink is not None else None) == expected
    decision = on_own_uplink(decider, ip_address(address)).decide(FAR)
    assert decision.interface is not None
    assert decision.interface.name == (expected or "wifi0")


def test_a_socket_on_the_wildcard_address_has_chosen_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert own_address(sock) is None
        sock.bind(("", 0))
        assert own_address(sock) is None
        kernel = SimulatedKernel(NETWORK)
        assert not is_left_alone(kernel, sock)
        assert not has_chosen_multicast(kernel, sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert own_address(sock) == ip_address("127.0.0.1")


def test_an_interface_for_multicasts_is_a_choice_for_those_alone() -> None:
    kernel = SimulatedKernel(NETWORK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        assert has_chosen_multicast(kernel, sock)
        assert not is_left_alone(kernel, sock)
        kernel.bind(sock, WIFI)
        assert is_left_alone(kernel, sock)
