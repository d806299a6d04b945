"""Datagram transports in the laboratory: real interfaces come and go, and the server reports what arrived, and from where."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bindsock
from bindsock.datagram import open as datagram
from bindsock.datagram.socket_spec import SocketSpec
from bindsock.kernel.linux import LinuxKernel, sockets
from bindsock.model.network import Interface
from bindsock.testing.lab import Lab, VpnMode
from tests.lab.stream_runner import Streaming, overflows_at_server
from tests.waiting import until

pytestmark = pytest.mark.lab

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
LOOPS = pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
PATIENCE = 20.0
SWITCHES = 20
CALM = 0.25
"""Seconds after which a burst of events is over, so that the next change is read separately."""


class Echoes(asyncio.DatagramProtocol):
    """Waits for the server's replies."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        self.errors: list[Exception] = []
        self.end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.replies.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.set_result(exc)

    async def source(self, lab: Lab, addr: tuple[Any, ...] | None = None) -> tuple[str | None, int]:
        """Send a datagram. Returns the interface and the port from which the server received it."""
        self.transport.sendto(b"ping", addr)
        async with asyncio.timeout(PATIENCE):
            payload = b""
            while payload != b"ping":
                address, port, payload = (await self.replies.get()).split()
        return lab.interface_of(address.decode().removeprefix("::ffff:")), int(port)

    async def used(self, interface: str) -> None:
        """Wait until the transport uses the interface."""
        await until(lambda: self.transport.get_extra_info("interface") == interface, seconds=PATIENCE)


def server(lab: Lab, family: socket.AddressFamily = V4) -> tuple[str, int]:
    return lab.server.address(family), lab.server.udp_port


def set_overlap(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """For how long an old socket still receives."""
    defaults = datagram.open_datagram.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "overlap", seconds)


@pytest.fixture
def streaming(lab: Lab) -> Iterator[Callable[..., Streaming]]:
    running: list[Streaming] = []

    def start(*arguments: Any, **options: Any) -> Streaming:
        running.append(Streaming(lab, *arguments, **options))
        return running[-1]

    yield start
    for program in running:
        program.kill()


@LOOPS
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_not_one_datagram_or_reply_is_lost_between_two_live_uplinks(
    lab: Lab, streaming: Callable[..., Streaming], loop_name: str, delay: float
) -> None:
    lab.reply_delay(delay)
    lab.vpn_up("metric")
    tunnel = lab.counters("tun0").tx_packets
    program = streaming(loop_name)
    for switch in range(SWITCHES):
        time.sleep(CALM)
        better = "wifi0" if switch % 2 else "eth0"
        lab.default(better)
        program.wait_until_used(better)
    time.sleep(CALM)
    outcome = program.finish(all_replies=True)
    assert len(outcome.missing) == outcome.missed
    assert outcome.replies + outcome.overflows + outcome.missed == outcome.sent
    # A late server answers many at once, and that overflows the program's buffer: but not each time.
    assert outcome.replies > SWITCHES * 50
    assert outcome.statistics["rebinds"] >= SWITCHES
    assert min(outcome.left_by.values()) > 100
    assert lab.counters("tun0").tx_packets == tunnel
    assert not outcome.errors


