"""A socket that is connected while its interface has no address for a moment does not keep the address of another one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import uvloop

import bindsock
from bindsock.anyio import install_trio_socket_factory
from bindsock.blocking import BlockingConnector
from bindsock.dial import binding
from bindsock.dial.binding import MakeshiftSource
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.factory import connector_of
from bindsock.kernel.linux import LinuxKernel
from bindsock.model.network import Interface
from bindsock.resolvers import c_ares, servers
from bindsock.testing.lab import Lab
from tests.lab.test_datagram_lab import Echoes, server
from tests.lab.test_factory_lab import closed, several
from tests.waiting import until

pytestmark = pytest.mark.lab

V4, V6 = socket.AF_INET, socket.AF_INET6
_plain_connect = socket.socket.connect


@pytest.fixture(params=[(V4, True), (V6, True), (V4, False)], ids=["IPv4", "IPv6", "IPv4, new VPN"])
def family(request: pytest.FixtureRequest, lab: Lab) -> socket.AddressFamily:
    """The address family. In IPv4, the system would take the address of the tunnel, which stands next to that of wifi0.

    A new VPN comes up when the address of eth0 is taken away, so that nobody has read the address of the tunnel before.
    """
    family, vpn = request.param
    if vpn:
        lab.vpn_up("halves")
    else:
        lab.default("eth0")
        lab.remove_addresses("wifi0")
        lab.down("wifi0")
    return socket.AddressFamily(family)


@contextlib.contextmanager
def away(lab: Lab, family: socket.AddressFamily) -> Iterator[None]:
    """Take the address of eth0 away for the block."""
    if "tun0" not in dict(socket.if_nameindex()).values():
        lab.vpn_up("halves")
    if family == V4:
        lab.remove_addresses("eth0")
        try:
            yield
        finally:
            lab.add_addresses("eth0")
        return
    address = f"{lab.address('eth0', V6)}/64"
    lab.ip("-6", "addr", "del", address, "dev", "eth0")
    try:
        yield
    finally:
        lab.ip("-6", "addr", "add", address, "dev", "eth0", "nodad")


@pytest.fixture
def late(lab: Lab, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Takes the address of eth0 away while the next socket connects to the server. Returns how often it did."""
    lab.default("eth0")
    moments = 0

    def connect(sock: socket.socket, address: Any) -> None:
        nonlocal moments
        if moments or address[0] != lab.server.address(family):
            _plain_connect(sock, address)
            return
        moments += 1
        with away(lab, family):
            _plain_connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return lambda: moments


def on_eth0(lab: Lab, sock: Any) -> bool:
    own: str = sock.getsockname()[0]
    return own == lab.address("eth0", sock.family)


def of_kind(lab: Lab, kind: socket.SocketKind, family: socket.AddressFamily) -> tuple[str, int]:
    return tcp(lab, family) if kind == socket.SOCK_STREAM else server(lab, family)


def tcp(lab: Lab, family: socket.AddressFamily) -> tuple[str, int]:
    return lab.server.address(family), lab.server.tcp_port


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_of_a_blocking_connection(lab: Lab, family: socket.AddressFamily, late: Callable[[], int], timeout: float | None) -> None:
    with BlockingConnector().create_connection(tcp(lab, family), timeout) as sock:
        assert on_eth0(lab, sock)
        assert sock.gettimeout() == timeout
        assert sock.recv(100)
    assert late() == 1


