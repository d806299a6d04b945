"""The Linux kernel's own answers, in real network namespaces: readings, events, routes of bound sockets."""

from __future__ import annotations

import gc
import ipaddress
import os
import select
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from bindsock.kernel.linux import LinuxKernel
from bindsock.kernel.linux.netlink import AF_NETLINK, NETLINK_ROUTE, Message
from bindsock.kernel.linux.rtnetlink import events as events_module
from bindsock.kernel.linux.rtnetlink.events import RouteEvents
from bindsock.model.network import InterfaceKind, Network, Route, RouteKind
from tests.linux.namespaces import as_nobody, carrier, inside, ip, sysctl, until, until_running
from tests.networks import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bindsock.model.network import IPAddress
    from tests.linux.namespaces import World

pytestmark = pytest.mark.lab

V4, V6 = socket.AF_INET, socket.AF_INET6
SERVER4, SERVER6 = ipaddress.ip_address("10.9.0.10"), ipaddress.ip_address("fd10:9::10")


def defaults(network: Network, family: socket.AddressFamily) -> list[Route]:
    return [lookup.route for (_, of), lookup in network.defaults.items() if of == family]


def supported(*line: str) -> bool:
    """Run a line of iproute2. Returns whether the system supports it."""
    return subprocess.run(["ip", *line], capture_output=True, check=False).returncode == 0


def reachable(kernel: LinuxKernel) -> set[tuple[str, socket.AddressFamily]]:
    network = kernel.network()
    return {(network.interfaces[index].name, family) for index, family in network.reachable}


EVERYTHING = {("wifi0", V4), ("wifi0", V6), ("eth0", V4), ("eth0", V6)}


def test_a_reading_has_interfaces_addresses_routes_and_who_is_reachable(kernel: LinuxKernel) -> None:
    network = kernel.network()
    wifi0 = network.named("wifi0")
    lo = network.named("lo")
    assert wifi0 is not None
    assert lo is not None
    assert (wifi0.up, wifi0.running, wifi0.mtu, wifi0.delegate) == (True, True, 1500, None)
    assert lo.kind is InterfaceKind.LOOPBACK
    assert [(str(a.address), a.prefix_length) for a in wifi0.addresses] == [
        ("10.1.0.2", 24),
        ("fd10:1::2", 64),
        ("fe80::1:2", 64),
    ]
    assert set(defaults(network, V4)) == {
        Route(ipaddress.ip_network("0.0.0.0/0"), wifi0.index, ipaddress.ip_address("10.1.0.1"), 600),
        Route(ipaddress.ip_network("0.0.0.0/0"), named(kernel.network(), "eth0").index, ipaddress.ip_address("10.2.0.1"), 700),
    }
    assert reachable(kernel) == EVERYTHING
    assert network.unbound[V4].route in defaults(network, V4)
    assert network.unbound[V4].route.interface == wifi0.index
    assert network.routes == ()
    assert not any(route.destination.is_multicast or route.table == 255 for route in kernel.routes())


def test_two_readings_of_the_same_network_are_equal(kernel: LinuxKernel) -> None:
    assert kernel.network() == kernel.network()


def neighbours() -> str:
    """The neighbour table: a packet to a new neighbour would add an entry."""
    return subprocess.run(["ip", "neigh"], capture_output=True, text=True, check=True).stdout


def test_asking_sends_nothing(kernel: LinuxKernel) -> None:
    before = neighbours()
    kernel.network()
    kernel.has_route(named(kernel.network(), "eth0"), ipaddress.ip_address("10.2.0.77"))
    kernel.has_route(named(kernel.network(), "eth0"), ipaddress.ip_address("fd10:2::77"))
    assert neighbours() == before