@pytest.mark.parametrize("change", ["in place", "overlapping"])
async def test_an_endpoint_that_moved_while_its_new_interface_had_no_address_does_not_keep_a_makeshift_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Afterwards the network is as it was read before."""
    transport, echoes = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, V6))
    assert (await echoes.source(lab))[0] == "wifi0"
    address = f"{lab.address('eth0', V6)}/64"
    bind, rebind = LinuxKernel.bind, LinuxKernel.rebind

    def go_for_a_moment(interface: Interface) -> None:
        if interface.name == "eth0":
            monkeypatch.undo()
            lab.ip("-6", "addr", "del", address, "dev", "eth0")
            # Before the events of both changes are read.
            asyncio.get_running_loop().call_soon(lambda: lab.ip("-6", "addr", "add", address, "dev", "eth0", "nodad"))

    def late_bind(kernel: LinuxKernel, sock: socket.socket, interface: Interface) -> None:
        go_for_a_moment(interface)
        bind(kernel, sock, interface)

    def late_rebind(kernel: LinuxKernel, sock: socket.socket, interface: Interface, **options: Any) -> None:
        go_for_a_moment(interface)
        rebind(kernel, sock, interface, **options)

    monkeypatch.setattr(LinuxKernel, "bind", late_bind)
    monkeypatch.setattr(LinuxKernel, "rebind", late_rebind)
    if change == "in place":
        lab.down("wifi0")
    else:
        lab.default("eth0")
    await echoes.used("eth0")
    assert (await echoes.source(lab))[0] == "eth0"
    transport.abort()


async def test_an_endpoint_that_was_opened_while_its_interface_had_no_address_does_not_have_a_makeshift_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{lab.address('eth0', V6)}/64"
    bind_and_connect = SocketSpec.bind_and_connect

    def late(spec: SocketSpec, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        lab.ip("-6", "addr", "del", address, "dev", "eth0")
        try:
            bind_and_connect(spec, *arguments, **options)
        finally:
            lab.ip("-6", "addr", "add", address, "dev", "eth0", "nodad")

    monkeypatch.setattr(SocketSpec, "bind_and_connect", late)
    transport, echoes = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, V6), interface="eth0")
    assert (await echoes.source(lab))[0] == "eth0"
    transport.abort()


@pytest.mark.parametrize("chosen", ["0.0.0.0", "10.66.0.2"], ids=["none", "of the tunnel"])
async def test_an_ipv4_endpoint_that_was_opened_while_there_was_no_address_gets_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    if chosen != "0.0.0.0":
        lab.vpn_up("halves")
    lab.remove_addresses("wifi0")
    bind_and_connect = SocketSpec.bind_and_connect

    def late(spec: SocketSpec, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        lab.remove_addresses("eth0")
        try:
            bind_and_connect(spec, sock, *arguments, **options)
            assert sock.getsockname()[0] == chosen
        finally:
            lab.add_addresses("eth0")

    monkeypatch.setattr(SocketSpec, "bind_and_connect", late)
    transport, echoes = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, V4), interface="eth0")
    for _ in range(3):  # Linux gives the first datagram a proper address, and the next ones 0.0.0.0
        assert (await echoes.source(lab))[0] == "eth0"
    transport.abort()


def down(lab: Lab, interface: str, there: bool) -> None:
    if there:
        lab.up(interface)
    else:
        lab.down(interface)


def addresses(lab: Lab, interface: str, there: bool) -> None:
    if there:
        lab.add_addresses(interface)
    else:
        lab.remove_addresses(interface)


@pytest.mark.soak
@pytest.mark.parametrize(("loop_name", "user"), [("asyncio", "root"), ("asyncio", "nobody"), ("uvloop", "nobody")])
@pytest.mark.parametrize("lose", [down, addresses])
def test_what_is_accepted_leaves_by_an_uplink_when_the_other_is_taken_away(
    lab: Lab,
    streaming: Callable[..., Streaming],
    loop_name: str,
    user: str,
    lose: Callable[[Lab, str, bool], None],
) -> None:
    lab.vpn_up("metric")
    # The kernel itself answers late replies to an interface that is back while its socket has moved, by its default route.
    with lab.tap(interface="tun0", protocol="udp") as tunnel:
        program = streaming(loop_name, user)
        for loss in range(SWITCHES):
            lost, other = ("eth0", "wifi0") if loss % 2 else ("wifi0", "eth0")
            lab.default(lost)
            program.wait_until_used(lost)
            time.sleep(CALM)
            lose(lab, lost, False)
            program.wait_until_used(other)
            time.sleep(CALM)
            lose(lab, lost, True)
            lab.wait_until_running(lost)
        outcome = program.finish()
    # While an interface goes down on one processor and a program sends on another, the device drops what it accepts for some
    # microseconds (linux net/core/dev.c, __dev_close_many): that is counted.
    assert len(outcome.missing) - outcome.missed <= outcome.statistics["lost_on_device"], outcome.told()
    assert len(outcome.missing) - outcome.missed <= outcome.dropped
    assert outcome.statistics["lost"] == 0
    assert outcome.statistics["rebinds"] >= SWITCHES
    assert sum(outcome.left_by.values()) >= outcome.sent - len(outcome.missing)
    assert tunnel.packets == []
    assert not outcome.errors


@pytest.mark.parametrize("lose", [down, addresses])
async def test_every_accepted_datagram_leaves_when_nothing_happens_while_it_is_accepted(
    lab: Lab, lose: Callable[[Lab, str, bool], None]
) -> None:
    lab.datagrams()
    overflows = overflows_at_server(lab)
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab))
    sent = 0

    async def send_for(seconds: float) -> None:
        nonlocal sent
        loop = asyncio.get_running_loop()
        begun, before = loop.time(), sent
        while loop.time() < begun + seconds:
            while sent - before < (loop.time() - begun) * 1000:
                transport.sendto(b"%d" % sent)
                sent += 1
            await asyncio.sleep(0.0005)

    for loss in range(SWITCHES):
        lost = "eth0" if loss % 2 else "wifi0"
        lab.default(lost)
        await send_for(CALM / 2)
        lose(lab, lost, False)
        await send_for(CALM / 2)
        lose(lab, lost, True)
    await send_for(CALM)
    arrived: list[int] = []
    missed, deadline = 0, time.monotonic() + PATIENCE
    while len(arrived) + missed < sent and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
        missed = overflows_at_server(lab) - overflows
        arrived += [int(d.payload) for d in lab.datagrams()]
    missing = len(set(range(sent)) - set(arrived))
    assert (missing, len(arrived), protocol.errors) == (missed, sent - missed, []), bindsock.statistics()
    transport.close()


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_lost_carrier_costs_what_the_device_had_taken_and_the_statistics_say_so(
    lab: Lab, streaming: Callable[..., Streaming]
) -> None:
    program = streaming("asyncio", "nobody")
    for loss in range(SWITCHES):
        lost, other = ("eth0", "wifi0") if loss % 2 else ("wifi0", "eth0")
        lab.default(lost)
        program.wait_until_used(lost)
        time.sleep(CALM)
        lab.carrier(lost, False)
        lab.wait_until_running(lost, False)
        program.wait_until_used(other)
        time.sleep(CALM)
        lab.carrier(lost, True)
        lab.wait_until_running(lost)
    outcome = program.finish()
    assert len(outcome.missing) - outcome.missed <= outcome.statistics["lost_on_device"] < outcome.sent
    assert outcome.statistics["lost"] == 0
    assert outcome.statistics["rebinds"] >= SWITCHES
    assert not outcome.errors


@FAMILIES
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("port", [0, 40123], ids=["any port", "a certain port"])
async def test_it_follows_and_keeps_its_port(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, connected: bool, port: int
) -> None:
    set_overlap(monkeypatch, 3600.0)
    lab.vpn_up("metric")
    tunnel = lab.counters("tun0").tx_packets
    wildcard = "0.0.0.0" if family == V4 else "::"
    local = (wildcard, port) if port or not connected else None
    remote = server(lab, family) if connected else None
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, local, remote, family=family)
    to = None if connected else server(lab, family)
    interface, first_port = await protocol.source(lab, to)
    assert interface == "wifi0"
    assert first_port == port or not port

    lab.default("eth0")
    await protocol.used("eth0")
    assert await protocol.source(lab, to) == ("eth0", first_port)

    before = transport.get_extra_info("socket").fileno()
    await asyncio.sleep(0)
    lab.down("eth0")
    assert await protocol.source(lab, to) == ("wifi0", first_port)
    # The socket of the first overlap was still open, and took over again.
    assert transport.get_extra_info("socket").fileno() != before
    assert not protocol.errors
    assert lab.counters("tun0").tx_packets == tunnel
    transport.close()


@FAMILIES
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
async def test_from_a_dead_interface_it_moves_in_place(lab: Lab, family: socket.AddressFamily, connected: bool) -> None:
    remote = server(lab, family) if connected else None
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, None, remote, family=family)
    to = None if connected else server(lab, family)
    interface, port = await protocol.source(lab, to)
    assert interface == "wifi0"
    descriptor = transport.get_extra_info("socket").fileno()
    lab.delete("wifi0")
    assert await protocol.source(lab, to) == ("eth0", port)
    assert transport.get_extra_info("socket").fileno() == descriptor
    assert not protocol.errors
    transport.close()


def has_the_port(interface: str, port: int, family: socket.AddressFamily) -> socket.socket:
    """A socket of another program that has the port on an interface."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    kernel = LinuxKernel()
    kernel.bind(sock, next(i for i in kernel.network().interfaces.values() if i.name == interface))
    sock.bind(("", port))
    return sock


