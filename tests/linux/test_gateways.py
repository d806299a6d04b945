"""The sources that still name an interface's gateway after a VPN has taken its default route."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import pytest

from bindsock.kernel.linux.gateways import Gateways, named_by_lease, named_by_routes
from bindsock.kernel.linux.netlink import Channel
from bindsock.model.network import Interface, InterfaceAddress, Route
from bindsock.testing import interface, network
from tests.linux.namespaces import World, ip

V4, V6 = socket.AF_INET, socket.AF_INET6
ETH0 = Interface("eth0", 3, addresses=(InterfaceAddress(ipaddress.ip_address("10.2.0.2"), 24),))


def by(destination: str, gateway: str | None, table: int = 254) -> Route:
    return Route(ipaddress.ip_network(destination), 3, ipaddress.ip_address(gateway) if gateway else None, table=table)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([], None),
        ([by("10.2.0.0/24", None)], None),
        ([by("203.0.113.7/32", "10.2.0.1")], "10.2.0.1"),
        ([by("2001:db8::7/128", "fe80::1")], "fe80::1"),
        ([by("203.0.113.7/32", "10.2.0.1"), by("203.0.113.8/32", "10.2.0.1")], "10.2.0.1"),
        ([by("203.0.113.7/32", "10.2.0.1"), by("203.0.113.8/32", "10.2.0.9")], None),
        ([by("172.16.0.0/12", "10.2.0.9")], None),
        ([by("203.0.113.7/32", "10.2.0.9"), by("0.0.0.0/0", "10.2.0.1", table=77)], "10.2.0.1"),
    ],
)
def test_a_default_or_host_routes_that_agree_name_the_gateway(routes: list[Route], expected: str | None) -> None:
    found = named_by_routes(routes)
    assert (str(found.address) if found is not None else None) == expected


def packet(address: str, router: str) -> bytes:
    head = bytearray(240)
    head[16:20] = ipaddress.ip_address(address).packed
    head[236:240] = b"\x63\x82\x53\x63"
    options = b"\0\x35\x01\x05" + bytes([3, 4]) + ipaddress.ip_address(router).packed + b"\xff"
    return bytes(head) + options


DHCLIENT = """\
lease {{
  interface "{interface}";
  fixed-address {address};
  option subnet-mask 255.255.255.0;
  option routers {router};
}}
"""
LEASES = {
    "run/systemd/netif/leases/3": b"# private\nADDRESS=10.2.0.2\nNETMASK=255.255.255.0\nROUTER=10.2.0.1\n",
    "var/lib/NetworkManager/internal-0c6f-41-eth0.lease": b"ADDRESS=10.2.0.2\nROUTER=10.2.0.1 10.2.0.9\n",
    "var/lib/dhcp/dhclient.eth0.leases": DHCLIENT.format(interface="eth0", address="10.2.0.2", router="10.2.0.1").encode(),
    "var/lib/NetworkManager/dhclient-0c6f-eth0.lease": DHCLIENT.format(
        interface="eth0", address="10.2.0.2", router="10.2.0.1, 10.2.0.9"
    ).encode(),
    "var/lib/dhcpcd/eth0.lease": packet("10.2.0.2", "10.2.0.1"),
    "var/lib/dhcpcd/eth0-home.lease": packet("10.2.0.2", "10.2.0.1"),
}


def put(root: Path, name: str, data: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", LEASES)
def test_a_lease_names_the_gateway(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, LEASES[name])
    found = named_by_lease(ETH0, tmp_path)
    assert found is not None
    assert str(found.address) == "10.2.0.1"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("run/systemd/netif/leases/3", b"ADDRESS=10.7.0.2\nROUTER=10.7.0.1\n"),
        ("run/systemd/netif/leases/4", LEASES["run/systemd/netif/leases/3"]),
        ("run/systemd/netif/leases/3", b"ADDRESS=10.2.0.2\nROUTER=0.0.0.0\n"),
        ("run/systemd/netif/leases/3", b"ADDRESS=10.2.0.2\nROUTER=nonsense\n"),
        ("run/systemd/netif/leases/3", b"\xff\xfe ADDRESS"),
        ("var/lib/dhcp/dhclient.leases", DHCLIENT.format(interface="wifi0", address="10.2.0.2", router="10.2.0.1").encode()),
        ("var/lib/dhcpcd/eth0.lease", packet("10.7.0.2", "10.7.0.1")),
        ("var/lib/dhcpcd/eth0.lease", packet("10.2.0.2", "10.2.0.1")[:241]),
        ("var/lib/dhcpcd/eth0.lease", b"short"),
    ],
)
def test_a_lease_of_another_address_or_interface_names_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    put(tmp_path, name, data)
    assert named_by_lease(ETH0, tmp_path) is None


def test_the_newest_lease_counts(tmp_path: Path) -> None:
    old_lease = DHCLIENT.format(interface="eth0", address="10.2.0.2", router="10.2.0.9")
    old = put(tmp_path, "var/lib/dhcp/dhclient.leases", old_lease.encode())
    os.utime(old, (1, 1))
    first = DHCLIENT.format(interface="eth0", address="10.2.0.2", router="10.2.0.8")
    last = DHCLIENT.format(interface="eth0", address="10.2.0.2", router="10.2.0.1")
    put(tmp_path, "var/lib/dhcp/dhclient.eth0.leases", (first + last).encode())
    found = named_by_lease(ETH0, tmp_path)
    assert found is not None
    assert str(found.address) == "10.2.0.1"


def test_a_name_with_the_signs_of_a_pattern_matches_itself_only(tmp_path: Path) -> None:
    put(tmp_path, "var/lib/dhcpcd/eth0.lease", LEASES["var/lib/dhcpcd/eth0.lease"])
    assert named_by_lease(Interface("eth[0]", 3, addresses=ETH0.addresses), tmp_path) is None
    put(tmp_path, "var/lib/dhcpcd/eth[0].lease", LEASES["var/lib/dhcpcd/eth0.lease"])
    assert named_by_lease(Interface("eth[0]", 3, addresses=ETH0.addresses), tmp_path) is not None


def test_the_last_default_is_remembered_until_its_interface_is_gone() -> None:
    eth0 = interface("3: eth0 wifi 10.2.0.2/24")
    gateways = Gateways()
    gateways.note(network(eth0, "default via 10.2.0.1 dev eth0"))
    gateways.note(network(eth0))
    assert str(gateways.last(3, V4)) == "10.2.0.1"
    gateways.note(network())
    assert gateways.last(3, V4) is None


def test_what_is_to_be_learned_later_is_learned_before_a_gateway_is_named() -> None:
    eth0 = interface("3: eth0 wifi 10.2.0.2/24")
    gateways = Gateways()
    gateways.note(network(eth0, "default via 10.2.0.1 dev eth0"), later=True)
    assert str(gateways.last(3, V4)) == "10.2.0.1"
    for gateway in ("10.2.0.3", "10.2.0.4"):
        gateways.note(network(eth0, f"default via {gateway} dev eth0"), later=True)
    gateways.note(network(eth0))
    assert str(gateways.last(3, V4)) == "10.2.0.4"


@pytest.mark.lab
@pytest.mark.parametrize(
    ("family", "event", "named_by"),
    [
        (V4, "route add 198.51.100.7 via 10.2.0.1 dev eth0", "host"),
        (V4, "route add default via 10.2.0.1 dev eth0 table 77", "table 77"),
        (V6, "-6 route add 2001:db8::7 via fd10:2::1 dev eth0", "host"),
        (V6, "-6 neigh add fd10:2::1 lladdr 02:00:00:00:00:01 dev eth0 router nud reachable", "neighbour"),
    ],
)
def test_the_kernel_names_a_gateway_to_anybody(
    world: World, tmp_path: Path, family: socket.AddressFamily, event: str, named_by: str
) -> None:
    ip("route del default dev eth0", "-6 route del default dev eth0")
    gateways, channel = Gateways(tmp_path), Channel()
    eth0 = Interface("eth0", socket.if_nametoindex("eth0"))
    try:
        assert gateways.find(channel, eth0, family) is None
        ip(event)
        found = gateways.find(channel, eth0, family)
    finally:
        channel.close()
    assert found is not None
    assert str(found.address) == {V4: "10.2.0.1", V6: "fd10:2::1"}[family]
    assert named_by in found.named_by
