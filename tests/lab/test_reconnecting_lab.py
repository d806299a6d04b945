"""Connections that are replaced, in the laboratory, with the VPN up."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

import bindsock
from bindsock.reconnect.machine import Event
from bindsock.stream import viability
from bindsock.testing.lab import Lab
from tests.tls import tls_client_context, tls_server_context
from tests.waiting import until

from .bridging import into_a_bridge
from .commands import Client, Commands

TCP_USER_TIMEOUT = 18
"""``linux include/uapi/linux/tcp.h``. On other systems, the socket module does not have it."""

pytestmark = pytest.mark.lab


class Place:
    """A laboratory with a VPN and a server of commands."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.commands = Commands()
        self.writers: list[asyncio.StreamWriter] = []
        self.family = socket.AF_INET
        self.client_tls: ssl.SSLContext | None = None
        self.factory = bindsock.TransportFactory()

    async def listen(self, *, tls: bool = False, family: socket.AddressFamily = socket.AF_INET, port: int = 0) -> None:
        context = None
        if tls:
            context = tls_server_context(self.lab.server.name)
            self.client_tls = tls_client_context()
        await self.commands.listen(self.lab, tls=context, family=family, port=port)

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.client_tls is not None:
            options |= {"ssl": self.client_tls, "server_hostname": self.lab.server.name}
        reader, writer = await self.factory.open_connection(*self.commands.address, **options)
        self.writers.append(writer)
        return reader, writer

    def interfaces(self) -> list[str | None]:
        """The interface by which each connection reached the server."""
        return [self.lab.interface_of(source) for source in self.commands.sources]

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)
        await self.commands.close()


@pytest_asyncio.fixture
async def place(lab: Lab) -> AsyncIterator[Place]:
    lab.vpn_up("metric")
    made = Place(lab)
    yield made
    await made.close()


def kinds(function: Any) -> Any:
    return pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])(function)


@pytest.mark.soak
@kinds
@pytest.mark.timeout(180)
async def test_8000_commands_over_20_switches_are_applied_once_each(lab: Lab, place: Place, tls: bool) -> None:
    await place.listen(tls=tls, family=socket.AF_INET6 if tls else socket.AF_INET)
    client = Client()
    tap = lab.tap(interface="tun0", protocol="tcp", outgoing=True)
    running = asyncio.create_task(client.run(place.connect, 8000))
    await until(lambda: client.next > 100)

    here, there = "wifi0", "eth0"
    for number in range(20):
        goal = min(client.next + 250, 7900)
        begun = client.reconnected
        if number % 3:
            lab.default(there)
        else:
            lab.down(here)
        await until(functools.partial(lambda begun: client.reconnected > begun, begun))
        await until(functools.partial(lambda goal: client.next >= goal, goal))
        assert client.writer.get_extra_info("interface") == there
        if not number % 3:
            lab.default(there)
            lab.up(here)
        here, there = there, here
    async with asyncio.timeout(30):
        await running
    assert place.commands.applied == list(range(8000))
    assert set(place.interfaces()) == {"wifi0", "eth0"}
    assert place.factory.statistics().reconnected == client.reconnected >= 20
    # The kernel's own answers to segments of closed connections leave by the default route.
    assert [packet for packet in tap.packets if packet.payload] == []
    tap.close()


@kinds
async def test_killing_the_new_interface_in_the_middle(lab: Lab, place: Place, tls: bool) -> None:
    await place.listen(tls=tls)
    in_hook, go_on = asyncio.Event(), asyncio.Event()
    calls = 0

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        nonlocal calls
        calls += 1
        writer.write(b"login\n")
        in_hook.set()
        await go_on.wait()
        await reader.readuntil()

    reader, writer = await place.connect(on_reconnect=hook)
    writer.write(b"login\n")
    await reader.readuntil()
    lab.default("eth0")
    await in_hook.wait()
    in_hook.clear()
    lab.down("eth0")
    go_on.set()
    await in_hook.wait()
    writer.write(b"do 0\n")
    async with asyncio.timeout(20):
        assert await reader.readuntil() == b"done 0\n"
    assert calls == 2
    assert writer.get_extra_info("interface") == "wifi0"