def sent_from(transport: Any, address: str, family: socket.AddressFamily) -> int:
    """The port from which an endpoint sends to an address of this host, for which it makes another socket."""
    with socket.socket(family, socket.SOCK_DGRAM) as neighbour:
        neighbour.bind((address, 0))
        neighbour.settimeout(PATIENCE)
        transport.sendto(b"x", neighbour.getsockname())
        port: int = neighbour.recvfrom(10)[1][1]
        return port


def left_in(sock: socket.socket) -> list[bytes]:
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            datagrams.append(sock.recv(2048))
    return datagrams


@FAMILIES
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("moved_before", [False, True], ids=["first move", "second move"])
async def test_a_port_that_another_socket_has_on_the_new_interface_is_not_shared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, connected: bool, moved_before: bool
) -> None:
    set_overlap(monkeypatch, 0.0)
    first, second = ("eth0", "wifi0") if moved_before else ("wifi0", "eth0")
    remote = server(lab, family) if connected else None
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, None, remote, family=family)
    to = None if connected else server(lab, family)
    if moved_before:
        # Its port is not the system's first choice any more.
        lab.default("eth0")
        await protocol.used("eth0")
        await until(lambda: not transport._mover.held.sockets, seconds=PATIENCE)
    _, port = await protocol.source(lab, to)
    with has_the_port(second, port, family) as other:
        lab.down(first)
        await protocol.used(second)
        another = transport.get_extra_info("sockname")[1]
        assert another not in (0, port)
        assert await protocol.source(lab, to) == (second, another)
        assert left_in(other) == []
    if not connected:
        assert sent_from(transport, "127.0.0.1" if family == V4 else "::1", family) == another
    lab.up(first)
    lab.default(first)
    await protocol.used(first)
    assert await protocol.source(lab, to) == (first, another)
    transport.abort()


async def test_before_linux_6_3_no_port_is_shared_either(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_IP_LOCAL_PORT_RANGE", 250)  # an option that the kernel does not have
    set_overlap(monkeypatch, 0.0)
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab))
    _, port = await protocol.source(lab)
    lab.down("wifi0")
    assert await protocol.source(lab) == ("eth0", port)
    lab.up("wifi0")
    await protocol.used("wifi0")
    await until(lambda: not transport._mover.held.sockets, seconds=PATIENCE)
    assert await protocol.source(lab) == ("wifi0", port)
    with has_the_port("eth0", port, V4):
        lab.down("wifi0")
        interface, another = await protocol.source(lab)
    assert interface == "eth0"
    assert another != port
    transport.abort()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("reason", ["range", "reserved"])
