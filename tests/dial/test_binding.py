"""New sockets are bound to the decided interface."""

from __future__ import annotations

import contextlib
import errno
import socket
from ipaddress import ip_address
from typing import NoReturn

import pytest

from bindsock.dial.binding import MakeshiftSource, check_source, decide_and_bind
from bindsock.errors import EgressMismatch
from bindsock.model.network import IPAddress, Network
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, network

WIFI = network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0")
FAR = ip_address("203.0.113.9")


def test_a_socket_for_which_nothing_can_be_decided_is_closed() -> None:
    def fail(destination: IPAddress) -> NoReturn:
        raise OSError(errno.ENOBUFS, "the system does not answer")

    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with pytest.raises(OSError, match="the system does not answer"):
        decide_and_bind(SimulatedKernel(WIFI), Decider(WIFI, Preferences(), lookups=fail), sock, FAR)
    assert sock.fileno() == -1


UPLINKS = network(
    "1: lo loopback 127.0.0.1/8 ::1/128 2001:db8:ffff::1/128",
    "2: wifi0 wifi 2001:db8:2::5/64 fe80::2/64",
    "3: eth0 wired 203.0.113.5/24 2001:db8:3::5/64 fe80::3/64",
    "4: wwan0 cellular 198.51.100.5/24 fe80::4/64",
    "5: tun0 tunnel 10.66.0.2/24",
)


@pytest.mark.parametrize(
    ("name", "peer", "local", "makeshift"),
    [
        ("eth0", "2001:db8:9::9", "2001:db8:3::5", False),
        ("eth0", "2001:db8:9::9", "fe80::3", True),
        ("eth0", "2001:db8:9::9", "fe80::3%3", True),
        ("eth0", "2001:db8:9::9", "2001:db8:2::5", True),
        # The source of a route can be an address of the loopback.
        ("eth0", "2001:db8:9::9", "2001:db8:ffff::1", False),
        ("eth0", "fe80::9", "fe80::3", False),
        ("eth0", "ff02::fb", "fe80::3", False),
        ("wwan0", "2001:db8:9::9", "fe80::4", False),
        ("eth0", "192.0.2.9", "203.0.113.5", False),
        ("eth0", "192.0.2.9", "0.0.0.0", True),
        ("eth0", "224.0.0.251", "0.0.0.0", False),
        ("eth0", "192.0.2.9", "198.51.100.5", True),
        ("eth0", "192.0.2.9", "10.66.0.2", True),
    ],
)
def test_a_source_that_was_chosen_while_the_interface_had_none_of_its_own_is_refused(
    name: str, peer: str, local: str, makeshift: bool
) -> None:
    interface = UPLINKS.named(name)
    assert interface is not None

    def check() -> None:
        check_source(SimulatedKernel(UPLINKS), interface, UPLINKS, ip_address(peer), ip_address(local))

    if not makeshift:
        check()
        return
    with pytest.raises(MakeshiftSource) as failed:
        check()
    assert (failed.value.interface, failed.value.call, failed.value.errno) == (name, "connect", errno.EADDRNOTAVAIL)


@pytest.mark.parametrize(
    ("now", "makeshift"),
    [
        ("3: eth0 wired 203.0.113.6/24", False),
        ("1: lo loopback 203.0.113.6/32", False),
        ("5: tun0 tunnel 203.0.113.6/24", True),
        ("6: usb0 wired 203.0.113.6/24", True),
        ("5: tun0 tunnel 10.66.0.2/24", True),
        (None, True),
    ],
)
def test_an_address_that_has_not_been_read_yet_is_judged_by_whose_it_is_now(now: str | None, makeshift: bool) -> None:
    class Kernel(SimulatedKernel):
        def network(self, *, partial: bool = False) -> Network:
            if now is None:
                raise OSError(errno.ENOBUFS, "the system does not answer")
            return super().network(partial=partial)

    interface = UPLINKS.named("eth0")
    assert interface is not None
    expected = pytest.raises(MakeshiftSource) if makeshift else contextlib.nullcontext()
    with expected:
        check_source(Kernel(network(now or "")), interface, UPLINKS, FAR, ip_address("203.0.113.6"))


@pytest.mark.parametrize(("local", "of_tunnel"), [("10.66.0.2", True), ("198.51.100.5", False)])
def test_the_address_of_a_tunnel_is_an_egress_mismatch_too(local: str, of_tunnel: bool) -> None:
    interface = UPLINKS.named("eth0")
    assert interface is not None
    owner = UPLINKS.owner_of(ip_address(local))
    assert owner is not None
    with pytest.raises(MakeshiftSource, match=f"the address {local} of {owner}") as failed:
        check_source(SimulatedKernel(UPLINKS), interface, UPLINKS, FAR, ip_address(local))
    assert isinstance(failed.value, EgressMismatch) == of_tunnel
