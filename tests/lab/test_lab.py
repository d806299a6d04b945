"""The laboratory reports the truth: the server, the devices and a packet tap agree which packet left by which interface."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from bindsock.testing.lab import (
    Lab,
    LabUnavailable,
    Packet,
    Tap,
    UplinkKind,
    VpnMode,
    VpnOuter,
    _child,
    _namespaces,
    _netlink,
    available,
)
from tests.lab.ordinary_user import python_as_nobody, skip_without_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OBSTACLE = available(vpn=True)
pytestmark = [pytest.mark.lab, pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))]

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
SO_BINDTOIFINDEX = 62
PATIENCE = 20.0
REPOSITORY = Path(__file__).parents[2]


def bound(lab: Lab, family: socket.AddressFamily, kind: socket.SocketKind, interface: str | None) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE)
    if interface is not None:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, lab.index(interface))
    return sock


def seen_by_udp(lab: Lab, family: socket.AddressFamily = V4, interface: str | None = None) -> str | None:
    """Send a datagram. Returns the interface whose address the server saw as its source."""
    with bound(lab, family, socket.SOCK_DGRAM, interface) as sock:
        sock.sendto(b"ping", (lab.server.address(family), lab.server.udp_port))
        source, port, payload = sock.recv(100).split()
        assert (int(port), payload) == (sock.getsockname()[1], b"ping")
        return lab.interface_of(source.decode())


def seen_by_tcp(lab: Lab, family: socket.AddressFamily = V4, interface: str | None = None) -> str | None:
    with bound(lab, family, socket.SOCK_STREAM, interface) as sock:
        sock.connect((lab.server.address(family), lab.server.tcp_port))
        hello, source, port = sock.makefile("rb").readline().split()
        assert (hello, int(port)) == (b"hello", sock.getsockname()[1])
        sock.sendall(b"echo")
        assert sock.recv(100) == b"echo"
        return lab.interface_of(source.decode())


def default_routes(lab: Lab, family: socket.AddressFamily = V4, table: str = "main") -> list[str]:
    lines = lab.ip("-4" if family == V4 else "-6", "route", "show", "table", table).splitlines()
    return [line for line in lines if line.startswith("default")]


@FAMILIES
def test_without_a_vpn_the_best_uplink_is_taken_and_a_bound_socket_takes_its_own(lab: Lab, family: socket.AddressFamily) -> None:
    assert seen_by_udp(lab, family) == seen_by_tcp(lab, family) == "wifi0"
    assert seen_by_udp(lab, family, "eth0") == seen_by_tcp(lab, family, "eth0") == "eth0"


@FAMILIES
def test_the_server_speaks_tls(lab: Lab, family: socket.AddressFamily) -> None:
    context = lab.client_ssl_context()
    for name in (lab.server.name, lab.server.address(family)):
        plain = socket.create_connection((lab.server.address(family), lab.server.tls_port), PATIENCE)
        with plain, context.wrap_socket(plain, server_hostname=name) as sock:
            assert sock.recv(100).split()[:2] == [b"hello", lab.address("wifi0", family).encode()]
            sock.sendall(b"echo")
            assert sock.recv(100) == b"echo"
            assert [s.kind for s in lab.streams()] == ["tls"]


@FAMILIES
@pytest.mark.parametrize("mode", ["metric", "replace", "halves", "policy", "policy-kill", "split"])
def test_every_vpn_mode_takes_unbound_traffic(lab: Lab, mode: VpnMode, family: socket.AddressFamily) -> None:
    lab.vpn_up(mode)
    assert seen_by_udp(lab, family) == seen_by_tcp(lab, family) == "tun0"
    lab.vpn_down()
    assert seen_by_udp(lab, family) == "wifi0"


@FAMILIES
@pytest.mark.parametrize("mode", ["metric", "halves", "policy", "split"])
def test_beneath_these_modes_a_bound_socket_passes_the_tunnel_by(lab: Lab, mode: VpnMode, family: socket.AddressFamily) -> None:
    lab.vpn_up(mode)
    before = lab.counters("tun0")
    for interface in ("wifi0", "eth0"):
        assert seen_by_udp(lab, family, interface) == seen_by_tcp(lab, family, interface) == interface
    assert lab.counters("tun0") == before


def test_replace_leaves_no_physical_default_until_the_vpn_ends(lab: Lab) -> None:
    before = {family: default_routes(lab, family) for family in (V4, V6)}
    lab.vpn_up("replace")
    for family in (V4, V6):
        (only,) = default_routes(lab, family)
        assert "dev tun0" in only
    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        seen_by_udp(lab, V6, "wifi0")
    lab.down("wifi0")
    lab.up("wifi0")
    assert len(default_routes(lab)) == 1
    lab.vpn_down()
    assert {family: sorted(default_routes(lab, family)) for family in (V4, V6)} == {f: sorted(r) for f, r in before.items()}


def test_policy_kill_leaves_a_bound_ipv4_socket_no_route_and_lets_ipv6_pass(lab: Lab) -> None:
    lab.vpn_up("policy-kill")
    with pytest.raises(subprocess.CalledProcessError):
        lab.ip("route", "get", "fibmatch", lab.server.ipv4, "oif", "wifi0")
    assert seen_by_udp(lab, V6, "wifi0") == "wifi0"


def test_split_takes_only_the_servers_networks(lab: Lab) -> None:
    lab.vpn_up("split")
    assert "dev wifi0" in lab.ip("route", "get", "192.0.2.1")
    assert "dev tun0" in lab.ip("route", "get", lab.server.ipv4)


def test_the_policy_modes_leave_no_rule_behind(lab: Lab) -> None:
    before = lab.ip("rule") + lab.ip("-6", "rule")
    lab.vpn_up("policy-kill")
    assert "suppress_prefixlength 0" in lab.ip("rule")
    lab.vpn_down()
    assert lab.ip("rule") + lab.ip("-6", "rule") == before
    assert default_routes(lab, V4, "all") == default_routes(lab)


def test_a_crash_of_the_vpn_leaves_its_rules_and_the_next_start_puts_things_right(lab: Lab) -> None:
    lab.vpn_up("policy")
    lab.vpn_down(crash=True)
    assert "51820" in lab.ip("rule")
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        lab.index("tun0")
    lab.vpn_up("metric")
    assert "51820" not in lab.ip("rule")
    assert seen_by_udp(lab) == "tun0"


def test_after_a_crash_of_a_vpn_that_replaced_them_the_defaults_come_back_with_the_link(lab: Lab) -> None:
    lab.vpn_up("replace")
    lab.vpn_down(crash=True)
    assert default_routes(lab) == default_routes(lab, V6) == []
    lab.up("eth0")
    assert seen_by_udp(lab, V4) == seen_by_udp(lab, V6) == "eth0"


@pytest.mark.parametrize(
    ("mode", "outer"), [("metric", "host-route"), ("replace", "host-route"), ("metric", "bound"), ("policy", "bound")]
)
def test_the_vpns_own_packets_follow_the_best_uplink(lab: Lab, mode: VpnMode, outer: VpnOuter) -> None:
    lab.vpn_up(mode, outer=outer)
    for lose, expected in ((lab.down, "eth0"), (lab.up, "wifi0"), (lab.delete, "eth0"), (lab.create, "wifi0")):
        lose("wifi0")
        with lab.tap(address="10.8.0.10", protocol="udp") as tap:
            assert seen_by_udp(lab) == "tun0"
        assert {p.interface for p in tap.packets} == {expected}


def test_a_marked_outer_socket_passes_by_the_policy_rules(lab: Lab) -> None:
    lab.vpn_up("policy", outer="fwmark")
    assert seen_by_udp(lab) == "tun0"
    assert lab.vpn_counters().reentered == 0


def test_an_unbound_outer_socket_loops_until_its_limit(lab: Lab) -> None:
    lab.vpn_up("metric", outer="unbound", loop_limit=500)
    with bound(lab, V4, socket.SOCK_DGRAM, None) as sock:
        sock.sendto(b"ping", (lab.server.ipv4, lab.server.udp_port))
        deadline = time.monotonic() + PATIENCE
        while not (counters := lab.vpn_counters()).stopped and time.monotonic() < deadline:
            time.sleep(0.01)
    assert counters.stopped
    assert counters.reentered == 500
    assert lab.counters("tun0").tx_packets >= 500
    assert lab.datagrams() == []


def test_the_vpn_server_drops_inner_packets_with_an_uplinks_address(lab: Lab) -> None:
    with bound(lab, V4, socket.SOCK_DGRAM, None) as sock:
        sock.connect((lab.server.ipv4, lab.server.udp_port))
        lab.vpn_up("metric")
        sock.send(b"with the old source")
        assert seen_by_udp(lab) == "tun0"  # sent later by the same tunnel: the first one has been counted by now
    assert lab.vpn_foreign() == 1
    assert [d.source for d in lab.datagrams()] == [lab.address("tun0")]


def test_the_caller_can_be_the_vpn_client(lab: Lab) -> None:
    lab.vpn_up("metric", outer="own")
    assert lab.vpn_tun is not None
    with bound(lab, V4, socket.SOCK_DGRAM, None) as sock:
        sock.sendto(b"into the tunnel", (lab.server.ipv4, lab.server.udp_port))
    assert os.read(lab.vpn_tun, 2000).endswith(b"into the tunnel")
    lab.vpn_down()
    assert lab.vpn_tun is None


def test_the_vpn_is_up_once(lab: Lab) -> None:
    with pytest.raises(RuntimeError):
        lab.vpn_down()
    lab.vpn_up()
    with pytest.raises(RuntimeError, match="metric"):
        lab.vpn_up("policy")


@FAMILIES
@pytest.mark.parametrize(
    ("lose", "regain"),
    [(Lab.down, Lab.up), (Lab.remove_addresses, Lab.add_addresses), (Lab.delete, Lab.create)],
    ids=["admin", "addresses", "interface"],
)
def test_a_lost_uplink_hands_over_and_takes_back(
    lab: Lab, lose: Callable[[Lab, str], float], regain: Callable[[Lab, str], float], family: socket.AddressFamily
) -> None:
    lose(lab, "wifi0")
    assert seen_by_udp(lab, family) == seen_by_tcp(lab, family) == "eth0"
    regain(lab, "wifi0")
    assert seen_by_udp(lab, family) == seen_by_tcp(lab, family) == "wifi0"


def test_a_recreated_interface_has_a_new_index(lab: Lab) -> None:
    before = lab.index("wifi0")
    lab.delete("wifi0")
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        lab.index("wifi0")
    lab.create("wifi0")
    assert lab.index("wifi0") != before


def test_carrier_loss_is_seen_and_the_route_stays(lab: Lab) -> None:
    lab.carrier("wifi0", False)
    lab.wait_until_running("wifi0", False)
    assert any("wifi0" in route and "linkdown" in route for route in default_routes(lab))
    lab.carrier("wifi0", True)
    lab.wait_until_running("wifi0")
    for family in (V4, V6):
        assert seen_by_udp(lab, family) == "wifi0"


@FAMILIES
def test_renumbering_changes_address_and_gateway_and_keeps_the_interface(lab: Lab, family: socket.AddressFamily) -> None:
    index, address, gateway = lab.index("wifi0"), lab.address("wifi0", family), lab.gateway("wifi0", family)
    lab.renumber("wifi0", "b")
    assert lab.index("wifi0") == index
    assert lab.address("wifi0", family) != address
    assert lab.gateway("wifi0", family) in default_routes(lab, family)[0]
    assert seen_by_udp(lab, family) == "wifi0"
    lab.renumber("wifi0", "a")
    assert (lab.address("wifi0", family), lab.gateway("wifi0", family)) == (address, gateway)
    assert seen_by_udp(lab, family) == "wifi0"


@FAMILIES
def test_the_default_switches_between_live_uplinks(lab: Lab, family: socket.AddressFamily) -> None:
    for name in ("eth0", "wifi0", "eth0", "wifi0"):
        lab.default(name)
        assert seen_by_udp(lab, family) == name
        assert len(default_routes(lab, family)) == 2


def test_switching_the_default_adds_before_it_deletes(lab: Lab) -> None:
    lab.default("eth0")
    with socket.socket(16, socket.SOCK_RAW, 0) as events:  # NETLINK_ROUTE
        events.bind((0, 0x40))  # RTMGRP_IPV4_ROUTE
        lab.default("wifi0")
        kinds = [int.from_bytes(events.recv(4096)[4:6], sys.byteorder) for _ in range(3)]
    assert kinds == [24, 24, 25]  # RTM_NEWROUTE, RTM_NEWROUTE, RTM_DELROUTE


@FAMILIES
def test_a_metric_decides(lab: Lab, family: socket.AddressFamily) -> None:
    lab.metric("wifi0", 900)
    assert seen_by_udp(lab, family) == "eth0"
    lab.metric("wifi0", 650)
    assert seen_by_udp(lab, family) == "wifi0"
    assert len(default_routes(lab, family)) == 2


@FAMILIES
def test_a_blackholed_uplink_swallows_without_a_word(lab: Lab, family: socket.AddressFamily) -> None:
    lab.blackhole("wifi0", True)
    lab.blackhole("wifi0", True)
    with bound(lab, family, socket.SOCK_DGRAM, None) as sock:
        sock.connect((lab.server.address(family), lab.server.udp_port))
        with lab.tap(namespace="router", outgoing=False, protocol="udp") as tap:
            sock.send(b"lost")
            deadline = time.monotonic() + PATIENCE
            while not tap.packets and time.monotonic() < deadline:
                time.sleep(0.01)  # the link-layer address of the router is asked for first
            assert seen_by_udp(lab, family, "eth0") == "eth0"
        assert [p.interface for p in tap.packets] == ["wifi0", "eth0", "server"]
        assert [d.payload for d in lab.datagrams()] == [b"ping"]
        with pytest.raises(subprocess.CalledProcessError):
            route = ("route", "get", lab.address("wifi0", family), "from", lab.server.address(family), "iif", "server")
            lab.ip(*route, namespace="router")
        lab.blackhole("wifi0", False)
        sock.send(b"found")
        assert sock.recv(100).endswith(b"found")


def test_operations_return_the_moment_before_they_were_issued(lab: Lab) -> None:
    before = time.monotonic()
    moments = [lab.down("wifi0"), lab.up("wifi0"), lab.default("eth0"), lab.metric("wifi0", 650), lab.vpn_up(), lab.vpn_down()]
    moments = [before, *moments, time.monotonic()]
    assert moments == sorted(moments)


def test_operations_work_from_another_thread_and_outside(lab: Lab) -> None:
    thread = threading.Thread(target=lab.down, args=["wifi0"])
    thread.start()
    thread.join()
    with lab.inside("server"):
        lab.metric("eth0", 650)
    assert seen_by_udp(lab) == "eth0"


def test_a_third_uplink() -> None:
    with Lab(uplinks=("wifi0", "eth0", "wwan0")) as lab, lab.inside():
        assert seen_by_udp(lab, V4, "wwan0") == "wwan0"
        lab.down("wifi0")
        lab.down("eth0")
        assert seen_by_tcp(lab, V6) == "wwan0"


KINDS: tuple[UplinkKind, ...] = ("shared", "point-to-point", "macvlan", "ipv6-only")


@pytest.mark.parametrize("kind", KINDS)
def test_an_uplink_of_another_kind(kind: UplinkKind) -> None:
    families = [V6] if kind == "ipv6-only" else [V4, V6]
    with Lab(kinds={"eth0": kind}) as lab, lab.inside():

        def works(*interfaces: str) -> None:
            for interface in interfaces:
                lab.wait_until_running(interface)
                assert {seen_by_udp(lab, family, interface) for family in families} == {interface}

        works("wifi0", "eth0")
        for change, undo in (
            (lab.down, lab.up),
            (lab.remove_addresses, lab.add_addresses),
            (lab.delete, lab.create),
            (lambda name: lab.carrier(name, False), lambda name: lab.carrier(name, True)),
            (lambda name: lab.renumber(name, "b"), lambda name: lab.renumber(name, "a")),
            (lambda name: lab.blackhole(name, True), lambda name: lab.blackhole(name, False)),
        ):
            change("eth0")
            works("wifi0")
            undo("eth0")
            works("wifi0", "eth0")
        for mode in get_args(VpnMode):
            lab.vpn_up(mode)
            lab.default("eth0")
            lab.vpn_down()
            assert seen_by_udp(lab, V6) == "eth0"
            lab.metric("eth0", 700)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_plugged_in_again_has_the_same_hardware_address(kind: UplinkKind) -> None:
    with Lab(kinds={"eth0": kind}) as lab, lab.inside():

        def hardware() -> dict[str, str]:
            return {link["ifname"]: link["address"] for link in json.loads(lab.ip("-json", "link"))}

        before = hardware()
        assert before["wifi0"] != before["eth0"]
        lab.delete("eth0")
        lab.create("eth0")
        assert hardware() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_created_again_has_carrier(kind: UplinkKind) -> None:
    with Lab(kinds={"eth0": kind}) as lab, lab.inside():
        lab.carrier("eth0", False)
        lab.delete("eth0")
        lab.create("eth0")
        lab.wait_until_running("eth0")


@pytest.mark.parametrize(
    "kinds", [{"wifi0": "shared"}, {"eth1": "macvlan"}, {"eth0": "vlan"}], ids=["the first is shared", "no uplink", "no kind"]
)
def test_kinds_that_no_laboratory_has(kinds: Any) -> None:
    with pytest.raises(ValueError, match="cannot be an uplink of kind"):
        Lab(kinds=kinds)


@FAMILIES
def test_the_tap_tells_what_left_when_and_where(lab: Lab, family: socket.AddressFamily) -> None:
    before = time.monotonic()
    with lab.tap(protocol="udp", port=lab.server.udp_port) as tap:
        seen_by_udp(lab, family, "eth0")
        seen_by_tcp(lab, family)
        (packet,) = tap.packets
    assert before - 0.001 < packet.time < time.monotonic() + 0.001
    assert (packet.interface, packet.outgoing, packet.protocol) == ("eth0", True, "udp")
    assert (packet.source, packet.destination) == (lab.address("eth0", family), lab.server.address(family))
    assert packet.destination_port == lab.server.udp_port
    assert (packet.length, packet.payload) == ((28 if family == V4 else 48) + 4, b"ping")
    assert tap.packets == [packet]
    assert tap.dropped == 0


def test_the_tap_shows_every_packet_though_the_clock_is_stepped_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.monotonic()
    with lab.tap(protocol="udp", port=lab.server.udp_port) as tap:
        for _ in range(3):
            seen_by_udp(lab)
        hour_ago = time.time() - 3600
        monkeypatch.setattr(time, "time", lambda: hour_ago)
        packets = tap.packets
    assert len(packets) == 3
    assert all(before <= packet.time <= time.monotonic() for packet in packets)


def test_the_tap_shows_every_packet_from_the_first_moment(lab: Lab) -> None:
    for _ in range(20):  # the kernel starts to add timestamps some time after the socket was opened
        with lab.tap(protocol="udp", port=lab.server.udp_port) as tap:
            seen_by_udp(lab)
            seen_by_udp(lab)
            assert len(tap.packets) == 2


def test_the_tap_reads_no_more_than_was_there_when_it_was_asked(lab: Lab) -> None:
    sent: list[Packet] = []
    with lab.inside():
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def send_another(packet: Packet) -> bool:
        if len(sent) < 1000:
            sent.append(packet)
            sock.sendto(b"another", ("127.0.0.1", 9))
        return True

    with lab.inside(), socket.socket(V4, socket.SOCK_DGRAM) as sock, Tap(namespace, send_another) as tap:
        os.close(namespace)
        sock.sendto(b"first", ("127.0.0.1", 9))
        assert 1 <= len(tap.take()) == len(sent) < 1000
        assert any(p.payload == b"another" for p in tap.take())


def test_the_tap_reads_the_payload_of_tcp(lab: Lab) -> None:
    with lab.tap(outgoing=None, protocol="tcp") as tap:
        seen_by_tcp(lab)
    assert [p.payload for p in tap.packets if p.payload and p.outgoing] == [b"echo"]
    assert any(p.payload.startswith(b"hello ") for p in tap.packets if not p.outgoing)


def test_counters_count_what_a_device_sent(lab: Lab) -> None:
    seen_by_udp(lab)  # fills the neighbour tables
    host, router = lab.counters("wifi0"), lab.counters("wifi0", namespace="router")
    with lab.tap(interface="wifi0") as tap:
        seen_by_udp(lab)
    assert any(p.protocol == "udp" for p in tap.packets)
    assert lab.counters("wifi0").tx_packets - host.tx_packets >= 1
    assert lab.counters("wifi0", namespace="router").rx_packets - router.rx_packets >= 1


def test_the_server_tells_what_it_received_and_who_is_connected(lab: Lab) -> None:
    seen_by_udp(lab, V6)
    (datagram,) = lab.datagrams()
    assert (datagram.source, datagram.payload) == (lab.address("wifi0", V6), b"ping")
    assert lab.datagrams() == []
    with socket.create_connection((lab.server.ipv4, lab.server.tcp_port), PATIENCE) as sock:
        assert sock.recv(100).startswith(b"hello")
        assert [(s.kind, s.source, s.source_port) for s in lab.streams()] == [("tcp", *sock.getsockname())]
        lab.abort_streams()
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


@FAMILIES
def test_the_server_tells_of_all_datagrams_that_have_reached_it(lab: Lab, family: socket.AddressFamily) -> None:
    seen_by_udp(lab, family)  # fills the neighbour tables
    lab.datagrams()
    os.kill(lab._server.pid, signal.SIGSTOP)
    try:
        arriving = lab.tap(namespace="server", outgoing=False, protocol="udp")
        with bound(lab, family, socket.SOCK_DGRAM, None) as sock, arriving as tap:
            for number in range(100):
                sock.sendto(b"%d" % number, (lab.server.address(family), lab.server.udp_port))
            deadline = time.monotonic() + PATIENCE
            while len(tap.packets) < 100 and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        os.kill(lab._server.pid, signal.SIGCONT)
    assert [int(datagram.payload) for datagram in lab.datagrams()] == list(range(100))


def test_an_ipv6_address_that_a_command_adds_is_local_at_once(lab: Lab) -> None:
    """The kernel makes it so a moment later: of a hundred addresses some are not local yet when the command ends."""
    for number in range(100):
        address = f"fd10:99::{number + 1:x}"
        lab.ip("-6", "addr", "add", f"{address}/128", "dev", "lo", "nodad", namespace="server")
        with lab.inside("server"), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
            sock.settimeout(PATIENCE)
            sock.sendto(b"ping", sock.getsockname())
            assert sock.recv(100) == b"ping"


def test_the_server_can_be_far_away(lab: Lab) -> None:
    lab.reply_delay(0.05)
    before = time.monotonic()
    seen_by_udp(lab)
    assert time.monotonic() - before >= 0.05
    seen_by_tcp(lab)
    assert time.monotonic() - before >= 0.1


def test_a_thread_is_inside_only_meanwhile_and_its_sockets_stay() -> None:
    with Lab() as lab:
        with lab.inside():
            sock = bound(lab, V4, socket.SOCK_DGRAM, "wifi0")
            assert "wifi0" in {name for _, name in socket.if_nameindex()}
            with lab.inside("server"):
                assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
            assert "wifi0" in {name for _, name in socket.if_nameindex()}
        assert "wifi0" not in {name for _, name in socket.if_nameindex()}
        with sock:
            sock.sendto(b"ping", (lab.server.ipv4, lab.server.udp_port))
            assert sock.recv(100).startswith(lab.address("wifi0").encode())


def test_run_runs_functions_and_coroutine_functions_in_the_host() -> None:
    async def hello(port: int) -> bytes:
        reader, writer = await asyncio.open_connection(lab.server.ipv4, port)
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    with Lab() as lab:
        assert lab.run(hello, lab.server.tcp_port).startswith(b"hello 10.1.0.2 ")
        assert "wifi0" in lab.run(lambda: [name for _, name in socket.if_nameindex()])


def test_two_laboratories_do_not_meet(lab: Lab) -> None:
    with Lab() as other, other.inside():
        other.down("wifi0")
        lab.vpn_up("metric")
        assert seen_by_udp(other) == "eth0"
    assert seen_by_udp(lab) == "tun0"
    assert seen_by_udp(lab, V4, "wifi0") == "wifi0"


def descendants(pid: int) -> list[int]:
    """The processes that were started by a process, and by these."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [descendant for child in children for descendant in descendants(child)]