async def test_a_port_that_the_system_no_longer_gives_to_others_is_kept_but_not_shared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, reason: str, connected: bool
) -> None:
    set_overlap(monkeypatch, 0.0)
    remote, to = (server(lab), None) if connected else (None, server(lab))
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, family=V4, remote_addr=remote)
    _, port = await protocol.source(lab, to)
    first = 20000 if port >= 30000 else 40000
    setting, value = ("port_range", f"{first} {first + 1000}") if reason == "range" else ("reserved_ports", str(port))
    Path(f"/proc/sys/net/ipv4/ip_local_{setting}").write_text(value)
    lab.down("wifi0")
    assert await protocol.source(lab, to) == ("eth0", port)
    with has_the_port("wifi0", port, V4) as other:
        lab.down("eth0")
        lab.up("wifi0")
        interface, another = await protocol.source(lab, to)
        assert interface == "wifi0"
        assert another != port
        assert left_in(other) == []
    transport.abort()


@FAMILIES
@pytest.mark.parametrize("kind", ["a certain port", "a socket of one's own"])
async def test_a_port_that_must_be_kept_is_waited_for(lab: Lab, family: socket.AddressFamily, kind: str) -> None:
    if kind == "a certain port":
        wildcard = "0.0.0.0" if family == V4 else "::"
        transport, protocol = await bindsock.create_datagram_endpoint(Echoes, (wildcard, 40124), family=family)
    else:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind(("", 40124))
        transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    assert await protocol.source(lab, server(lab, family)) == ("wifi0", 40124)
    with has_the_port("eth0", 40124, family) as other:
        failed = bindsock.statistics().rebinds_failed
        lab.down("wifi0")
        await until(lambda: bindsock.statistics().rebinds_failed > failed, seconds=PATIENCE)
        transport.sendto(b"ping", server(lab, family))
        await until(lambda: bindsock.statistics().rebinds_failed > failed + 2, seconds=PATIENCE)
        assert left_in(other) == []
        assert bindsock.statistics().waiting == 1
    async with asyncio.timeout(PATIENCE):
        address, arrived_from, _ = (await protocol.replies.get()).split()
    assert (lab.interface_of(address.decode().removeprefix("::ffff:")), int(arrived_from)) == ("eth0", 40124)
    transport.abort()


async def test_a_way_of_an_endpoint_does_not_let_it_share_its_port(lab: Lab) -> None:
    with has_the_port("eth0", 40129, V4) as other:
        transport, protocol = await bindsock.create_datagram_endpoint(Echoes, ("0.0.0.0", 40129), family=V4)
        assert sent_from(transport, lab.address("wifi0"), V4) != 40129
        lab.down("wifi0")
        await until(lambda: bindsock.statistics().rebinds_failed > 0, seconds=PATIENCE)
        transport.sendto(b"ping", server(lab))
        assert bindsock.statistics().waiting == 1
        assert left_in(other) == []
    await until(lambda: bindsock.statistics().waiting == 0, seconds=PATIENCE)
    assert await protocol.source(lab, server(lab)) == ("eth0", 40129)
    transport.abort()


@pytest.mark.parametrize("used_before", [False, True])
async def test_while_its_port_is_taken_an_endpoint_sends_nothing_to_the_other_network_by_the_old_interface(
    lab: Lab, used_before: bool
) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, ("0.0.0.0", 40130), family=V4)
    assert await protocol.source(lab, server(lab)) == ("wifi0", 40130)
    neighbour = (lab.gateway("eth0"), 9)
    with has_the_port("eth0", 40130, V4):
        if used_before:
            transport.sendto(b"x", neighbour)
            assert bindsock.statistics().sent["eth0"] == 1
        lab.default("eth0")
        await until(lambda: bindsock.statistics().rebinds_failed > 0, seconds=PATIENCE)
        sent = bindsock.statistics().sent["wifi0"]
        transport.sendto(b"x", neighbour)
        assert (bindsock.statistics().waiting, bindsock.statistics().sent["wifi0"]) == (1, sent)
        assert await protocol.source(lab, server(lab)) == ("wifi0", 40130)
    await until(lambda: bindsock.statistics().waiting == 0, seconds=PATIENCE)
    assert await protocol.source(lab, server(lab)) == ("eth0", 40130)
    transport.abort()


@FAMILIES
async def test_a_better_path_where_another_socket_has_the_port_is_not_taken_yet(lab: Lab, family: socket.AddressFamily) -> None:
    wildcard = "0.0.0.0" if family == V4 else "::"
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, (wildcard, 40125), server(lab, family))
    assert await protocol.source(lab) == ("wifi0", 40125)
    with has_the_port("eth0", 40125, family):
        failed = bindsock.statistics().rebinds_failed
        lab.default("eth0")
        await until(lambda: bindsock.statistics().rebinds_failed > failed + 1, seconds=PATIENCE)
        assert await protocol.source(lab) == ("wifi0", 40125)
    await protocol.used("eth0")
    assert await protocol.source(lab) == ("eth0", 40125)
    transport.abort()