def test_a_forgotten_kernel_leaves_no_descriptor(world: World) -> None:
    gc.collect()  # of other tests
    before = len(os.listdir("/proc/self/fd"))
    kernel = LinuxKernel()
    kernel.network()
    sources = kernel.events()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del kernel, sources
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_privilege_reads_the_same(kernel: LinuxKernel) -> None:
    expected = kernel.network()
    assert as_nobody(lambda: LinuxKernel().network() == expected)


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        ("veth", "link add x0 type veth peer name x1", InterfaceKind.OTHER),
        ("bridge", "link add x0 type bridge", InterfaceKind.BRIDGE),
        ("macvlan", "link add x0 link eth0 type macvlan", InterfaceKind.OTHER),
        ("macvtap", "link add x0 link eth0 type macvtap", InterfaceKind.OTHER),
        ("ipvlan", "link add x0 link eth0 type ipvlan", InterfaceKind.OTHER),
        ("vlan", "link add x0 link eth0 type vlan id 7", InterfaceKind.OTHER),
        ("dummy", "link add x0 type dummy", InterfaceKind.DUMMY),
        ("bond", "link add x0 type bond", InterfaceKind.OTHER),
        ("vxlan", "link add x0 type vxlan id 7 dstport 4789 dev eth0", InterfaceKind.OTHER),
        ("ifb", "link add x0 type ifb", InterfaceKind.DUMMY),
        ("wireguard", "link add x0 type wireguard", InterfaceKind.TUNNEL),
        ("ipip", "link add x0 type ipip local 10.2.0.2 remote 10.2.0.1", InterfaceKind.TUNNEL),
        ("gre", "link add x0 type gre local 10.2.0.2 remote 10.2.0.1", InterfaceKind.TUNNEL),
        ("sit", "link add x0 type sit local 10.2.0.2 remote 10.2.0.1", InterfaceKind.TUNNEL),
        ("vti", "link add x0 type vti local 10.2.0.2 remote 10.2.0.1 key 7", InterfaceKind.TUNNEL),
        ("xfrm", "link add x0 type xfrm dev eth0 if_id 7", InterfaceKind.TUNNEL),
    ],
)
def test_each_kind_of_device_is_told_apart(kernel: LinuxKernel, kind: str, line: str, expected: InterfaceKind) -> None:
    if not supported(*line.split()):
        pytest.skip(f"this kernel has no {kind} devices")
    assert named(kernel.network(), "x0").kind is expected


@pytest.mark.parametrize("tap", [False, True])
def test_a_tun_and_a_tap_are_tunnels(world: World, kernel: LinuxKernel, tap: bool) -> None:
    world.device("vpn0", tap=tap)
    assert named(kernel.network(), "vpn0").kind is InterfaceKind.TUNNEL


def test_a_tun_without_its_process_has_no_carrier(world: World, kernel: LinuxKernel) -> None:
    ip("tuntap add dev vpn0 mode tun", "link set vpn0 up")
    assert (named(kernel.network(), "vpn0").up, named(kernel.network(), "vpn0").running) == (True, False)
    world.device("vpn0")
    until_running("vpn0")


def test_carrier_loss_and_admin_down_are_two_things(world: World, kernel: LinuxKernel) -> None:
    events = RouteEvents()
    carrier(world, "wifi0", False)
    until(events, lambda: not named(kernel.network(), "wifi0").running)
    assert named(kernel.network(), "wifi0").up
    assert reachable(kernel) == EVERYTHING - {("wifi0", V4), ("wifi0", V6)}
    ip("link set eth0 down")
    assert not named(kernel.network(), "eth0").up
    assert reachable(kernel) == set()
    events.close()


def test_the_local_address_of_a_point_to_point_link_is_its_own(kernel: LinuxKernel) -> None:
    ip("addr add 10.5.0.1 peer 10.5.0.2 dev eth0", "addr add fd10:5::1 peer fd10:5::2 dev eth0 nodad")
    addresses = [str(a.address) for a in named(kernel.network(), "eth0").addresses]
    assert "10.5.0.1" in addresses
    assert "fd10:5::1" in addresses
    assert not {"10.5.0.2", "fd10:5::2"} & set(addresses)


def test_an_address_says_whether_it_is_tentative_deprecated_or_temporary(world: World, kernel: LinuxKernel) -> None:
    with inside(world.peer):
        ip("addr add fd10:2::dad/64 dev eth0 nodad")
    sysctl("ipv6/conf/eth0/dad_transmits", 3)
    ip("addr add fd10:2::dad/64 dev eth0", "addr add fd10:2::1d/64 dev eth0 nodad preferred_lft 0")
    found = {str(a.address): a for a in named(kernel.network(), "eth0").addresses}
    assert found["fd10:2::dad"].tentative
    assert not found["fd10:2::dad"].usable
    assert found["fd10:2::1d"].deprecated
    assert found["fd10:2::1d"].usable
    assert not found["fd10:2::2"].deprecated
    assert not any(a.temporary for a in found.values())