def test_an_exception_leaves_no_descriptor_and_no_child() -> None:
    def fail() -> None:
        with Lab() as lab, lab.inside():
            lab.vpn_up()
            raise ZeroDivisionError

    gc.collect()  # of other tests
    before = set(os.listdir("/proc/self/fd"))
    children = descendants(os.getpid())
    with pytest.raises(ZeroDivisionError):
        fail()
    assert set(os.listdir("/proc/self/fd")) == before
    assert descendants(os.getpid()) == children
    assert "wifi0" not in {name for _, name in socket.if_nameindex()}


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Let this test and the processes that it starts run on one processor."""
    before = os.sched_getaffinity(0)  # type: ignore[attr-defined, unused-ignore]  # Linux only
    os.sched_setaffinity(0, {min(before)})  # type: ignore[attr-defined, unused-ignore]  # Linux only
    yield
    os.sched_setaffinity(0, before)  # type: ignore[attr-defined, unused-ignore]  # Linux only


@pytest.mark.usefixtures("one_processor")
def test_the_helper_does_not_hold_what_it_has_passed_on() -> None:
    """Else a TUN device could outlive the process that had it, and its name would be busy."""
    namespace, (reading, writing) = os.open("/proc/self/ns/net", os.O_RDONLY), os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{writing}")

    def start() -> _child.Child:
        return helper.child(namespace, "_tunnel", "server", descriptors=[writing])

    with contextlib.closing(_child.Helper()) as helper:
        with contextlib.closing(start()) as child:
            pid = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
        # It goes no further while this test runs.
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))  # type: ignore[attr-defined, unused-ignore]  # Linux only
        with contextlib.closing(start()):
            held = set()
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it has just closed it
                    held.add(os.readlink(entry))
    for descriptor in (namespace, reading, writing):
        os.close(descriptor)
    assert pipe not in held


HOLDER = """
import os, time
from bindsock.testing.lab import Lab
with Lab() as lab, lab.inside():
    lab.vpn_up("policy")
    helper = open(f"/proc/self/task/{os.getpid()}/children").read().strip()
    children = open(f"/proc/{helper}/task/{helper}/children").read().split()
    print(helper, *children, "/", *lab._namespaces.values(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process, in its own session, that holds a laboratory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=REPOSITORY, stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def own_namespace() -> Iterator[_netlink.Netlink]:
    """A new namespace for this test's thread, and a netlink socket in it."""
    namespace = _namespaces.new_namespace()
    try:
        with _namespaces.inside(namespace), _netlink.Netlink() as netlink:
            yield netlink
    finally:
        os.close(namespace)


def tie(netlink: _netlink.Netlink, name: str, pid: str, descriptor: str) -> None:
    """Make an interface that disappears together with a namespace of another process: its other end is there.

    The namespace's inode number would not do: the kernel reuses it for the next namespace.
    """
    held = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY)
    try:
        netlink.request(_netlink.veth(name, name, held))
    finally:
        os.close(held)


def ties() -> set[str]:
    """The interfaces that still exist."""
    return {name for _, name in socket.if_nameindex() if name.startswith("tie")}


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_survives_the_process_that_holds_it(
    holder: subprocess.Popen[str], own_namespace: _netlink.Netlink, signum: signal.Signals
) -> None:
    assert holder.stdout is not None
    assert holder.stderr is not None
    children, namespaces = (part.split() for part in holder.stdout.readline().split("/"))
    assert len(children) == 4
    assert len(namespaces) == 4
    for descriptor in namespaces:
        tie(own_namespace, f"tie{descriptor}", str(holder.pid), descriptor)
    assert len(ties()) == 4

    os.killpg(holder.pid, signum)  # as a terminal does on Ctrl-C
    assert holder.wait(PATIENCE) == -signum
    deadline = time.monotonic() + 60  # the kernel needs a while when many namespaces end at once
    while time.monotonic() < deadline and (ties() or any(Path("/proc", pid).exists() for pid in children)):
        time.sleep(0.01)
    assert [pid for pid in children if Path("/proc", pid).exists()] == []
    assert ties() == set()
    if signum == signal.SIGINT:
        assert holder.stderr.read().strip().endswith("KeyboardInterrupt")


def test_elsewhere_than_on_linux_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_namespaces, "_OWN_NAMESPACE", "/nowhere/ns/net")
    assert "needs Linux" in str(available())
    with pytest.raises(LabUnavailable, match="needs Linux"):
        Lab().__enter__()