async def test_sockets_that_share_their_port_on_purpose_move_on(lab: Lab) -> None:
    local = ("0.0.0.0", 40126)
    options: dict[str, Any] = {"family": V4, "reuse_port": True}
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, local, **options)
    other, _ = await bindsock.create_datagram_endpoint(Echoes, local, interface="eth0", **options)
    lab.down("wifi0")
    await protocol.used("eth0")
    assert transport.get_extra_info("sockname")[1] == other.get_extra_info("sockname")[1] == 40126
    transport.abort()
    other.abort()


@FAMILIES
@pytest.mark.parametrize("moved_before", [False, True], ids=["first move", "second move"])
async def test_the_sockets_of_one_endpoint_share_their_port_when_one_moves(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, moved_before: bool
) -> None:
    set_overlap(monkeypatch, 0.0)
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, family=family)
    _, port = await protocol.source(lab, server(lab, family))
    # Another address of this host is reached by a socket that is bound to no interface.
    assert sent_from(transport, lab.address("eth0", family), family) == port
    if moved_before:
        lab.default("eth0")
        await protocol.used("eth0")
        assert await protocol.source(lab, server(lab, family)) == ("eth0", port)
        lab.default("wifi0")
        await protocol.used("wifi0")
        assert await protocol.source(lab, server(lab, family)) == ("wifi0", port)
    lab.down("wifi0")
    assert await protocol.source(lab, server(lab, family)) == ("eth0", port)
    transport.abort()


async def test_a_port_that_the_system_does_not_choose_itself_is_shared_by_the_sockets_of_an_endpoint(lab: Lab) -> None:
    sock = socket.socket(V4, socket.SOCK_DGRAM)
    sock.bind(("", 5000))
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    assert sent_from(transport, "127.0.0.1", V4) == 5000
    assert await protocol.source(lab, server(lab)) == ("wifi0", 5000)
    transport.abort()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
async def test_an_endpoint_with_other_sockets_can_be_unbound(lab: Lab, connected: bool) -> None:
    lab.vpn_up("metric")  # it has the route of an unbound socket
    async with bindsock.TransportFactory(preferences=bindsock.Preferences(on_no_interface="unbound")) as factory:
        remote = server(lab) if connected else None
        transport, protocol = await factory.create_datagram_endpoint(Echoes, family=V4, remote_addr=remote)
        _, port = await protocol.source(lab, None if connected else server(lab))
        if connected:
            lab.default("eth0")  # the old socket is still there when the new one is unbound
            await protocol.used("eth0")
        else:
            assert sent_from(transport, "127.0.0.1", V4) == port
        lab.down("wifi0")
        lab.down("eth0")
        await until(lambda: transport.get_extra_info("interface") is None, seconds=PATIENCE)
        assert transport.get_extra_info("sockname")[1] == port
        transport.abort()


async def test_an_endpoint_is_unbound_with_another_port_if_its_own_is_taken(lab: Lab) -> None:
    lab.vpn_up("metric")  # it has the route of an unbound socket
    async with bindsock.TransportFactory(preferences=bindsock.Preferences(on_no_interface="unbound")) as factory:
        transport, protocol = await factory.create_datagram_endpoint(Echoes, remote_addr=server(lab))
        _, port = await protocol.source(lab)
        with has_the_port("eth0", port, V4):
            for name in ("wifi0", "eth0"):
                lab.remove_addresses(name)
            await until(lambda: transport.get_extra_info("interface") is None, seconds=PATIENCE)
            assert transport.get_extra_info("peername") == server(lab)
            assert transport.get_extra_info("sockname")[1] not in (0, port)
        transport.abort()


async def test_a_socket_of_the_programs_own_stays_where_it_works_while_its_port_is_taken_elsewhere(lab: Lab) -> None:
    kernel = LinuxKernel()
    indices = {name: socket.if_nametoindex(name) for name in lab.uplinks}
    async with bindsock.TransportFactory() as factory:
        with socket.socket(V4, socket.SOCK_DGRAM) as sock:
            sock.connect(server(lab))
            factory.track(sock)
            lab.default("eth0")
            await until(lambda: kernel.bound(sock) == indices["eth0"], seconds=PATIENCE)
            port = sock.getsockname()[1]
            with has_the_port("wifi0", port, V4):
                failed = factory.statistics().rebinds_failed
                lab.default("wifi0")
                await until(lambda: factory.statistics().rebinds_failed > failed + 1, seconds=PATIENCE)
                assert kernel.bound(sock) == indices["eth0"]
                sock.send(b"x")
            await until(lambda: kernel.bound(sock) == indices["wifi0"], seconds=PATIENCE)
            assert sock.getsockname()[1] == port


