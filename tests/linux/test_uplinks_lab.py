"""The kernel's own answers lead to the right uplink and source address, and a socket bound to them reaches the server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

import bindsock
from bindsock.dial.binding import decide_and_bind
from bindsock.kernel.linux import LinuxKernel
from bindsock.model.network import InterfaceKind
from bindsock.routing.effective import Decider, Preferences
from tests.linux.namespaces import Device, inside, ip, new_namespace, received, sysctl, until, until_running
from tests.unprivileged import may_become_nobody

if TYPE_CHECKING:
    from bindsock.model.decision import Decision
    from bindsock.model.network import IPAddress, Target
    from tests.linux.namespaces import World

pytestmark = pytest.mark.lab

V4, V6 = socket.AF_INET, socket.AF_INET6
SERVER4, SERVER6 = ipaddress.ip_address("10.9.0.10"), ipaddress.ip_address("fd10:9::10")


def decider(kernel: LinuxKernel, preferences: Preferences | None = None, pin: str | None = None) -> Decider:
    network = kernel.network()
    return Decider(network, preferences or Preferences(), interface=pin, lookups=kernel.lookups(network))


def chosen(kernel: LinuxKernel, target: Target = V4) -> str | None:
    interface = decider(kernel).decide(target).interface
    return interface.name if interface is not None else None


def sent(world: World, kernel: LinuxKernel, address: IPAddress = SERVER4, *, pin: str | None = None) -> tuple[str, str]:
    """Send a datagram from a bound socket. Returns the interface and the source address that the server saw."""
    family = V4 if address.version == 4 else V6
    server, sock = world.server(family), world.client(family)
    decide_and_bind(kernel, decider(kernel, pin=pin), sock, address)
    sock.connect((str(address), server.getsockname()[1]))
    sock.send(b"which way?")
    seen = received(world, server)
    return seen.interface, seen.source


def by_itself(world: World, address: IPAddress = SERVER4) -> tuple[str, str]:
    """Send a datagram from an unbound socket. Returns the interface and the source address that the server saw."""
    family = V4 if address.version == 4 else V6
    server, sock = world.server(family), world.client(family)
    sock.connect((str(address), server.getsockname()[1]))
    sock.send(b"which way?")
    seen = received(world, server)
    return seen.interface, seen.source


def without_defaults() -> None:
    ip("route del default dev wifi0", "route del default dev eth0")
    ip("-6 route del default dev wifi0", "-6 route del default dev eth0")


def link_local(world: World, name: str) -> str:
    """The link-local address of the router on an uplink."""
    return {"wifi0": "fe80::1:1", "eth0": "fe80::2:1"}[name]


def test_a_rule_before_main_chooses_the_uplink(world: World, kernel: LinuxKernel) -> None:
    ip("route add default via 10.2.0.1 dev eth0 table 300", "rule add pref 32765 lookup 300")
    assert chosen(kernel) == "eth0"
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")


def test_a_table_for_each_network_and_a_rule_that_names_the_first(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    for number, name in ((1, "wifi0"), (2, "eth0")):
        table = 1000 + number
        ip(f"route add default via 10.{number}.0.1 dev {name} table {table}", f"rule add pref 14000 oif {name} lookup {table}")
    ip("rule add pref 31000 lookup 1001")
    (events,) = kernel.events()
    try:
        assert chosen(kernel) == "wifi0"
        assert sent(world, kernel) == by_itself(world) == ("wifi0", "10.1.0.2")
        events.drain()
        ip("rule add pref 30999 lookup 1002")
        assert events.drain(), "a change by a rule alone is an event"
        assert events.urgent
        network = kernel.network(partial=True)
        assert Decider(network, lookups=kernel.lookups(network)).decide(SERVER4).interface == network.named("eth0")
        assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")
    finally:
        events.close()


def test_beneath_a_vpn_the_order_of_the_rules_counts(world: World, kernel: LinuxKernel) -> None:
    world.tunnel()
    ip(
        "route add default via 10.2.0.1 dev eth0 table 300",
        "rule add pref 32000 lookup 300",
        "route add default dev tun0 table 51820",
        "rule add pref 31000 not fwmark 51820 lookup 51820",
    )
    decision = decider(kernel).decide(SERVER4)
    assert decision.interface is not None
    assert (decision.interface.name, decision.tunnels) == ("eth0", ("tun0",))
    assert sent(world, kernel) == ("eth0", "10.2.0.2")


@pytest.mark.parametrize(("range_", "expected"), [("0-0", "eth0"), ("65000-65001", "wifi0")])
def test_a_rule_for_certain_users_counts_for_those(world: World, kernel: LinuxKernel, range_: str, expected: str) -> None:
    if range_ != "0-0" and not may_become_nobody():
        pytest.skip("this user namespace has no other user")
    ip("route add default via 10.2.0.1 dev eth0 table 300", f"rule add pref 100 uidrange {range_} lookup 300")
    assert chosen(kernel) == expected
    assert sent(world, kernel)[0] == by_itself(world)[0] == expected


_PREFERENCES = {"high": 0x08, "medium": 0x00, "low": 0x18}


def advertise(world: World, name: str, preference: str) -> None:
    """Send a router advertisement on an uplink (RFC 4861 4.2, RFC 4191 2.2)."""
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, _PREFERENCES[preference], 1800, 0, 0)
    with inside(world.peer), socket.socket(V6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        index = socket.if_nametoindex(name)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.bind((link_local(world, name), 0, 0, index))
        sock.sendto(message, ("ff02::1", 0, 0, index))


@pytest.mark.parametrize(("first", "second"), [("high", "low"), ("low", "high"), ("medium", "high")])
def test_a_routers_preference_decides_between_equal_metrics(world: World, kernel: LinuxKernel, first: str, second: str) -> None:
    without_defaults()
    with inside(world.peer):
        sysctl("ipv6/conf/all/forwarding", 1)  # the host removes the default route by a neighbour that is no router
    (events,) = kernel.events()
    for name, preference in (("wifi0", first), ("eth0", second)):
        sysctl(f"ipv6/conf/{name}/accept_ra", 2)
        advertise(world, name, preference)
    try:
        until(events, lambda: {i for i, family in kernel.network().reachable if family == V6} >= {2, 3})
    finally:
        events.close()
    expected = "wifi0" if first == "high" else "eth0"
    assert chosen(kernel, V6) == expected
    assert sent(world, kernel, SERVER6)[0] == by_itself(world, SERVER6)[0] == expected
    world.tunnel()
    ip("-6 route add default dev tun0 metric 1")
    assert chosen(kernel, V6) == expected, "beneath a VPN the order is the same"


def test_of_several_next_hops_the_one_is_taken_that_the_kernel_picks(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("route add default nexthop via 10.1.0.1 dev wifi0 nexthop via 10.2.0.1 dev eth0")
    made = decider(kernel)
    picked = set()
    for number in range(32):
        address = ipaddress.IPv4Address(f"198.51.100.{number}")
        found = subprocess.run(["ip", "route", "get", str(address)], capture_output=True, text=True, check=True).stdout
        decision = made.decide(address)
        assert decision.interface is not None
        assert f"dev {decision.interface.name} " in found
        picked.add(decision.interface.name)
    assert picked == {"wifi0", "eth0"}


def test_a_rule_for_certain_destinations_counts_for_those(world: World, kernel: LinuxKernel) -> None:
    ip("route add default via 10.2.0.1 dev eth0 table 300", "rule add pref 100 to 10.9.0.0/24 lookup 300")
    assert chosen(kernel, SERVER4) == "eth0"
    assert chosen(kernel, ipaddress.ip_address("192.0.2.1")) == "wifi0"
    assert sent(world, kernel) == ("eth0", "10.2.0.2")


def test_what_a_local_route_covers_is_this_host(world: World, kernel: LinuxKernel) -> None:
    ip("route add local 192.0.2.0/24 dev lo")
    assert decider(kernel).decide(ipaddress.ip_address("192.0.2.7")).unbound


def test_a_networks_broadcast_address_is_on_its_card(world: World, kernel: LinuxKernel) -> None:
    assert chosen(kernel, ipaddress.ip_address("10.2.0.255")) == "eth0"
    assert chosen(kernel, ipaddress.ip_address("255.255.255.255")) == "wifi0"


def test_a_single_container_is_reached_by_its_device_though_that_has_no_address(world: World, kernel: LinuxKernel) -> None:
    pod = new_namespace()
    subprocess.run(
        ["ip", *f"link add cali1 type veth peer name eth9 netns /proc/self/fd/{pod}".split()], check=True, pass_fds=[pod]
    )
    ip("link set cali1 up", "route add 10.244.0.7/32 dev cali1 scope link")
    with inside(pod):
        ip("link set eth9 up")
    until_running("cali1")
    decision = decider(kernel).decide(ipaddress.ip_address("10.244.0.7"))
    assert decision.interface is not None
    assert (decision.interface.name, str(decision.source)) == ("cali1", "10.1.0.2")


@pytest.mark.parametrize("vpn", [False, True])
def test_an_uplink_without_an_address_sends_from_the_loopbacks(world: World, kernel: LinuxKernel, vpn: bool) -> None:
    without_defaults()
    ip("addr del 10.2.0.2/24 dev eth0", "addr add 10.139.128.39/32 dev lo", "addr del 10.1.0.2/24 dev wifi0")
    ip(f"route add 0.0.0.0/0 src 10.139.128.39 via inet6 {link_local(world, 'eth0')} dev eth0 metric 100")
    if vpn:
        world.tunnel()
        ip("route add default dev tun0 metric 50")
    decision = decider(kernel).decide(SERVER4)
    assert str(decision.source) == "10.139.128.39"
    assert "from 10.139.128.39" in str(decision)
    assert sent(world, kernel) == ("eth0", "10.139.128.39")


def test_an_uplink_without_an_address_sends_from_an_inner_cards(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("addr del 10.2.0.2/24 dev eth0", f"route add 0.0.0.0/0 via inet6 {link_local(world, 'eth0')} dev eth0 metric 100")
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.1.0.2")


def test_an_uplink_without_an_address_does_not_send_from_another_uplinks(world: World, kernel: LinuxKernel) -> None:
    ip("addr del 10.2.0.2/24 dev eth0", f"route add 0.0.0.0/0 via inet6 {link_local(world, 'eth0')} dev eth0 metric 100")
    assert chosen(kernel) == "wifi0"


def test_an_uplink_without_an_address_does_not_send_from_a_tunnels(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("addr del 10.2.0.2/24 dev eth0", "addr del 10.1.0.2/24 dev wifi0")
    ip(f"route add 0.0.0.0/0 via inet6 {link_local(world, 'eth0')} dev eth0 metric 100")
    world.tunnel()
    assert chosen(kernel) is None


def test_an_ipv6_uplink_with_nothing_but_a_link_local_address_sends_from_the_loopbacks(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("-6 addr del fd10:2::2/64 dev eth0", "-6 addr del fd10:1::2/64 dev wifi0", "-6 addr add fd10:77::1/128 dev lo nodad")
    ip(f"-6 route add default via {link_local(world, 'eth0')} dev eth0")
    assert sent(world, kernel, SERVER6) == ("eth0", "fd10:77::1")


def source_rule() -> None:
    without_defaults()
    ip(
        "route add default via 10.1.0.1 dev wifi0",
        "route add default via 10.2.0.1 dev eth0 table 1001",
        "route add 10.2.0.0/24 dev eth0 table 1001",
        "rule add pref 512 from 10.2.0.2 lookup 1001",
    )


def test_a_second_card_whose_default_is_for_its_own_address_can_be_used(world: World, kernel: LinuxKernel) -> None:
    source_rule()
    assert sent(world, kernel) == by_itself(world) == ("wifi0", "10.1.0.2")
    assert sent(world, kernel, pin="eth0") == ("eth0", "10.2.0.2")
    ip("link set wifi0 down")
    decision = decider(kernel).decide(SERVER4)
    assert (decision.interface and decision.interface.name, str(decision.source)) == ("eth0", "10.2.0.2")
    assert sent(world, kernel) == ("eth0", "10.2.0.2")


@pytest.mark.parametrize("source", ["fd10:2::2", "fd10:2::/64"])
def test_an_ipv6_rule_for_certain_sources_counts_as_well(world: World, kernel: LinuxKernel, source: str) -> None:
    ip("-6 route del default dev eth0", "-6 route add default via fd10:2::1 dev eth0 table 1001")
    ip(f"-6 rule add pref 512 from {source} lookup 1001")
    assert sent(world, kernel, SERVER6) == ("wifi0", "fd10:1::2")
    assert sent(world, kernel, SERVER6, pin="eth0") == ("eth0", "fd10:2::2")


def test_the_address_that_a_rule_asks_for_need_not_be_the_first(world: World, kernel: LinuxKernel) -> None:
    source_rule()
    ip("addr add 10.2.0.77/24 dev eth0", "rule del pref 512", "rule add pref 512 from 10.2.0.77 lookup 1001")
    with inside(world.peer):
        ip("route add 10.2.0.77/32 dev eth0")
    assert sent(world, kernel, pin="eth0") == ("eth0", "10.2.0.77")
    assert sent(world, kernel, SERVER4, pin="wifi0") == ("wifi0", "10.1.0.2")


def test_a_source_that_changes_is_another_path(world: World, kernel: LinuxKernel) -> None:
    source_rule()
    ip("addr add 10.2.0.77/24 dev eth0", "route add default via 10.2.0.1 dev eth0 table 1002")
    before = decider(kernel, pin="eth0").path(V4)
    ip("rule del pref 512", "rule add pref 512 from 10.2.0.77 lookup 1002")
    after = decider(kernel, pin="eth0").path(V4)
    assert before is not None
    assert after is not None
    assert (str(before.source), str(after.source)) == ("10.2.0.2", "10.2.0.77")


class Nothing(asyncio.DatagramProtocol):
    """A protocol that receives nothing."""


async def test_an_endpoint_follows_the_source_that_its_route_needs(world: World) -> None:
    source_rule()
    ip("addr add 10.2.0.77/24 dev eth0", "route add default via 10.2.0.1 dev eth0 table 1002")
    server = world.server(V4)
    async with bindsock.TransportFactory(interface="eth0") as factory:
        transport, _ = await factory.create_datagram_endpoint(Nothing, remote_addr=server.getsockname())
        assert transport.get_extra_info("sockname")[0] == "10.2.0.2"
        transport.sendto(b"before")
        assert received(world, server).source == "10.2.0.2"
        port = transport.get_extra_info("sockname")[1]
        ip("rule del pref 512", "rule add pref 512 from 10.2.0.77 lookup 1002")
        async with asyncio.timeout(20):
            while transport.get_extra_info("sockname")[0] != "10.2.0.77":
                await asyncio.sleep(0.01)
        transport.sendto(b"after")
        seen = received(world, server)
        assert (seen.data, seen.source, seen.interface, seen.port) == (b"after", "10.2.0.77", "eth0", port)
        transport.close()


async def test_a_stream_is_dialled_from_the_source_that_its_route_needs(world: World) -> None:
    source_rule()
    server = world.server(V4, socket.SOCK_STREAM)
    async with bindsock.TransportFactory(interface="eth0") as factory:
        _, writer = await factory.open_connection(*server.getsockname())
        connection, peer = server.accept()
        with connection:
            assert peer[0] == writer.get_extra_info("sockname")[0] == "10.2.0.2"
        writer.close()
        chosen_by_program = await factory.open_connection(*server.getsockname(), local_addr=("10.2.0.2", 0))
        chosen_by_program[1].close()


def test_ipv6_routes_for_certain_sources_are_found_by_each_uplink(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    for number, name in ((1, "wifi0"), (2, "eth0")):
        if subprocess.run(
            f"ip -6 route add default from fd10:{number}::/64 via fd10:{number}::1 dev {name}".split(), check=False
        ).returncode:
            pytest.skip("this kernel has no source-specific routes")
    for number, name in ((1, "wifi0"), (2, "eth0")):
        assert sent(world, kernel, SERVER6, pin=name) == (name, f"fd10:{number}::2")
    assert sent(world, kernel, SERVER6) in (("wifi0", "fd10:1::2"), ("eth0", "fd10:2::2"))


@pytest.mark.parametrize("uplink", ["wifi0", "eth0"])
@pytest.mark.parametrize("address", [SERVER4, SERVER6], ids=str)
def test_policy_ipsecs_virtual_address_is_not_used(world: World, kernel: LinuxKernel, address: IPAddress, uplink: str) -> None:
    """The virtual address may be on the uplink, or on another one that the client used before."""
    ip(f"addr add 10.66.0.2/32 dev {uplink}", "rule add pref 220 table 220")
    ip("route add default via 10.1.0.1 dev wifi0 proto static src 10.66.0.2 table 220")
    ip(f"-6 addr add fd10:66::2/128 dev {uplink} nodad", "-6 rule add pref 220 table 220")
    ip("-6 route add default via fd10:1::1 dev wifi0 proto static src fd10:66::2 table 220")
    virtual = "10.66.0.2" if address.version == 4 else "fd10:66::2"
    own = "10.1.0.2" if address.version == 4 else "fd10:1::2"
    assert by_itself(world, address) == ("wifi0", virtual)
    assert sent(world, kernel, address) == ("wifi0", own)


def test_a_source_that_main_names_is_the_administrators_choice(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("addr add 10.1.0.77/32 dev wifi0", "route add default via 10.1.0.1 dev wifi0 src 10.1.0.77")
    assert sent(world, kernel) == by_itself(world) == ("wifi0", "10.1.0.77")


@pytest.mark.parametrize("vpn", ["halves", "metric"])
def test_a_default_without_a_gateway_is_good_enough_beneath_a_vpn(world: World, kernel: LinuxKernel, vpn: str) -> None:
    without_defaults()
    with inside(world.peer):
        sysctl("ipv4/conf/eth0/proxy_arp", 1)
        sysctl("ipv4/ip_forward", 1)
    ip("route add default dev eth0 scope link metric 100")
    world.tunnel()
    lines = {"halves": ["0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0"], "metric": ["default dev tun0 metric 50"]}[vpn]
    ip(*(f"route add {line}" for line in lines))
    assert sent(world, kernel) == ("eth0", "10.2.0.2")


def test_a_dormant_uplink_comes_after_others_and_before_none(world: World, kernel: LinuxKernel) -> None:
    (events,) = kernel.events()
    ip("link set wifi0 mode dormant", "link set wifi0 down", "link set wifi0 up")
    until(events, lambda: (found := kernel.network().named("wifi0")) is not None and found.running)
    events.close()
    ip("route replace default via 10.1.0.1 dev wifi0 metric 600")
    wifi0 = kernel.network().named("wifi0")
    assert wifi0 is not None
    if not wifi0.dormant:
        pytest.skip("this driver has no dormant state")
    assert chosen(kernel) == "eth0"
    ip("link set eth0 down")
    assert chosen(kernel) == "wifi0"


def kind(kernel: LinuxKernel, name: str) -> InterfaceKind:
    found = kernel.network().named(name)
    assert found is not None
    return found.kind


def test_a_bridge_to_which_a_tap_alone_belongs_is_a_tunnel_if_it_has_a_default(world: World, kernel: LinuxKernel) -> None:
    world.device("tap0", tap=True)
    ip(
        "link set tap0 up",
        "link add br0 type bridge",
        "link set tap0 master br0",
        "link set br0 up",
        "addr add 10.66.0.2/24 dev br0",
    )
    until_running("br0")
    assert kind(kernel, "br0") is InterfaceKind.BRIDGE, "virtual machines are on taps, too"
    assert chosen(kernel, ipaddress.ip_address("10.66.0.9")) == "br0"
    ip("route add default via 10.66.0.1 dev br0 metric 10")
    assert kind(kernel, "br0") is InterfaceKind.TUNNEL
    assert chosen(kernel) == "wifi0"
    assert sent(world, kernel) == ("wifi0", "10.1.0.2")


def test_a_bridge_of_an_uplink_and_a_tap_is_an_uplink(world: World, kernel: LinuxKernel) -> None:
    world.device("tap0", tap=True)
    ip("link add br0 type bridge", "link set tap0 up", "link set tap0 master br0", "link set eth0 master br0", "link set br0 up")
    ip("addr del 10.2.0.2/24 dev eth0", "addr add 10.2.0.2/24 dev br0")
    until_running("br0")
    ip("route add default via 10.2.0.1 dev br0 metric 10")
    assert kind(kernel, "br0") is InterfaceKind.BRIDGE
    assert chosen(kernel) == "br0"


@pytest.mark.parametrize("stacked", ["macvlan mode bridge", "ipvlan mode l2", "macvtap"])
def test_what_stands_on_a_tunnel_is_one(world: World, kernel: LinuxKernel, stacked: str) -> None:
    world.device("tap0", tap=True)
    ip("link set tap0 up")
    made = subprocess.run(f"ip link add link tap0 name mv0 type {stacked}".split(), capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"this kernel has no {stacked}")
    assert kind(kernel, "mv0") is InterfaceKind.TUNNEL


def test_the_only_device_of_a_container_is_its_way_out_though_it_is_a_tap() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(inside(new_namespace()))
        tap = Device("tap0", tap=True)
        stack.callback(tap.close)
        ip("link set lo up", "link set tap0 up", "addr add 10.0.2.100/24 dev tap0", "route add default via 10.0.2.2 dev tap0")
        kernel = LinuxKernel()
        stack.callback(kernel.close)
        assert chosen(kernel) == "tap0"
        ip("link add eth0 type veth peer name eth1")
        assert chosen(kernel) is None, "beside anything else, down as it may be, it is a VPN's"


@pytest.mark.parametrize("tap", [False, True])
def test_a_vpn_is_no_way_out_when_all_uplinks_are_gone(world: World, kernel: LinuxKernel, tap: bool) -> None:
    world.device("vpn0", tap=tap)
    ip("link set vpn0 up", "addr add 10.66.0.2/24 dev vpn0")
    until_running("vpn0")
    ip("route add default dev vpn0 metric 50")
    assert chosen(kernel) == "wifi0"
    ip("link del wifi0", "link del eth0")
    assert chosen(kernel) is None


def test_a_tun_is_no_way_out_for_a_program_that_starts_while_the_uplinks_are_gone(world: World) -> None:
    world.device("tun0")
    ip("link set tun0 up", "addr add 10.66.0.2/24 dev tun0")
    until_running("tun0")
    ip("route add default dev tun0 metric 50", "link del wifi0", "link del eth0")
    late = LinuxKernel()
    try:
        assert chosen(late) is None
    finally:
        late.close()


def test_ipv4_leaves_by_464xlats_translator(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("-6 route add default via fd10:1::1 dev wifi0", "addr del 10.1.0.2/24 dev wifi0", "addr del 10.2.0.2/24 dev eth0")
    world.device("clat")
    ip("addr add 192.0.0.1/29 dev clat", "link set clat up")
    until_running("clat")
    ip("route add default dev clat")
    assert (chosen(kernel, V4), chosen(kernel, V6)) == ("clat", "wifi0")


def test_an_alternative_name_is_taken_for_the_name_and_the_kernels_is_shown(world: World, kernel: LinuxKernel) -> None:
    if subprocess.run(
        ["ip", "link", "property", "add", "dev", "eth0", "altname", "enp3s0"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this system has no alternative names")
    decision: Decision = decider(kernel, pin="enp3s0").decide(SERVER4)
    assert decision.interface is not None
    assert (decision.interface.name, decision.interface.alternative_names) == ("eth0", ("enp3s0",))
    assert sent(world, kernel, pin="enp3s0") == ("eth0", "10.2.0.2")
    only = decider(kernel, Preferences(include=["enp*"])).decide(SERVER4)
    assert only.interface == decision.interface
    without = decider(kernel, Preferences(exclude=["enp*"])).decide(SERVER4)
    assert without.interface is not None
    assert without.interface.name == "wifi0"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["route add default via 10.1.0.1 dev wifi0 metric 900"], id="several metrics on one device"),
        pytest.param(["route add unreachable default metric 4278198272"], id="an unreachable default behind"),
        pytest.param(["route add throw default table 77", "rule add pref 100 lookup 77"], id="a throw route before"),
        pytest.param(["route add unreachable 10.77.0.0/16"], id="an unreachable route beside"),
        pytest.param([f"addr add 10.1.{1 + n // 200}.{1 + n % 200}/16 dev wifi0" for n in range(400)], id="400 addresses"),
        pytest.param(["route add default dev eth0 table 253"], id="table 253"),
        pytest.param(["route add default dev eth0 table 1836018789"], id="a table without a rule"),
    ],
)
def test_the_uplink_is_the_systems_own(world: World, kernel: LinuxKernel, lines: list[str]) -> None:
    ip(*lines)
    assert sent(world, kernel)[0] == by_itself(world)[0] == "wifi0"
    assert chosen(kernel, V6) == "wifi0"


@pytest.mark.parametrize("table", [253, 52, 51820, 1836018789])
def test_a_default_in_any_table_to_which_a_rule_leads(world: World, kernel: LinuxKernel, table: int) -> None:
    without_defaults()
    ip(f"route add default via 10.2.0.1 dev eth0 table {table}", f"rule add pref 20000 lookup {table}")
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")


@pytest.mark.parametrize("compatible", [1, 0])
def test_a_nexthop_object(world: World, kernel: LinuxKernel, compatible: int) -> None:
    without_defaults()
    made = subprocess.run(["ip", "nexthop", "add", "id", "1", "via", "10.2.0.1", "dev", "eth0"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this kernel has no nexthop objects")
    sysctl("ipv4/nexthop_compat_mode", compatible)
    ip("route add default nhid 1")
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")


def test_ipv4_by_an_ipv6_gateway(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip(f"route add 0.0.0.0/0 via inet6 {link_local(world, 'eth0')} dev eth0")
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")


def test_a_clouds_host_address_with_a_gateway_on_the_link(world: World, kernel: LinuxKernel) -> None:
    without_defaults()
    ip("addr del 10.2.0.2/24 dev eth0", "addr add 10.2.0.2/32 dev eth0", "route add default via 172.31.1.1 dev eth0 onlink")
    with inside(world.peer):
        ip("addr add 172.31.1.1/32 dev eth0", "route replace 10.2.0.2/32 dev eth0")
    assert sent(world, kernel) == by_itself(world) == ("eth0", "10.2.0.2")


def test_an_interface_that_is_renamed_or_moved_away(world: World, kernel: LinuxKernel) -> None:
    ip("link set wifi0 down", "link set wifi0 name wlan9", "link set wlan9 up")
    until_running("wlan9")
    ip("route add default via 10.1.0.1 dev wlan9 metric 600")
    assert chosen(kernel) == "wlan9"
    elsewhere = new_namespace()
    subprocess.run(["ip", *f"link set wlan9 netns /proc/self/fd/{elsewhere}".split()], check=True, pass_fds=[elsewhere])
    assert chosen(kernel) == "eth0"


def test_a_split_tunnels_own_network_is_left_to_it(world: World, kernel: LinuxKernel) -> None:
    world.tunnel()
    ip(
        "route add 10.99.0.0/16 dev tun0",
        "route add 0.0.0.0/1 dev tun0",
        "route add 128.0.0.0/1 dev tun0",
        "route add 9.9.9.0/24 dev tun0",
    )
    split = decider(kernel, Preferences(tunnels="split"))
    assert split.decide(ipaddress.ip_address("10.99.0.1")).unbound, "private addresses are its own"
    assert split.decide(ipaddress.ip_address("9.9.9.9")).unbound, "and so is what lies within another of its routes"
    for text in ("8.8.8.8", "198.51.100.1"):
        decision = split.decide(ipaddress.ip_address(text))
        assert decision.interface is not None, "the halves are a default in disguise"
        assert decision.interface.name == "wifi0"
