"""What the event loop does not bind, and its start and end: on a scripted network, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

import bindsock
from bindsock import kernel as kernels
from bindsock.default import running_factory
from bindsock.eventloop import BoundLoop, EventLoop, loop_factory
from bindsock.factory import connector_of
from bindsock.testing import SimulatedKernel, interface, network

from .conftest import running

T = TypeVar("T")
WIFI = interface("2: en0 wifi 192.0.2.5/24")
LOOPBACK = interface("1: lo0 wifi 127.0.0.1/8")


@pytest.fixture
def kernel() -> SimulatedKernel:
    return SimulatedKernel(network(LOOPBACK, WIFI, "default via 192.0.2.1 dev en0"))


@pytest.fixture
def run(base: type[asyncio.AbstractEventLoop], kernel: SimulatedKernel) -> Any:
    def run(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=loop_factory(base, kernel=kernel)) as runner:
            return runner.run(main)

    return run


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.write(await reader.readline())
        await writer.drain()
    writer.close()


async def exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"ping\n")
    assert await reader.readline() == b"ping\n"
    writer.close()
    await writer.wait_closed()


def test_loopback_and_unix_sockets_are_left_alone(run: Any, kernel: SimulatedKernel, tmp_path: Path) -> None:
    async def main() -> None:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await exchanged(*await asyncio.open_connection("127.0.0.1", port))
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            await exchanged(*await asyncio.open_connection(sock=sock))
        async with await asyncio.start_unix_server(echo, tmp_path / "socket"):
            await exchanged(*await asyncio.open_unix_connection(tmp_path / "socket"))
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, str(tmp_path / "socket"))
            await exchanged(*await asyncio.open_unix_connection(sock=sock))
        assert running().transport_factory.statistics().tracked == 0

    run(main())
    assert kernel.binds == []


def test_datagram_servers_and_what_talks_to_this_host_are_left_alone(run: Any, kernel: SimulatedKernel) -> None:
    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    class Client(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.received.set_result(data)

    def low_port() -> socket.socket:
        for port in range(20000, 30000):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.bind(("", port))
            except OSError:
                sock.close()
                continue
            return sock
        raise AssertionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with low_port() as held:  # until the server has the port, nobody else may take it
            port = held.getsockname()[1]
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            by_address, _ = await loop.create_datagram_endpoint(Server, local_addr=("0.0.0.0", port), reuse_port=True)
        by_socket, _ = await loop.create_datagram_endpoint(Server, sock=low_port())
        for server in (by_address, by_socket):
            assert not isinstance(server, bindsock.DatagramTransport)
            target = ("127.0.0.1", server.get_extra_info("sockname")[1])
            transport, client = await loop.create_datagram_endpoint(Client, remote_addr=target)
            transport.sendto(b"ping")
            assert await client.received == b"ping"
            transport.close()
            server.close()

    run(main())
    assert kernel.binds == []


def test_a_socket_that_somebody_bound_is_left_alone(run: Any, kernel: SimulatedKernel) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            for option in ("address", "interface"):
                sock = socket.socket()
                sock.setblocking(False)
                if option == "address":
                    sock.bind(("127.0.0.1", 0))
                else:
                    kernel.bind(sock, WIFI)
                    kernel.binds.clear()
                await loop.sock_connect(sock, address)
                await exchanged(*await asyncio.open_connection(sock=sock))

    run(main())
    assert kernel.binds == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_cannot_be_bound_is_closed_and_never_sends(
    run: Any, kernel: SimulatedKernel, kind: socket.SocketKind
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for error in (bindsock.NoEffectiveInterface, bindsock.BindFailed):
            sock = socket.socket(socket.AF_INET, kind)
            sock.setblocking(False)
            with pytest.raises(error):
                await loop.sock_connect(sock, ("192.0.2.77", 9))
            assert sock.fileno() == -1
            kernel.change(network(LOOPBACK, WIFI, "default via 192.0.2.1 dev en0"))
            kernel.refuse = {"en0"}

    kernel.change(network(LOOPBACK))
    run(main())


def test_the_module_level_functions_use_the_loops_own_factory(run: Any) -> None:
    async def main() -> None:
        assert running_factory() is running().transport_factory

    run(main())


def test_preferences_and_the_rest_are_the_factorys(base: type[asyncio.AbstractEventLoop], kernel: SimulatedKernel) -> None:
    preferences = bindsock.Preferences(exclude=["docker*"])
    loop = loop_factory(base, preferences, interface="en0", kernel=kernel, better_path="keep", resolver="interface")()
    factory = loop.transport_factory
    assert (factory.preferences, factory.interface, factory.kernel) == (preferences, "en0", kernel)
    assert factory.better_path == "keep"
    assert connector_of(factory).has_own_resolver
    assert isinstance(loop, base)
    loop.close()


def test_the_plain_class_is_asyncios_loop() -> None:
    loop = EventLoop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    assert isinstance(loop, BoundLoop)
    loop.close()


def test_a_loop_that_is_closed_by_hand_leaves_nothing_open(
    base: type[asyncio.AbstractEventLoop], kernel: SimulatedKernel
) -> None:
    base().close()  # the first loop of a process opens descriptors that libuv keeps
    gc.collect()
    before = sorted(os.listdir("/dev/fd"))
    loop = loop_factory(base, kernel=kernel)()

    async def watch() -> bindsock.Changes:
        return bindsock.changes()

    changes = loop.run_until_complete(watch())
    assert kernel.open_sources == 1
    loop.close()
    assert kernel.open_sources == 0
    del changes
    assert sorted(os.listdir("/dev/fd")) == before


def test_on_an_unsupported_system_there_is_no_loop_and_nothing_open(
    base: type[asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    def current() -> kernels.Kernel:
        raise bindsock.UnsupportedSystem("not here")

    monkeypatch.setattr(kernels, "current", current)
    gc.collect()  # of other tests
    before = sorted(os.listdir("/dev/fd"))
    with pytest.raises(bindsock.UnsupportedSystem):
        loop_factory(base)()
    gc.collect()
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_resolver_that_asks_the_loop_is_answered_by_the_system(
    base: type[asyncio.AbstractEventLoop], kernel: SimulatedKernel
) -> None:
    asked = []

    async def resolver(host: str | None, port: int | str | None, **options: Any) -> Any:
        asked.append(host)
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", port, **options)

    async def main() -> None:
        infos = await asyncio.get_running_loop().getaddrinfo("example.com", 80, type=socket.SOCK_STREAM)
        assert [info[4] for info in infos] == [("127.0.0.1", 80)]

    with asyncio.Runner(loop_factory=loop_factory(base, kernel=kernel, resolver=resolver)) as runner:
        runner.run(main())
    assert asked == ["example.com"]