async def test_a_socket_of_the_programs_own_is_not_sent_by_where_another_has_its_port(lab: Lab) -> None:
    kernel, eth0 = LinuxKernel(), socket.if_nametoindex("eth0")
    async with bindsock.TransportFactory() as factory:
        with socket.socket(V4, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 40127))
            factory.track(sock)
            with has_the_port("eth0", 40127, V4):
                lab.down("wifi0")
                await until(lambda: factory.statistics().rebinds_failed > 1, seconds=PATIENCE)
                assert kernel.bound(sock) != eth0
            await until(lambda: kernel.bound(sock) == eth0, seconds=PATIENCE)


def test_a_port_is_only_taken_if_another_socket_has_it_on_that_interface(lab: Lab) -> None:
    kernel = LinuxKernel()
    interfaces = {interface.name: interface for interface in kernel.network().interfaces.values()}
    eth0, wifi0 = interfaces["eth0"], interfaces["wifi0"]
    for name in ("eth0", "wifi0"):
        lab.ip("-6", "address", "add", "fe80::77/64", "dev", name, "nodad")
    with socket.socket(V6, socket.SOCK_DGRAM) as sock:
        kernel.check_port(sock, eth0)
        kernel.bind(sock, wifi0)
        sock.bind(("fe80::77", 40128, 0, wifi0.index))
        for interface in (eth0, wifi0):
            kernel.check_port(sock, interface, keeps_address=True)
        with has_the_port("eth0", 40128, V6):
            kernel.check_port(sock, wifi0)
            for keeps in (False, True):
                with pytest.raises(bindsock.BindFailed, match="another socket has the local port 40128 on eth0") as caught:
                    kernel.check_port(sock, eth0, keeps_address=keeps)
                assert (caught.value.errno, caught.value.call) == (errno.EADDRINUSE, "bind")
        kernel.check_port(sock, eth0)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno(), limits[1]))
        try:
            kernel.check_port(sock, eth0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(bindsock.BindFailed, match="closed"):
        kernel.check_port(sock, eth0)


@FAMILIES
async def test_the_same_interface_in_another_network(lab: Lab, family: socket.AddressFamily) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, family))
    await protocol.source(lab)
    before = transport.get_extra_info("sockname")
    lab.down("eth0")
    lab.renumber("wifi0", "b")
    await until(lambda: transport.get_extra_info("sockname") != before, seconds=PATIENCE)
    assert await protocol.source(lab) == ("wifi0", before[1])
    assert transport.get_extra_info("sockname")[0] == lab.address("wifi0", family) != before[0]
    transport.close()


async def test_a_pinned_interface_that_is_created_again(lab: Lab) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab), interface="eth0")
    assert (await protocol.source(lab))[0] == "eth0"
    lab.delete("eth0")
    transport.sendto(b"ping")
    assert transport.get_write_buffer_size() == 4
    lab.create("eth0")
    async with asyncio.timeout(PATIENCE):
        source, _, _ = (await protocol.replies.get()).split()
    assert lab.interface_of(source.decode()) == "eth0"
    assert bindsock.statistics().held == 1
    transport.close()


@pytest.mark.parametrize("mode", ["metric", "halves", "policy"])
@FAMILIES
async def test_beneath_a_vpn_that_comes_and_goes(lab: Lab, mode: VpnMode, family: socket.AddressFamily) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, family))
    lab.vpn_up(mode)
    tunnel = lab.counters("tun0").tx_packets
    assert (await protocol.source(lab))[0] == "wifi0"
    lab.default("eth0")
    await protocol.used("eth0")
    assert (await protocol.source(lab))[0] == "eth0"
    assert lab.counters("tun0").tx_packets == tunnel
    lab.vpn_down()
    assert (await protocol.source(lab))[0] == "eth0"
    transport.close()


async def test_when_only_the_vpn_is_left_datagrams_wait_rather_than_enter_it(lab: Lab) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab))
    lab.vpn_up("replace")
    tunnel = lab.counters("tun0").tx_packets
    async with asyncio.timeout(PATIENCE):
        while not transport.get_write_buffer_size():
            transport.sendto(b"ping")
            await asyncio.sleep(0.005)
    with pytest.raises((bindsock.NoEffectiveInterface, bindsock.NoRoute), match="ip r"):
        await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab))
    assert lab.counters("tun0").tx_packets == tunnel
    lab.vpn_down()
    async with asyncio.timeout(PATIENCE):
        while transport.get_write_buffer_size():
            await asyncio.sleep(0.005)
        source, _, _ = (await protocol.replies.get()).split()
    assert lab.interface_of(source.decode()) == "wifi0"
    transport.close()


async def test_a_local_address_is_a_pin_and_its_loss_the_end(lab: Lab) -> None:
    address = lab.address("wifi0")
    other, echoes = await bindsock.create_datagram_endpoint(Echoes, (lab.address("eth0"), 0), server(lab))
    assert (await echoes.source(lab))[0] == "eth0"
    other.close()
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, (address, 0), server(lab))
    assert (await protocol.source(lab))[0] == "wifi0"
    lab.default("eth0")
    assert (await protocol.source(lab))[0] == "wifi0"
    lab.remove_addresses("wifi0")
    async with asyncio.timeout(PATIENCE):
        end = await protocol.end
    assert isinstance(end, bindsock.InterfaceChanged)
    assert (end.interface, end.new_interface) == ("wifi0", "eth0")
    assert transport.is_closing()