def test_of_a_socket_that_connects_in_the_background(lab: Lab, family: socket.AddressFamily, late: Callable[[], int]) -> None:
    with socket.socket(family) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            BlockingConnector().connect(sock, tcp(lab, family), lambda sock, address: sock.connect(address))
        sock.settimeout(20)
        assert sock.recv(100)
        assert on_eth0(lab, sock)
    assert late() == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_of_a_librarys_socket_on_a_loop_that_binds(
    lab: Lab,
    family: socket.AddressFamily,
    late: Callable[[], int],
    kind: socket.SocketKind,
    base: type[asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(family, kind) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, of_kind(lab, kind, family))
            await loop.sock_sendall(sock, b"ping\n")
            async with asyncio.timeout(20):
                assert await loop.sock_recv(sock, 100)
            assert on_eth0(lab, sock)

    with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
        runner.run(main())
    assert late() == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_of_a_socket_that_a_library_connects_itself(
    lab: Lab, family: socket.AddressFamily, late: Callable[[], int], kind: socket.SocketKind
) -> None:
    loop, peer = asyncio.get_running_loop(), of_kind(lab, kind, family)
    with bindsock.socket_factory((family, kind, 0, "", peer)) as sock:
        await loop.sock_connect(sock, peer)
        await loop.sock_sendall(sock, b"ping\n")
        async with asyncio.timeout(20):
            assert await loop.sock_recv(sock, 100)
        assert on_eth0(lab, sock)
    assert late() == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_of_a_socket_on_trio(lab: Lab, family: socket.AddressFamily, late: Callable[[], int], kind: socket.SocketKind) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        with trio.fail_after(20), trio.socket.socket(family, kind) as sock:
            await sock.connect(of_kind(lab, kind, family))
            await sock.send(b"ping\n")
            assert await sock.recv(100)
            assert on_eth0(lab, sock)

    trio.run(main)
    assert late() == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_of_a_question_to_a_name_server(
    lab: Lab, family: socket.AddressFamily, late: Callable[[], int], kind: socket.SocketKind
) -> None:
    async with bindsock.TransportFactory() as factory:
        address, port = of_kind(lab, kind, family)
        with await servers._connected(connector_of(factory).watcher, ip_address(address), port, kind) as sock:
            assert on_eth0(lab, sock)
    assert late() == 1


async def test_of_the_questions_of_c_ares(lab: Lab, family: socket.AddressFamily, late: Callable[[], int]) -> None:
    async with bindsock.TransportFactory() as factory:
        found = c_ares.bindings(factory, [lab.server.address(family)])
    assert found == {lab.server.address(family): c_ares.Binding("eth0", lab.address("eth0", family))}
    assert late() == 1


async def test_of_an_endpoint(lab: Lab, family: socket.AddressFamily, late: Callable[[], int]) -> None:
    transport, echoes = await bindsock.create_datagram_endpoint(Echoes, remote_addr=server(lab, family))
    assert (await echoes.source(lab))[0] == "eth0"
    assert on_eth0(lab, transport.get_extra_info("socket"))
    transport.abort()
    assert late() == 1


@pytest.mark.parametrize("taken_over", [False, True])
async def test_of_a_connected_datagram_socket_that_the_program_hands_over(
    lab: Lab, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    lab.default("eth0")
    rebind = LinuxKernel.rebind

    def late_rebind(kernel: LinuxKernel, sock: socket.socket, interface: Interface, **options: Any) -> None:
        monkeypatch.undo()
        with away(lab, family):
            rebind(kernel, sock, interface, **options)

    monkeypatch.setattr(LinuxKernel, "rebind", late_rebind)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(server(lab, family))
        if taken_over:
            transport, echoes = await bindsock.create_datagram_endpoint(Echoes, sock=sock)
            assert (await echoes.source(lab))[0] == "eth0"
            transport.abort()
        else:
            bindsock.track(sock)
            await until(lambda: on_eth0(lab, sock), seconds=20)
            assert bindsock.interface_of(sock) == "eth0"


async def test_of_one_address_of_a_host_whose_other_one_refuses(
    lab: Lab, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.default("eth0")
    connect_ex = FollowedSocket.connect_ex

    def late_connect_ex(sock: FollowedSocket, address: Any) -> int:
        if address[0] != lab.server.address(family):
            return connect_ex(sock, address)
        monkeypatch.undo()
        with away(lab, family):
            return connect_ex(sock, address)

    monkeypatch.setattr(FollowedSocket, "connect_ex", late_connect_ex)
    host = several(lab.server.address(family), lab.gateway("eth0"))
    async with bindsock.TransportFactory(resolver=host) as factory, asyncio.timeout(20):
        _, writer = await factory.open_connection("host", lab.server.tcp_port)
        assert on_eth0(lab, writer.get_extra_info("socket"))
        await closed(writer)
        assert factory.statistics().redialled == 1


@pytest.mark.parametrize("refuses", [True, False])
def test_a_blocking_connect_fails_like_the_systems_own(lab: Lab, family: socket.AddressFamily, refuses: bool) -> None:
    """bindsock waits itself, after it has checked the address."""
    if refuses:
        peer, timeout = (lab.server.address(family), 9), 20.0
    else:
        peer, timeout = tcp(lab, family), 0.1
        for uplink in ("wifi0", "eth0"):
            lab.blackhole(uplink, True)

    def attempt() -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        with socket.socket(family) as sock:
            sock.settimeout(timeout)
            with pytest.raises(OSError, match=r"refused|timed out") as failed:
                sock.connect(peer)
            found.append((failed.type, failed.value.errno, str(failed.value), sock.gettimeout()))
        with socket.socket(family) as sock:
            sock.settimeout(timeout)
            found.append((sock.connect_ex(peer), sock.gettimeout()))
        return found

    plain = attempt()
    with bindsock.install():
        assert attempt() == plain


def test_a_blocking_connect_says_so_when_it_succeeds(lab: Lab, family: socket.AddressFamily, late: Callable[[], int]) -> None:
    with bindsock.install(), socket.socket(family) as sock:
        sock.settimeout(20)
        assert sock.connect_ex(tcp(lab, family)) == 0
        assert sock.recv(100)
        assert on_eth0(lab, sock)


def test_if_the_address_stays_away_the_connect_fails(
    lab: Lab, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.default("eth0")
    with contextlib.ExitStack() as stack:

        def connect(sock: socket.socket, address: Any) -> None:
            stack.enter_context(away(lab, family))
            _plain_connect(sock, address)

        with socket.socket(family) as sock:
            with pytest.raises(MakeshiftSource, match="is bound to eth0") as failed:
                BlockingConnector().connect(sock, tcp(lab, family), connect)
            assert sock.fileno() == -1
        assert (failed.value.interface, failed.value.errno) == ("eth0", errno.EADDRNOTAVAIL)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets a connect be complete when ``connect()`` is called again, which then fails as on macOS. Returns how often it did."""
    failed = 0

    def connect(sock: socket.socket, address: Any) -> None:
        nonlocal failed
        try:
            _plain_connect(sock, address)
        except BlockingIOError:
            select.select([], [sock], [], 20)
            raise
        failed += 1
        raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(binding, "is_connected", lambda sock: False)
    return lambda: failed


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_a_connect_that_is_complete_before_the_loop_goes_on_with_it_has_succeeded(
    lab: Lab, family: socket.AddressFamily, complete: Callable[[], int], base: type[asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(family) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, tcp(lab, family))
            async with asyncio.timeout(20):
                assert await loop.sock_recv(sock, 100)

    with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
        runner.run(main())
    assert complete() == 1


def test_a_connect_that_is_complete_before_trio_goes_on_with_it_has_succeeded(
    lab: Lab, family: socket.AddressFamily, complete: Callable[[], int]
) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        with trio.fail_after(20), trio.socket.socket(family) as sock:
            await sock.connect(tcp(lab, family))
            assert await sock.recv(100)

    trio.run(main)
    assert complete() == 1


async def test_a_connection_by_an_interface_whose_only_address_is_deprecated_has_this_address(lab: Lab) -> None:
    address = lab.address("eth0", V6)
    lab.ip("-6", "addr", "change", f"{address}/64", "dev", "eth0", "preferred_lft", "0", "valid_lft", "forever")
    async with bindsock.TransportFactory(interface="eth0") as factory, asyncio.timeout(20):
        reader, writer = await factory.open_connection(*tcp(lab, V6))
        assert (await reader.readline()).decode().split()[1] == address
        await closed(writer)
        transport, echoes = await factory.create_datagram_endpoint(Echoes, remote_addr=server(lab, V6))
        assert (await echoes.source(lab))[0] == "eth0"
        transport.abort()


async def test_a_connection_by_a_route_that_names_the_address_of_another_interface_has_that_address(lab: Lab) -> None:
    lab.default("eth0")
    wanted, gateway = lab.address("wifi0"), lab.gateway("eth0")
    lab.ip("route", "add", f"{lab.server.ipv4}/32", "via", gateway, "dev", "eth0", "src", wanted)
    async with bindsock.TransportFactory() as factory:
        transport, _ = await factory.create_datagram_endpoint(Echoes, remote_addr=server(lab, V4))
        assert transport.get_extra_info("sockname")[0] == wanted
        transport.abort()
        with pytest.raises(TimeoutError):  # the answer arrives by wifi0, to which the socket is not bound
            async with asyncio.timeout(0.5):
                await factory.open_connection(*tcp(lab, V4))
        assert (factory.statistics().redialled, factory.statistics().rebinds_failed) == (0, 0)