ROOTLESS = """
import os, socket
from bindsock.testing.lab import Lab, LabUnavailable, available, enter_user_namespace
assert "needs root" in available()
try:
    enter_user_namespace()
except LabUnavailable as exc:
    raise SystemExit(f"SKIP {exc}")
tunnel = available(vpn=True)
with Lab() as lab, lab.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    lab.down("wifi0")
    sock.sendto(b"rootless", (lab.server.ipv4, lab.server.udp_port))
    print(sock.recv(100).decode())
    try:
        lab.vpn_up()
        print("vpn", tunnel)
    except LabUnavailable as exc:
        print("no vpn", tunnel, exc)
"""


def test_it_runs_without_root_in_a_user_namespace() -> None:
    result = python_as_nobody("-c", ROOTLESS)
    if "SKIP" in result.stderr:
        pytest.skip(result.stderr.partition("SKIP ")[2])
    assert result.returncode == 0, result.stderr
    echo, vpn = result.stdout.splitlines()
    assert echo.startswith("10.2.0.2 ")
    assert echo.endswith(" rootless")
    assert vpn == "vpn None" or ("no vpn" in vpn and vpn.count("/dev/net/tun") == 2)


def test_a_command_can_be_run_as_root_of_a_user_namespace() -> None:
    skip_without_user_namespaces()
    result = python_as_nobody("-m", "bindsock.testing.lab", "id", "-u")
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_a_process_with_threads_is_told_why_it_cannot() -> None:
    code = """
import threading
from bindsock.testing.lab import enter_user_namespace
event = threading.Event()
threading.Thread(target=event.wait).start()
try:
    enter_user_namespace()
finally:
    event.set()
"""
    result = python_as_nobody("-c", code)
    assert "LabUnavailable: a process with several threads cannot" in result.stderr
