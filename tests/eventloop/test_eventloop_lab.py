"""The event loop with a real VPN: each call that libraries use makes bound sockets, which follow the network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from typing import Any

import pytest

import bindsock
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import Servers

from .conftest import Run, running

pytestmark = pytest.mark.lab


@pytest.fixture(autouse=True)
def beneath_vpn(lab: Lab, request: pytest.FixtureRequest) -> None:
    if "servers" not in request.fixturenames:
        lab.vpn_up("metric")


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def source(reader: asyncio.StreamReader) -> str:
    """The source address in the server's greeting."""
    return (await reader.readline()).decode().split()[1]


def connected(lab: Lab) -> socket.socket:
    """A socket connected by other code, without bindsock. It bypasses the VPN, since it is bound to the uplink's address."""
    sock = socket.create_connection((lab.server.ipv4, lab.server.tcp_port))
    sock.setblocking(False)
    return sock


def test_a_connected_socket_that_comes_in_is_followed_once(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        lab.vpn_down()
        reader, writer = await asyncio.open_connection(sock=connected(lab))
        assert await source(reader) == lab.address("wifi0")
        assert running().transport_factory.statistics().tracked == 1
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged, match="wifi0 is down"):
            await reader.readline()
        assert running().transport_factory.statistics().ended == 1
        await closed(writer)

    run(main())


def test_a_socket_of_the_factorys_own_is_followed_once(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        sock = await bindsock.connect(lab.server.ipv4, lab.server.tcp_port)
        reader, writer = await asyncio.open_connection(sock=sock)
        assert await source(reader) == lab.address("wifi0")
        assert running().transport_factory.statistics().tracked == 1
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            await reader.readline()
        await closed(writer)

    run(main())


def test_a_connection_of_another_factory_stays_with_that(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        async with bindsock.TransportFactory(interface="eth0") as factory:
            by_factory = await factory.open_connection(lab.server.ipv4, lab.server.tcp_port)
            sock = await factory.connect(lab.server.ipv4, lab.server.tcp_port)
            by_socket = await asyncio.open_connection(sock=sock)
            for reader, _ in (by_factory, by_socket):
                assert await source(reader) == lab.address("eth0")
            assert running().transport_factory.statistics().tracked == 0
            assert factory.statistics().tracked == 2
            lab.down("wifi0")
            for reader, writer in (by_factory, by_socket):
                writer.write(b"still here\n")
                assert await reader.readline() == b"still here\n"
                await closed(writer)

    run(main())


def test_sock_connect_binds_and_follows(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (lab.server.ipv4, lab.server.tcp_port))
            assert (await loop.sock_recv(sock, 100)).split()[1].decode() == lab.address("wifi0")
            lab.down("wifi0")
            async with asyncio.timeout(20):
                with pytest.raises(OSError):  # noqa: PT011 - the system chooses the error
                    assert await loop.sock_recv(sock, 100) != b""

    run(main())


def test_a_transport_of_a_socket_that_sock_connect_followed_says_why_it_ended(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (lab.server.ipv4, lab.server.tcp_port))
        reader, writer = await asyncio.open_connection(sock=sock)
        await source(reader)
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            await reader.readline()
        await closed(writer)

    run(main())


def test_happy_eyeballs_options_are_understood_on_every_loop(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection(
            lab.server.ipv6, lab.server.tcp_port, happy_eyeballs_delay=0.25, interleave=1
        )
        assert await source(reader) == lab.address("wifi0", socket.AF_INET6)
        await closed(writer)

    run(main())


def test_start_tls_works_and_the_end_of_tls_is_told(lab: Lab, servers: Servers, run: Run[Any]) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection(servers.host, ports.START_TLS)
        writer.write(b"upgrade\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(servers.context, server_hostname=servers.host)
        assert (await reader.readline()).decode().strip() == lab.address("wifi0")
        await closed(writer)

        reader, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tls_port, ssl=lab.client_ssl_context())
        assert await source(reader) == lab.address("wifi0")
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            await reader.readline()
        await closed(writer)

    run(main())


def test_sendfile_works(lab: Lab, base: type[asyncio.AbstractEventLoop], run: Run[Any]) -> None:
    if base is not asyncio.SelectorEventLoop:
        pytest.skip("uvloop has no sendfile()")

    async def main() -> None:
        reader, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)
        await source(reader)
        with tempfile.TemporaryFile() as file:
            file.write(b"contents\n")
            file.seek(0)
            assert await asyncio.get_running_loop().sendfile(writer.transport, file) == 9
        assert await reader.readline() == b"contents\n"
        await closed(writer)

    run(main())


@pytest.mark.parametrize("how", ["writer", "loop"])
def test_start_tls_and_sendfile_on_a_connection_that_can_be_replaced(lab: Lab, servers: Servers, run: Run[Any], how: str) -> None:
    async def on_reconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        raise AssertionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await bindsock.open_connection(servers.host, ports.START_TLS, on_reconnect=on_reconnect)
        writer.write(b"upgrade\n")
        assert await reader.readline() == b"go ahead\n"
        if how == "writer":
            await writer.start_tls(servers.context, server_hostname=servers.host)
        else:
            transport = writer.transport
            same = await loop.start_tls(transport, transport.get_protocol(), servers.context, server_hostname=servers.host)
            assert same is transport
        assert (await reader.readline()).decode().strip() == lab.address("wifi0")
        await closed(writer)

        reader, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect)
        await source(reader)
        with tempfile.TemporaryFile() as file:
            file.write(b"some contents\n")
            file.flush()
            assert await loop.sendfile(writer.transport, file, 5) == 9
        assert await reader.readline() == b"contents\n"
        await closed(writer)

    run(main())


class Answers(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[str] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data.decode().split()[0])


@pytest.mark.parametrize("how", ["remote_addr", "local_addr", "sock", "connected sock"])
def test_datagram_endpoints_of_clients_move(lab: Lab, run: Run[Any], how: str) -> None:
    target = (lab.server.ipv4, lab.server.udp_port)

    def automatic(connect: bool) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 0))
        if connect:
            sock.connect(target)
        return sock

    async def main() -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"remote_addr": {"remote_addr": target}, "local_addr": {"local_addr": ("0.0.0.0", 0)}}.get(
            how, {}
        )
        if "sock" in how:
            options["sock"] = automatic(connect=how == "connected sock")
        transport, answers = await loop.create_datagram_endpoint(Answers, **options)
        to = None if "remote" in how or "connected" in how else target
        async with asyncio.timeout(20):
            transport.sendto(b"ping", to)
            assert await answers.received.get() == lab.address("wifi0")
            lab.down("wifi0")
            transport.sendto(b"ping", to)
            assert await answers.received.get() == lab.address("eth0")
        transport.close()

    run(main())