@kinds
async def test_killing_the_server_in_the_middle_and_both(lab: Lab, place: Place, tls: bool) -> None:
    await place.listen(tls=tls)
    in_hook = asyncio.Event()

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        in_hook.set()
        writer.write(b"login\n")
        await asyncio.sleep(0.05)
        await reader.readuntil()

    reader, writer = await place.connect(on_reconnect=hook, reconnect_timeout=3600.0)
    controller: Any = writer.transport._owner  # type: ignore[attr-defined]
    writer.write(b"login\n")
    await reader.readuntil()
    lab.down("wifi0")
    await in_hook.wait()
    place.commands.kill()
    readings = place.factory.statistics().readings
    lab.down("eth0")
    pending = asyncio.create_task(reader.readuntil())
    await until(lambda: place.factory.statistics().readings > readings)
    controller.feed(Event.EXPIRED)
    with pytest.raises(bindsock.InterfaceChanged) as caught:
        async with asyncio.timeout(20):
            await pending
    assert caught.value.__cause__ is not None
    await until(lambda: place.factory.statistics().tracked == 0)


@kinds
async def test_a_server_that_comes_back_is_found(lab: Lab, place: Place, tls: bool) -> None:
    await place.listen(tls=tls)
    client = Client()
    running = asyncio.create_task(client.run(place.connect, 600))
    await until(lambda: client.next > 100)
    place.commands.stop_listening()
    lab.down("wifi0")
    await asyncio.sleep(0.3)
    await place.listen(tls=tls, port=place.commands.address[1])
    async with asyncio.timeout(20):
        await running
    assert place.commands.applied == list(range(600))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_pending_readline_survives(lab: Lab, place: Place, family: socket.AddressFamily) -> None:
    await place.listen(family=family)
    client = Client()
    reader, writer = await place.connect(on_reconnect=client.on_reconnect)
    writer.write(b"login\n")
    await reader.readuntil()
    pending = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    lab.remove_addresses("wifi0")
    await until(lambda: client.reconnected == 1)
    writer.write(b"do 0\n")
    assert await pending == b"done 0\n"
    assert place.interfaces() == ["wifi0", "eth0"]


async def test_the_carrier_is_lost_for_good(lab: Lab, place: Place) -> None:
    await place.listen()
    client = Client()
    running = asyncio.create_task(client.run(place.connect, 500))
    await until(lambda: client.next > 100)
    lab.carrier("wifi0", False)
    async with asyncio.timeout(20):
        await running
    assert place.commands.applied == list(range(500))
    assert place.interfaces() == ["wifi0", "eth0"]