def test_a_secondary_ipv4_address_is_not_temporary(kernel: LinuxKernel) -> None:
    ip("addr add 10.2.0.3/24 dev eth0")
    assert not any(a.temporary for a in named(kernel.network(), "eth0").addresses)


def test_a_temporary_address_is_told(kernel: LinuxKernel) -> None:
    sysctl("ipv6/conf/eth0/use_tempaddr", 2)
    ip("addr add fd10:7::1/64 dev eth0 mngtmpaddr nodad valid_lft 9000 preferred_lft 9000")
    temporary = [a for a in named(kernel.network(), "eth0").addresses if a.temporary]
    assert [a.address in ipaddress.ip_network("fd10:7::/64") for a in temporary] == [True]


def test_routes_of_every_table_are_read(kernel: LinuxKernel) -> None:
    ip(
        "route add default dev eth0 table 51820",
        "route add 10.77.0.0/16 via 10.1.0.1 table 52 metric 7",
        "-6 route add 2001:db8::/32 via fd10:1::1 table 100000",
    )
    found = kernel.routes()
    eth0, wifi0 = named(kernel.network(), "eth0").index, named(kernel.network(), "wifi0").index
    assert Route(ipaddress.ip_network("0.0.0.0/0"), eth0, None, 0, 51820) in found
    assert Route(ipaddress.ip_network("10.77.0.0/16"), wifi0, ipaddress.ip_address("10.1.0.1"), 7, 52) in found
    gateway = ipaddress.ip_address("fd10:1::1")
    assert Route(ipaddress.ip_network("2001:db8::/32"), wifi0, gateway, 1024, 100000) in found
    assert {route.table for route in kernel.routes(V4, 52)} == {52}
    assert {route.family for route in kernel.routes(V6)} == {V6}


def test_a_route_for_certain_sources_is_no_route_for_all(kernel: LinuxKernel) -> None:
    if not supported("-6", "route", "add", "2001:db8::/32", "from", "fd10:1::/64", "via", "fd10:1::1"):
        pytest.skip("this kernel has no source-specific routes")
    assert not any(str(route.destination) == "2001:db8::/32" for route in kernel.routes())


def test_routes_that_discard_are_read_as_such(kernel: LinuxKernel) -> None:
    for number, kind in enumerate(("blackhole", "unreachable", "prohibit", "throw"), 1):
        ip(f"route add {kind} 10.8{number}.0.0/16", f"-6 route add {kind} 2001:db8:{number}::/48 table 99")
    discarding = {
        (str(r.destination), r.kind, r.interface, r.gateway) for r in kernel.routes() if r.kind is not RouteKind.UNICAST
    }
    assert discarding == {
        (destination, kind, None, None)
        for number, kind in enumerate((RouteKind.BLACKHOLE, RouteKind.UNREACHABLE, RouteKind.PROHIBIT, RouteKind.THROW), 1)
        for destination in (f"10.8{number}.0.0/16", f"2001:db8:{number}::/48")
    }


@pytest.mark.parametrize(
    ("lines", "gateways"),
    [
        (["route add {} nexthop via 10.1.0.1 dev wifi0 nexthop via 10.2.0.1 dev eth0"], ["10.1.0.1", "10.2.0.1"]),
        (["-6 route add {} nexthop via fd10:1::1 dev wifi0 nexthop via fd10:2::1 dev eth0"], ["fd10:1::1", "fd10:2::1"]),
        (["route add {} via inet6 fe80::1:1 dev wifi0"], ["fe80::1:1"]),
    ],
)
def test_each_next_hop_is_a_route(kernel: LinuxKernel, lines: list[str], gateways: list[str]) -> None:
    destination = "2001:db8::/32" if lines[0].startswith("-6") else "10.77.0.0/16"
    ip(*(line.format(destination) for line in lines))
    found = [r for r in kernel.routes() if str(r.destination) == destination]
    assert [str(r.gateway) for r in found] == gateways
    assert len({r.interface for r in found}) == len(gateways)