async def test_a_socket_for_both_families_speaks_both_and_follows(lab: Lab) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, ("::", 0))
    mapped = (f"::ffff:{lab.server.ipv4}", lab.server.udp_port)
    for _ in range(2):
        assert (await protocol.source(lab, mapped))[0] == "wifi0"
        assert (await protocol.source(lab, server(lab, V6)))[0] == "wifi0"
    lab.down("wifi0")
    await protocol.used("eth0")
    assert (await protocol.source(lab, mapped))[0] == "eth0"
    assert (await protocol.source(lab, server(lab, V6)))[0] == "eth0"
    transport.close()


@FAMILIES
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
async def test_a_socket_of_ones_own_is_moved_in_place(lab: Lab, family: socket.AddressFamily, connected: bool) -> None:
    lab.vpn_up("metric")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if connected:
        sock.connect(server(lab, family))
        # The socket was made without any binding, so it has the tunnel's address.
        assert sock.getsockname()[0] == lab.address("tun0", family)
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    to = None if connected else server(lab, family)
    interface, port = await protocol.source(lab, to)
    assert interface == "wifi0"
    lab.default("eth0")
    await protocol.used("eth0")
    assert await protocol.source(lab, to) == ("eth0", port)
    assert transport.get_extra_info("socket").fileno() == sock.fileno()
    transport.close()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
async def test_a_socket_of_ones_own_that_has_an_uplinks_address_leaves_by_that_uplink(lab: Lab, connected: bool) -> None:
    lab.vpn_up("metric")
    with lab.tap(interface="tun0", protocol="udp") as tunnel:
        for name in ("wifi0", "eth0"):
            sock = socket.socket(V4, socket.SOCK_DGRAM)
            sock.bind((lab.address(name), 0))
            before = sock.getsockname()
            if connected:
                sock.connect(server(lab))
            transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
            assert transport.get_extra_info("interface") == name
            assert bindsock.interface_of(transport) == name
            assert sock.getsockname() == before
            assert await protocol.source(lab, None if connected else server(lab)) == (name, before[1])
            transport.close()
    assert tunnel.packets == []


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
async def test_a_socket_of_ones_own_that_has_the_tunnels_address_is_left_alone(lab: Lab, connected: bool) -> None:
    lab.vpn_up("metric")
    sock = socket.socket(V4, socket.SOCK_DGRAM)
    sock.bind((lab.address("tun0"), 0))
    before = sock.getsockname()
    if connected:
        sock.connect(server(lab))
    transport, _ = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    assert transport.get_extra_info("interface") is None
    assert sock.getsockname() == before
    transport.close()


@pytest.mark.parametrize("option", ["SO_MARK", "IP_UNICAST_IF", "SO_BINDTODEVICE"])
async def test_a_socket_whose_way_the_program_has_chosen_is_left_alone(lab: Lab, option: str) -> None:
    sock = socket.socket(V4, socket.SOCK_DGRAM)
    if option == "SO_MARK":
        sock.setsockopt(socket.SOL_SOCKET, 36, 7)
    elif option == "IP_UNICAST_IF":
        sock.setsockopt(socket.IPPROTO_IP, 50, struct.pack("!I", lab.index("eth0")))
    else:
        sock.setsockopt(socket.SOL_SOCKET, 25, b"eth0")
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    bound = LinuxKernel().bound(sock)
    assert bound == (lab.index("eth0") if option == "SO_BINDTODEVICE" else None)
    assert (await protocol.source(lab, server(lab)))[0] == ("wifi0" if option == "SO_MARK" else "eth0")
    bindsock.track(sock)
    assert LinuxKernel().bound(sock) == bound
    transport.close()


@FAMILIES
async def test_multicasts_leave_by_the_interface_that_the_program_has_chosen_and_all_else_as_ever(
    lab: Lab, family: socket.AddressFamily
) -> None:
    lab.vpn_up("metric")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == V4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(lab.address("eth0")))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, lab.index("eth0"))
    sock.bind(("", 0))
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    group = "239.255.255.250" if family == V4 else "ff05::c"
    with lab.tap(protocol="udp") as seen:
        transport.sendto(b"search", (group, 1900))
        assert (await protocol.source(lab, server(lab, family)))[0] == "wifi0"
    left_by = {p.interface for p in seen.packets if p.outgoing and p.payload == b"search"}
    assert left_by == {"eth0"}
    transport.close()


async def test_a_port_nobody_listens_on_is_an_error_and_not_the_end(lab: Lab) -> None:
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, remote_addr=(lab.server.ipv4, 9))
    for number in range(1, 4):
        transport.sendto(b"x")
        await until(lambda: len(protocol.errors) >= number, seconds=PATIENCE)  # noqa: B023 - called at once
    assert {type(error) for error in protocol.errors} == {ConnectionRefusedError}
    assert not transport.is_closing()
    assert bindsock.statistics().lost == 0
    transport.close()