@kinds
async def test_carrier_that_comes_back_first_costs_nothing(lab: Lab, place: Place, tls: bool) -> None:
    """There is another uplink, but the server does not answer over it."""
    await place.listen(tls=tls)
    client = Client()
    running = asyncio.create_task(client.run(place.connect, 500))
    await until(lambda: client.next > 100)
    lab.blackhole("eth0", True)
    for _ in range(3):
        lab.carrier("wifi0", False)
        lab.wait_until_running("wifi0", False)
        lab.carrier("wifi0", True)
        lab.wait_until_running("wifi0")
    async with asyncio.timeout(30):
        await running
    assert place.commands.applied == list(range(500))
    assert client.reconnected == 0
    assert place.interfaces() == ["wifi0"]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_default_route_that_is_away_for_a_moment_replaces_nothing(
    lab: Lab, place: Place, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of systemd-networkd does that."""
    monkeypatch.setattr(viability, "ROUTE_GRACE", 10.0)
    await place.listen(family=family)
    client = Client()
    running = asyncio.create_task(client.run(place.connect, 500))
    await until(lambda: client.next > 100)
    version = "-4" if family == socket.AF_INET else "-6"
    route = lab.ip(version, "route", "show", "default", "dev", "wifi0").split("\n", maxsplit=1)[0].split()
    lab.ip(version, "route", "del", "default", "dev", "wifi0")
    await until(lambda: place.commands.connections == 2)
    lab.ip(version, "route", "add", *route, "dev", "wifi0")
    async with asyncio.timeout(30):
        await running
    assert place.commands.applied == list(range(500))
    assert client.reconnected == 0


async def test_a_blackhole_is_found_out_by_the_silence(lab: Lab, place: Place) -> None:
    """There is no event for it: only ``dead_after`` finds it."""
    await place.listen()
    client = Client()
    running = asyncio.create_task(client.run(functools.partial(place.connect, dead_after=1.0), 500))
    await until(lambda: client.next > 100)
    lab.blackhole("wifi0", True)
    await asyncio.sleep(0.2)
    lab.blackhole("wifi0", False)
    async with asyncio.timeout(20):
        await running
    assert place.commands.applied == list(range(500))


@pytest.mark.parametrize("idle", [False, True])
async def test_dead_after_ends_a_connection_without_a_hook(lab: Lab, place: Place, idle: bool) -> None:
    await place.listen()
    reader, writer = await place.connect(dead_after=1.0)
    writer.write(b"login\n")
    await reader.readuntil()
    lab.blackhole("wifi0", True)
    if not idle:
        writer.write(b"do 0\n")
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(20):
            await reader.readuntil()
    assert caught.value.errno is not None, "the test's own patience ended first"


async def test_a_socket_has_its_patience_too(lab: Lab, place: Place) -> None:
    await place.listen()
    sock = await place.factory.connect(*place.commands.address, dead_after=2.0)
    assert sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 2000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    sock.close()
    with pytest.raises(ValueError, match="dead_after"):
        await place.factory.connect(*place.commands.address, dead_after=0)


async def test_an_address_that_moves_into_a_bridge_takes_its_connections_along(lab: Lab, place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("a bound TCP socket may be moved with CAP_NET_RAW alone")
    await place.listen()
    client = Client()
    guarded_reader, guarded_writer = await place.connect()
    running = asyncio.create_task(client.run(place.connect, 1000))
    await until(lambda: client.next > 100)
    into_a_bridge(lab)
    async with asyncio.timeout(20):
        await running
    assert place.commands.applied == list(range(1000))
    assert client.reconnected == 0
    assert place.commands.connections == 2
    guarded_writer.write(b"login\n")
    async with asyncio.timeout(20):
        assert await guarded_reader.readuntil() == b"welcome 999\n"
    assert bindsock.interface_of(guarded_writer) == "br0"
    assert client.writer.get_extra_info("interface") == "br0"


class Replaced(asyncio.Protocol):
    """A protocol with ``connection_replaced``, which records its calls."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.replaced = 0
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: Any) -> None:
        transport.write(b"login\n")

    async def connection_replaced(self, transport: asyncio.Transport, unread: bytes) -> None:
        self.replaced += 1
        before = len(self.lines)
        transport.write(b"login\n")
        while len(self.lines) == before:
            await asyncio.sleep(0.001)

    def data_received(self, data: bytes) -> None:
        self.lines += data.splitlines()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@kinds
async def test_a_protocol_with_connection_replaced_needs_nothing_else(lab: Lab, place: Place, tls: bool) -> None:
    await place.listen(tls=tls)
    options: dict[str, Any] = {"ssl": place.client_tls, "server_hostname": lab.server.name} if tls else {}
    transport, protocol = await place.factory.create_connection(Replaced, *place.commands.address, **options)
    await until(lambda: protocol.lines == [b"welcome -1"])
    switches: list[tuple[Callable[[str], object], str]] = [(lab.down, "wifi0"), (lab.up, "wifi0"), (lab.default, "eth0")]
    for number, (switch, uplink) in enumerate(switches):
        switch(uplink)
        await until(functools.partial(lambda wanted: protocol.replaced == wanted, number + 1))
        transport.write(b"do %d\n" % number)
        await until(functools.partial(lambda wanted: protocol.lines[-1] == wanted, b"done %d" % number))
    assert place.interfaces() == ["wifi0", "eth0", "wifi0", "eth0"]
    assert protocol.lost == []
    transport.abort()
    await until(lambda: protocol.lost == [None])


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_1000_streams_through_one_switch(lab: Lab, place: Place) -> None:
    await place.listen()
    _, writer = await place.connect()
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.1)
    before = len(os.listdir("/proc/self/fd"))
    clients = [Client() for _ in range(1000)]
    for client in clients:
        client.reader, client.writer = await place.connect(on_reconnect=client.on_reconnect)
    assert place.factory.statistics().tracked == 1000
    lab.down("wifi0")
    await until(lambda: all(client.reconnected == 1 for client in clients))
    for client in clients:
        client.writer.write(b"login\n")
        async with asyncio.timeout(20):
            assert (await client.reader.readuntil()).startswith(b"welcome")
    assert place.interfaces()[-1000:] == ["eth0"] * 1000
    for client in clients:
        client.writer.close()
        await client.writer.wait_closed()
    await place.commands.close()  # it has not received the FINs sent while wifi0 was down
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