@pytest.mark.parametrize("compatible", [1, 0])
def test_nexthop_objects_are_resolved(kernel: LinuxKernel, compatible: int) -> None:
    if not supported("nexthop", "add", "id", "1", "via", "10.1.0.1", "dev", "wifi0"):
        pytest.skip("this kernel has no nexthop objects")
    sysctl("ipv4/nexthop_compat_mode", compatible)
    ip(
        "nexthop add id 2 via 10.2.0.1 dev eth0",
        "nexthop add id 3 group 1/2",
        "nexthop add id 4 via fd10:2::1 dev eth0",
        "route add 10.77.0.0/16 nhid 3",
        "-6 route add 2001:db8::/32 nhid 4",
        "route del default dev eth0",
        "route add default metric 700 nhid 2",
    )
    found = kernel.routes()
    for destination, gateways in (
        ("10.77.0.0/16", ["10.1.0.1", "10.2.0.1"]),
        ("2001:db8::/32", ["fd10:2::1"]),
        ("0.0.0.0/0", ["10.1.0.1", "10.2.0.1"]),
    ):
        assert [str(r.gateway) for r in found if str(r.destination) == destination] == gateways
    assert reachable(kernel) == EVERYTHING


def test_an_interface_without_an_address_or_a_default_is_not_reachable(kernel: LinuxKernel) -> None:
    ip("addr del 10.1.0.2/24 dev wifi0", "route del default dev eth0")
    assert reachable(kernel) == {("wifi0", V6), ("eth0", V6)}


def replace_main(world: World) -> None:
    world.tunnel()
    for family in ("", "-6 "):
        ip(f"{family}route del default dev wifi0", f"{family}route del default dev eth0", f"{family}route add default dev tun0")


def better_metric(world: World) -> None:
    world.tunnel()
    ip("route add default dev tun0 metric 50", "-6 route add default dev tun0 metric 50")


def two_halves(world: World) -> None:
    world.tunnel()
    ip("route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0")
    ip("-6 route add ::/1 dev tun0", "-6 route add 8000::/1 dev tun0")


def wg_quick(world: World) -> None:
    world.tunnel()
    for family in ("", "-6 "):
        ip(
            f"{family}route add default dev tun0 table 51820",
            f"{family}rule add not fwmark 51820 table 51820",
            f"{family}rule add table main suppress_prefixlength 0",
        )


def kill_switch(world: World) -> None:
    wg_quick(world)
    ip("route add unreachable default metric 4096 table 51820", "-6 route add unreachable default metric 4096 table 51820")


def tailscale(world: World) -> None:
    world.tunnel()
    for family in ("", "-6 "):
        ip(
            f"{family}rule add pref 5210 fwmark 0x80000/0xff0000 lookup main",
            f"{family}rule add pref 5270 lookup 52",
            f"{family}route add default dev tun0 table 52",
        )


@pytest.mark.parametrize("vpn", [better_metric, two_halves, wg_quick, tailscale])
def test_beneath_a_vpn_that_leaves_the_physical_default_both_uplinks_are_reachable(
    world: World, kernel: LinuxKernel, vpn: Callable[[World], None]
) -> None:
    vpn(world)
    assert reachable(kernel) == EVERYTHING
    for name in ("wifi0", "eth0"):
        assert kernel.has_route(named(kernel.network(), name), SERVER4)
        assert kernel.has_route(named(kernel.network(), name), SERVER6)


def test_where_the_vpn_has_replaced_the_default_nothing_is_reachable(world: World, kernel: LinuxKernel) -> None:
    replace_main(world)
    assert reachable(kernel) == set()
    assert not kernel.has_route(named(kernel.network(), "eth0"), SERVER4)
    assert not kernel.has_route(named(kernel.network(), "eth0"), SERVER6)
    assert kernel.has_route(named(kernel.network(), "eth0"), ipaddress.ip_address("10.2.0.77"))
    assert kernel.has_route(named(kernel.network(), "tun0"), SERVER4)