async def test_a_destination_that_is_refused_does_not_hold_up_the_others(lab: Lab) -> None:
    sock = socket.socket(V6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    transport, protocol = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
    transport.sendto(b"x", ("::ffff:192.0.2.1", 9))
    assert transport.get_write_buffer_size() == 1
    assert (await protocol.source(lab, server(lab, V6)))[0] == "wifi0"
    await until(lambda: protocol.errors, seconds=PATIENCE)
    transport.sendto(b"x", ("::ffff:192.0.2.1", 9))
    assert [error.errno for error in protocol.errors if isinstance(error, OSError)] == [errno.ENETUNREACH] * 2
    transport.close()


class HereAndThere(asyncio.DatagramProtocol):
    """Collects each datagram with its sender."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(addr[:2])


@FAMILIES
async def test_this_host_itself_is_reached_by_an_endpoint_without_a_peer(lab: Lab, family: socket.AddressFamily) -> None:
    """One port for all, and answers from all: a stub resolver on 127.0.0.53, an address of this host, and a remote server."""
    lab.vpn_up("metric")
    tunnel = lab.counters("tun0").tx_packets
    transport, protocol = await bindsock.create_datagram_endpoint(HereAndThere, family=family)
    sources = set()
    for host in ("127.0.0.53" if family == V4 else "::1", lab.address("wifi0", family), lab.address("eth0", family)):
        with socket.socket(family, socket.SOCK_DGRAM) as local:
            local.bind((host, 0))
            local.setblocking(False)
            transport.sendto(b"x", local.getsockname()[:2])
            async with asyncio.timeout(PATIENCE):
                _, source = await asyncio.get_running_loop().run_in_executor(None, received, local)
                local.sendto(b"y", source)
                assert await protocol.received.get() == local.getsockname()[:2]
            sources.add(source[1])
    transport.sendto(b"ping", server(lab, family))
    async with asyncio.timeout(PATIENCE):
        assert (await protocol.received.get())[0] == lab.server.address(family)
    sources.add(transport.get_extra_info("sockname")[1])
    assert len(sources) == 1
    assert bindsock.statistics().sent == {"unbound": 2, "wifi0": 1, "lo": 1}
    assert lab.counters("tun0").tx_packets == tunnel
    transport.close()


def received(sock: socket.socket) -> tuple[bytes, Any]:
    """Wait for one datagram."""
    sock.settimeout(PATIENCE)
    return sock.recvfrom(100)


async def test_an_own_address_that_goes_is_not_sent_to_by_the_tunnel(lab: Lab) -> None:
    transport, _ = await bindsock.create_datagram_endpoint(HereAndThere, family=V4)
    own = lab.address("eth0")
    transport.sendto(b"x", (own, 9))
    lab.vpn_up("metric")
    with lab.tap(interface="tun0", protocol="udp") as tunnel:
        lab.remove_addresses("eth0")
        # bindsock has not read the events yet.
        transport.sendto(b"y", (own, 9))
        await asyncio.sleep(0)
    assert [packet for packet in tunnel.packets if packet.payload == b"y"] == []
    transport.abort()


async def test_an_old_socket_is_closed_when_the_overlap_is_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    set_overlap(monkeypatch, 0.1)
    async with bindsock.TransportFactory() as factory:
        transport, protocol = await factory.create_datagram_endpoint(Echoes, remote_addr=server(lab))
        await protocol.source(lab)
        before = set(os.listdir("/proc/self/fd"))
        lab.default("eth0")
        await protocol.used("eth0")
        await until(lambda: len(os.listdir("/proc/self/fd")) <= len(before), seconds=PATIENCE)
        assert (await protocol.source(lab))[0] == "eth0"
        transport.close()
        await protocol.end


async def test_a_socket_that_was_bound_to_another_uplinks_address_is_not_taken_back(lab: Lab) -> None:
    """Without an address of its own eth0 uses that of an interface without a default route, and wifi0 is one for a moment."""
    own = f"{lab.address('eth0', V6)}/64", "dev", "eth0"
    default = "default", "via", lab.gateway("wifi0", V6), "dev", "wifi0"
    _, protocol = await bindsock.create_datagram_endpoint(Echoes, family=V6)
    transport = protocol.transport
    lab.ip("-6", "route", "flush", "default", "dev", "wifi0")
    await protocol.used("eth0")
    lab.ip("-6", "addr", "del", *own)
    await until(lambda: transport.get_extra_info("sockname")[0] == lab.address("wifi0", V6), seconds=PATIENCE)
    lab.ip("-6", "route", "add", *default, "metric", "1")
    await protocol.used("wifi0")
    lab.ip("-6", "addr", "add", *own, "nodad")
    lab.ip("-6", "route", "del", *default)
    await protocol.used("eth0")
    assert (await protocol.source(lab, server(lab, V6)))[0] == "eth0"
    transport.close()