@pytest.mark.parametrize("connected", [True, False])
def test_datagram_sockets_without_a_transport_move(
    lab: Lab, base: type[asyncio.AbstractEventLoop], run: Run[Any], connected: bool
) -> None:
    if base is not asyncio.SelectorEventLoop and not connected:
        pytest.skip("uvloop has no sock_sendto()")
    target = (lab.server.ipv4, lab.server.udp_port)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)

            async def ask() -> str:
                if connected:
                    await loop.sock_sendall(sock, b"ping")
                else:
                    await loop.sock_sendto(sock, b"ping", target)
                return (await loop.sock_recv(sock, 100)).decode().split()[0]

            if connected:
                await loop.sock_connect(sock, target)
            else:
                # A datagram to this host does not decide the interface for others.
                await loop.sock_sendto(sock, b"to myself", ("127.0.0.1", 9))
            async with asyncio.timeout(20):
                assert await ask() == lab.address("wifi0")
                port = sock.getsockname()[1]
                lab.down("wifi0")
                while running().transport_factory.statistics().rebinds == 0:
                    await asyncio.sleep(0.001)
                assert await ask() == lab.address("eth0")
                assert sock.getsockname()[1] == port

    run(main())


def test_following_ends_with_the_socket(lab: Lab, run: Run[Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        await loop.sock_connect(sock, (lab.server.ipv4, lab.server.udp_port))
        assert running().transport_factory.statistics().tracked == 1
        sock.close()
        del sock
        assert running().transport_factory.statistics().tracked == 0

    run(main())