def test_a_kill_switch_stops_a_bound_ipv4_socket_and_not_an_ipv6_one(world: World, kernel: LinuxKernel) -> None:
    kill_switch(world)
    assert reachable(kernel) == {("wifi0", V6), ("eth0", V6)}
    assert not kernel.has_route(named(kernel.network(), "eth0"), SERVER4)
    assert kernel.has_route(named(kernel.network(), "eth0"), SERVER6)


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_discarding_route_is_no_route(kernel: LinuxKernel, kind: str) -> None:
    ip(f"route add {kind} 10.9.0.10/32", f"-6 route add {kind} fd10:9::10/128")
    assert not kernel.has_route(named(kernel.network(), "eth0"), SERVER4)
    assert kernel.has_route(named(kernel.network(), "eth0"), ipaddress.ip_address("10.9.0.11"))


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("fe80::99", True),
        ("fe80::99%eth0", True),
        ("fe80::99%wifi0", False),
        ("ff02::1", True),
        ("ff02::1%wifi0", False),
        ("ff0e::1234", True),
        ("224.0.0.251", True),
        ("239.1.2.3", True),
        ("255.255.255.255", True),
        ("10.2.0.255", True),
        ("::ffff:10.9.0.10", True),
        ("10.1.0.1", True),  # by the gateway
    ],
)
def test_which_destinations_a_bound_socket_reaches(kernel: LinuxKernel, destination: str, expected: bool) -> None:
    assert kernel.has_route(named(kernel.network(), "eth0"), ipaddress.ip_address(destination)) is expected


@pytest.mark.parametrize("destination", ["10.9.0.10", "fd10:9::10", "fe80::99", "ff02::1", "224.0.0.251", "10.2.0.1"])
def test_nothing_is_reached_by_an_interface_that_is_down_or_gone(kernel: LinuxKernel, destination: str) -> None:
    eth0 = named(kernel.network(), "eth0")
    ip("link set eth0 down")
    assert not kernel.has_route(eth0, ipaddress.ip_address(destination))
    ip("link del eth0")
    assert not kernel.has_route(eth0, ipaddress.ip_address(destination))


def follow_hint(kernel: LinuxKernel, destination: IPAddress) -> str:
    """Run the commands of the route hint. Returns the hint."""
    hint = kernel.route_hint(named(kernel.network(), "eth0"), destination)
    commands = [part for part in hint.split("`") if part.startswith("ip ")]
    assert commands, hint
    for command in commands:
        subprocess.run(command.split(), check=True)
    return hint


@pytest.mark.parametrize("destination", [SERVER4, SERVER6])
def test_the_cure_of_a_replaced_default_works(world: World, kernel: LinuxKernel, destination: IPAddress) -> None:
    kernel.network()
    replace_main(world)
    sentence = follow_hint(kernel, destination)
    assert "tun0 has taken the default route" in sentence
    assert kernel.has_route(named(kernel.network(), "eth0"), destination)
    assert not kernel.has_route(named(kernel.network(), "wifi0"), destination)


def test_a_kernel_that_never_saw_the_default_takes_the_gateway_from_the_vpns_host_route(
    world: World, kernel: LinuxKernel
) -> None:
    replace_main(world)
    ip("route add 10.9.1.10 via 10.2.0.1 dev eth0")
    assert "`ip route add default via 10.2.0.1 dev eth0 metric 9999`" in follow_hint(kernel, SERVER4)
    assert kernel.has_route(named(kernel.network(), "eth0"), SERVER4)


def test_the_cure_of_a_kill_switch_works(world: World, kernel: LinuxKernel) -> None:
    kill_switch(world)
    sentence = follow_hint(kernel, SERVER4)
    assert "table 51820, which tun0 has, lets nothing past to its default route" in sentence
    assert kernel.has_route(named(kernel.network(), "eth0"), SERVER4)


def test_the_cure_of_a_kill_switch_without_a_default_works(world: World, kernel: LinuxKernel) -> None:
    kernel.network()
    kill_switch(world)
    ip("route del default dev eth0")
    follow_hint(kernel, SERVER4)
    assert kernel.has_route(named(kernel.network(), "eth0"), SERVER4)


@pytest.fixture
def asked(kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the kinds of requested dumps and the questions for routes."""
    counted: list[int] = []
    dump, ask_all = kernel._channel.dump, kernel._channel.ask_all

    def counting_dump(kind: int, body: bytes) -> list[bytes]:
        counted.append(kind)
        return dump(kind, body)

    def counting(kind: int, bodies: Sequence[bytes]) -> list[Message | int]:
        counted.extend(kind for _ in bodies)
        return ask_all(kind, bodies)

    monkeypatch.setattr(kernel._channel, "dump", counting_dump)
    monkeypatch.setattr(kernel._channel, "ask_all", counting)
    return counted


def test_a_reading_costs_the_same_however_many_routes_there_are(kernel: LinuxKernel, asked: list[int]) -> None:
    before = kernel.network()
    few = list(asked)
    ip(*(f"route add 172.16.{number >> 8}.{number & 255}/32 via 10.2.0.1" for number in range(4000)))
    asked.clear()
    assert kernel.network() == before
    assert asked == few


def test_what_was_asked_is_not_asked_again_before_an_event(kernel: LinuxKernel, events: RouteEvents, asked: list[int]) -> None:
    network = kernel.network()
    lookups = kernel.lookups(network)
    first = lookups(SERVER4)
    asked.clear()
    assert lookups(SERVER4) is first
    assert first.unbound is not None
    assert kernel.has_route(network.interfaces[first.unbound.route.interface or 0], SERVER4)
    assert asked == []


def test_a_route_that_concerns_nobody_is_no_event(kernel: LinuxKernel, events: RouteEvents) -> None:
    kernel.lookups(kernel.network())(SERVER4)
    while events.drain():
        pass
    ip("route add 10.77.0.0/16 via 10.2.0.1", "-6 route add 2001:db8::/32 via fd10:2::1")
    assert waits(events)
    assert not events.drain()


def test_a_route_around_a_destination_makes_its_answer_old_and_no_other(
    kernel: LinuxKernel, events: RouteEvents, asked: list[int]
) -> None:
    lookups = kernel.lookups(kernel.network())
    elsewhere = ipaddress.ip_address("192.0.2.1")
    lookups(SERVER4), lookups(elsewhere)
    events.drain()
    kernel.network()
    asked.clear()
    ip("route add 10.9.0.0/24 via 10.2.0.1")
    assert waits(events)
    assert events.drain()
    assert events.urgent
    network = kernel.network(partial=True)
    fresh = kernel.lookups(network)
    assert fresh != lookups
    assert asked == [26] * 3, "by each interface and by none, for the one destination"
    found = fresh(SERVER4).unbound
    assert found is not None
    assert str(found.route.destination) == "10.9.0.0/24"
    assert found.route.interface == network.named("eth0").index  # type: ignore[union-attr]
    assert fresh(elsewhere) is lookups(elsewhere)


def test_an_event_that_changes_no_answer_leaves_everybody_alone(kernel: LinuxKernel, events: RouteEvents) -> None:
    lookups = kernel.lookups(kernel.network())
    lookups(SERVER4)
    events.drain()
    ip("route add 10.0.0.0/8 via 10.1.0.1 metric 7", "route add 10.9.0.0/16 via 10.1.0.1", "route del 10.9.0.0/16")
    ip("route del 10.0.0.0/8")
    assert waits(events)
    assert events.drain()
    assert kernel.lookups(kernel.network(partial=True)) == lookups


def test_who_asks_though_nothing_was_said_learns_what_was_never_announced(kernel: LinuxKernel, events: RouteEvents) -> None:
    network = kernel.network()
    lookups = kernel.lookups(network)
    assert lookups(SERVER4).unbound is not None
    ip("route del default dev wifi0", "route add 10.9.0.0/24 via 10.2.0.1")
    while events.drain():
        pass
    events.pending.clear()  # as if there had been no event
    after = kernel.network(partial=True)
    assert after != network
    answer = kernel.lookups(after)(SERVER4).unbound
    assert answer is not None
    assert str(answer.route.destination) == "10.9.0.0/24"


def test_what_is_lost_with_an_interface_is_known_without_asking(
    kernel: LinuxKernel, events: RouteEvents, asked: list[int]
) -> None:
    network = kernel.network()
    before = kernel.lookups(network)(SERVER4)
    while events.drain():
        network = kernel.network()
    asked.clear()
    ip("link set wifi0 down")
    assert waits(events)
    events.drain()
    after = kernel.lookups(kernel.network(partial=True))(SERVER4)
    assert asked == []
    wifi0 = network.named("wifi0")
    assert wifi0 is not None
    assert after.unbound is None
    assert set(before.by_interface) - set(after.by_interface) == {wifi0.index}


def waits(events: RouteEvents, seconds: float = 5.0) -> bool:
    return bool(select.select([events], [], [], seconds)[0])


@pytest.fixture
def events(kernel: LinuxKernel) -> Iterator[RouteEvents]:
    (source,) = kernel.events()
    yield source
    source.close()


@pytest.mark.parametrize(
    "line",
    [
        "link set eth0 down",
        "link set eth0 mtu 1400",
        "addr add 10.2.0.9/24 dev eth0",
        "addr del 10.2.0.2/24 dev eth0",
        "addr add fd10:2::9/64 dev eth0 nodad",
        "addr del fd10:2::2/64 dev eth0",
        "route replace default via 10.1.0.1 dev wifi0 metric 5",
        "route del default dev wifi0",
        "-6 route add 2001::/16 via fd10:2::1",
        "route add default dev eth0 table 51820",
        "rule add pref 100 oif eth0 lookup 51820",
        "-6 rule add pref 100 oif eth0 lookup 51820",
        "link add x0 type veth peer name x1",
    ],
)
def test_what_can_change_a_decision_is_an_event(events: RouteEvents, line: str) -> None:
    assert not events.drain()
    ip(line)
    assert waits(events)
    assert events.drain()
    assert events.overruns == 0


def test_link_up_and_carrier_are_events(world: World, kernel: LinuxKernel, events: RouteEvents) -> None:
    ip("link set eth0 down")
    events.drain()
    ip("link set eth0 up")
    until(events, lambda: named(kernel.network(), "eth0").running)
    carrier(world, "eth0", False)
    until(events, lambda: not named(kernel.network(), "eth0").running)
    carrier(world, "eth0", True)
    until(events, lambda: named(kernel.network(), "eth0").running)


def test_routes_that_lead_to_nobody_else_are_no_event(events: RouteEvents) -> None:
    ip("route add local 10.3.0.1 dev lo table local", "route add broadcast 10.3.0.255 dev eth0 table local")
    ip("route add multicast 239.0.0.0/8 dev eth0")
    assert waits(events)
    assert not events.drain()
    assert not waits(events, 0)


def test_neighbours_are_no_event(events: RouteEvents) -> None:
    ip("neigh add 10.2.0.77 lladdr 02:00:00:00:00:01 dev eth0")
    ip("route add local 10.3.0.1 dev lo table local")
    assert waits(events)
    assert not events.drain()


def test_an_event_that_the_kernel_did_not_send_is_ignored(events: RouteEvents) -> None:
    forged = socket.socket(AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    with forged, socket.socket(fileno=os.dup(events.fileno())) as receiver:
        forged.sendto(bytes(100), (receiver.getsockname()[0], 0))
    assert waits(events)
    assert not events.drain()


def test_an_overrun_is_counted_and_means_dirty(world: World) -> None:
    events = RouteEvents(buffer_bytes=4096)
    ip(*(f"route add 172.16.{number >> 8}.{number & 255}/32 via 10.2.0.1" for number in range(300)))
    assert events.drain()
    assert events.overruns == 1
    assert not events.drain()
    ip("link set eth0 down")
    assert waits(events)
    assert events.drain()
    events.close()


def test_a_storm_is_drained_in_portions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    events = RouteEvents()
    monkeypatch.setattr(events_module, "_DATAGRAMS_A_DRAIN", 40)
    ip(*(f"route add 172.16.0.{number}/32 via 10.2.0.1" for number in range(60)))
    assert events.drain()
    assert waits(events, 0)
    assert events.drain()
    assert not waits(events, 0)
    assert events.overruns == 0


def test_a_closed_event_source_has_no_descriptor(kernel: LinuxKernel) -> None:
    (source,) = kernel.events()
    source.close()
    source.close()
    assert source.fileno() == -1


def test_strict_reverse_path_filtering_is_warned_of_once(
    world: World, kernel: LinuxKernel, caplog: pytest.LogCaptureFixture
) -> None:
    sysctl("ipv4/conf/eth0/rp_filter", 1)
    for name in ("eth0", "eth0", "wifi0"):
        kernel.bind(world.client(V4), named(kernel.network(), name))
    assert [record.getMessage().split(" has")[0] for record in caplog.records] == ["eth0"]
    assert caplog.records[0].name == "bindsock"


def test_loose_reverse_path_filtering_for_all_is_no_matter(
    world: World, kernel: LinuxKernel, caplog: pytest.LogCaptureFixture
) -> None:
    sysctl("ipv4/conf/eth0/rp_filter", 1)
    sysctl("ipv4/conf/all/rp_filter", 2)
    kernel.bind(world.client(V4), named(kernel.network(), "eth0"))
    assert not caplog.records


def test_the_time_asleep_does_not_grow_while_the_machine_is_awake(kernel: LinuxKernel) -> None:
    asleep = kernel.suspended()
    assert asleep >= 0
    assert kernel.suspended() - asleep < 1
