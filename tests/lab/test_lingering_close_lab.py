"""How IPv6 connections are closed: whichever side closes first, no packet leaves by the tunnel."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
import trio
import uvloop

import bindsock
import bindsock.anyio
import bindsock.blocking
from bindsock.dial import lingering_close
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.netmon.runtime import runtime_of
from bindsock.testing.lab import Lab, VpnMode
from bindsock.testing.lab._tap import parse
from tests.tls import tls_client_context, tls_server_context
from tests.waiting import until

pytestmark = pytest.mark.lab

PORT = 7100
STATES = {"01": "ESTABLISHED", "08": "CLOSE_WAIT", "09": "LAST_ACK"}
TIME_WAIT = "06"
FIN_DELAY = 0.05
FIN, PSH = 0x01, 0x08
AF_PACKET, ETHERNET_ALL, SOL_PACKET, PACKET_VNET_HDR, SO_BINDTODEVICE = 17, 0x0003, 263, 15, 25
HEADERS = 10 + 14
"""The size of ``struct virtio_net_hdr`` (``linux/virtio_net.h``: it marks packets without a checksum) and of Ethernet's
header."""
KEEPING: tuple[VpnMode, ...] = ("metric", "halves", "policy")


@contextlib.asynccontextmanager
async def slow_to_end(
    lab: Lab,
    delay: float = FIN_DELAY,
    protocol: int = 0,
    tls: ssl.SSLContext | None = None,
    may_end: asyncio.Event | None = None,
) -> AsyncIterator[None]:
    """A server in the laboratory that closes a connection some time after the client.

    :param may_end: it closes no connection before this is set
    """
    with lab.inside("server"):
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", PORT))
        listener.listen(1024)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if tls is not None:
                writer.write(await reader.read(5))
            await reader.read()
            await asyncio.sleep(delay)
            if may_end is not None:
                await may_end.wait()
        writer.close()

    # Plain asyncio on every loop: an accepted socket does not concern bindsock.
    server = await asyncio.start_server(serve, sock=listener, ssl=tls)
    try:
        yield
    finally:
        server.close()


def listen(lab: Lab) -> socket.socket:
    """A listening socket in the laboratory's server."""
    with lab.inside("server"):
        return socket.create_server(("::", PORT), family=socket.AF_INET6)


def states(lab: Lab) -> Counter[str]:
    """The states of the server's sockets, without the listening one."""
    with lab.inside("server"), open("/proc/thread-self/net/tcp6", encoding="ascii") as table:
        lines = [line.split() for line in table][1:]
    return Counter(STATES.get(f[3], f[3]) for f in lines if int(f[1].rpartition(":")[2], 16) == PORT and f[3] != "0A")


async def until_all_have_ended(lab: Lab) -> None:
    """Fail if the FIN of a connection is still unacknowledged after a while, although it was repeated."""
    await until(lambda: not states(lab), seconds=20)


async def by_writer(lab: Lab) -> None:
    _, writer = await bindsock.open_connection(lab.server.ipv6, PORT)
    writer.write(b"the last words")
    writer.close()
    await writer.wait_closed()


async def by_transport(lab: Lab) -> None:
    transport, _ = await bindsock.create_connection(asyncio.Protocol, lab.server.ipv6, PORT)
    transport.close()


async def by_abort(lab: Lab) -> None:
    transport, _ = await bindsock.create_connection(asyncio.Protocol, lab.server.ipv6, PORT)
    transport.abort()


async def after_an_end(lab: Lab) -> None:
    _, writer = await bindsock.open_connection(lab.server.ipv6, PORT)
    writer.write_eof()
    writer.close()


async def by_socket(lab: Lab) -> None:
    sock = await bindsock.connect(lab.server.ipv6, PORT)
    sock.close()


async def by_file(lab: Lab) -> None:
    sock = await bindsock.connect(lab.server.ipv6, PORT)
    file = sock.makefile("rb")
    sock.close()
    file.close()


async def replaced(lab: Lab) -> None:
    async def on_reconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None: ...

    _, writer = await bindsock.open_connection(lab.server.ipv6, PORT, on_reconnect=on_reconnect)
    writer.close()


WAYS = [by_writer, by_transport, by_abort, after_an_end, by_socket, by_file, replaced]


@pytest.mark.parametrize("mode", KEEPING)
@pytest.mark.parametrize("close", WAYS)
async def test_no_packet_of_a_closed_connection_enters_the_tunnel(
    lab: Lab, mode: VpnMode, close: Callable[[Lab], Awaitable[None]]
) -> None:
    lab.vpn_up(mode)
    async with slow_to_end(lab):
        with lab.tap(interface="tun0", port=PORT) as tap:
            await asyncio.gather(*(close(lab) for _ in range(5)))
            await until_all_have_ended(lab)
            assert tap.packets == []


async def multipath_by_writer(lab: Lab) -> None:
    _, writer = await bindsock.open_connection(lab.server.ipv6, PORT, multipath=True)
    assert bindsock.multipath_of(writer)
    writer.write(b"the last words")
    writer.close()
    await writer.wait_closed()


async def multipath_by_socket(lab: Lab) -> None:
    sock = await bindsock.connect(lab.server.ipv6, PORT, multipath=True)
    sock.close()


async def multipath_after_the_peer(lab: Lab) -> None:
    reader, writer = await bindsock.open_connection(lab.server.ipv6, PORT, multipath=True)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


@pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP")
@pytest.mark.parametrize("delay", [0.0, FIN_DELAY])
@pytest.mark.parametrize("close", [multipath_by_writer, multipath_by_socket, multipath_after_the_peer])
async def test_no_packet_of_a_closed_multipath_connection_enters_the_tunnel(
    lab: Lab, close: Callable[[Lab], Awaitable[None]], delay: float
) -> None:
    """Its subflows end after its stream."""
    lab.vpn_up("metric")
    async with slow_to_end(lab, delay, mptcp.IPPROTO_MPTCP):
        with lab.tap(interface="tun0", port=PORT) as tap:
            await asyncio.gather(*(close(lab) for _ in range(5)))
            await until_all_have_ended(lab)
            waiting = runtime_of(asyncio.get_running_loop()).shared(lingering_close.LingeringSockets)
            await until(lambda: not len(waiting), seconds=20)
            assert tap.packets == []


async def on_a_loop_that_binds(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    """A socket of a library, which passes it to a transport."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6)
    sock.setblocking(False)
    await loop.sock_connect(sock, (lab.server.ipv6, PORT))
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
    transport.close()
    _, writer = await asyncio.open_connection(lab.server.ipv6, PORT)
    writer.close()


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_on_an_event_loop_that_binds_the_librarys_own_sockets_are_ended_in_order(
    lab: Lab, base: type[asyncio.AbstractEventLoop]
) -> None:
    lab.vpn_up("metric")

    async def main() -> None:
        async with slow_to_end(lab):
            with lab.tap(interface="tun0", port=PORT) as tap:
                await on_a_loop_that_binds(lab, base)
                await until_all_have_ended(lab)
                assert tap.packets == []

    with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
        runner.run(main())


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_a_library_that_closes_its_own_socket_ends_it_in_order(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    """Without a transport and without a socket of bindsock's, only the kernel can end it."""
    lab.vpn_up("metric")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with slow_to_end(lab):
            with lab.tap(interface="tun0", port=PORT) as tap:
                for end in (socket.socket.close, lambda sock: os.close(sock.detach())):
                    sock = socket.socket(socket.AF_INET6)
                    sock.setblocking(False)
                    await loop.sock_connect(sock, (lab.server.ipv6, PORT))
                    end(sock)
                await until_all_have_ended(lab)
                assert tap.packets == []

    with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
        runner.run(main())


async def test_a_connection_of_a_process_that_is_killed_ends_in_order(lab: Lab) -> None:
    lab.vpn_up("metric")
    program = f"""
import asyncio, bindsock, os, signal
async def main():
    await bindsock.open_connection({lab.server.ipv6!r}, {PORT})
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    async with slow_to_end(lab):
        with lab.tap(interface="tun0", port=PORT) as tap:
            killed = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
            assert await killed.wait() == -signal.SIGKILL
            await until_all_have_ended(lab)
            assert tap.packets == []


def exchange_by_blocking_tls(lab: Lab, *, notify: bool) -> None:
    context = tls_client_context()
    sock = context.wrap_socket(bindsock.blocking.create_connection((lab.server.ipv6, PORT)), server_hostname="localhost")
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    if notify:
        sock.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            sock.unwrap()
    sock.close()


@pytest.mark.parametrize("notify", [False, True])
async def test_blocking_tls_that_the_server_answers_with_close_notify_ends_in_order(lab: Lab, notify: bool) -> None:
    """The ``ssl`` module has the descriptor, and data arrives after the program has closed it."""
    lab.vpn_up("metric")
    async with slow_to_end(lab, tls=tls_server_context()):
        with lab.tap(interface="tun0", port=PORT) as tap:
            for _ in range(5):
                await asyncio.to_thread(exchange_by_blocking_tls, lab, notify=notify)
            await until(lambda: set(states(lab)) <= {TIME_WAIT}, seconds=20)
            assert tap.packets == []


def serve_without_close_notify(listener: socket.socket, context: ssl.SSLContext, number: int) -> None:
    for _ in range(number):
        with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.sendall(sock.recv(5))
            assert sock.recv(1) == b""
            time.sleep(FIN_DELAY)


async def test_blocking_tls_that_the_server_only_closes_ends_in_order(lab: Lab) -> None:
    lab.vpn_up("metric")
    listener = listen(lab)
    with listener, lab.tap(interface="tun0", port=PORT) as tap:
        serving = asyncio.create_task(asyncio.to_thread(serve_without_close_notify, listener, tls_server_context(), 5))
        for _ in range(5):
            await asyncio.to_thread(exchange_by_blocking_tls, lab, notify=False)
        await serving
        await until_all_have_ended(lab)
        assert tap.packets == []


def by_blocking_socket(lab: Lab) -> None:
    with bindsock.blocking.create_connection((lab.server.ipv6, PORT)) as sock:
        sock.sendall(b"the last words")


def closing_thread() -> threading.Thread | None:
    return next((thread for thread in threading.enumerate() if thread.name == "bindsock lingering close"), None)


@pytest.mark.usefixtures("descriptors")
async def test_blocking_connections_are_closed_without_another_call(lab: Lab) -> None:
    lab.vpn_up("metric")
    may_end = asyncio.Event()
    async with slow_to_end(lab, may_end=may_end):
        with lab.tap(interface="tun0", port=PORT) as tap:
            for _ in range(5):
                await asyncio.to_thread(by_blocking_socket, lab)
            assert closing_thread() is not None
            may_end.set()
            await until(lambda: closing_thread() is None, seconds=20)
            assert set(states(lab)) <= {TIME_WAIT}
            assert tap.packets == []


async def test_a_peer_that_does_not_end_a_blocking_connection_is_reset_after_a_while(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering_close, "DEADLINE", 0.1)
    with listen(lab) as listener:
        await asyncio.to_thread(by_blocking_socket, lab)
        with listener.accept()[0] as peer:
            await until_all_have_ended(lab)
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
    await until(lambda: closing_thread() is None, seconds=20)


async def test_neither_an_exit_nor_a_forked_process_waits_for_the_peers_of_blocking_connections(lab: Lab) -> None:
    program = f"""
import bindsock.blocking, os, threading
def sockets():
    links = [f"/dev/fd/{{name}}" for name in os.listdir("/dev/fd")]
    return [link for link in links if os.path.islink(link) and os.readlink(link).startswith("socket:")]
def close_one():
    bindsock.blocking.create_connection(({lab.server.ipv6!r}, {PORT})).close()
close_one()
close_one()
assert len(sockets()) == 2
if os.fork() == 0:
    assert not sockets()
    close_one()
    assert len(sockets()) == 1 and threading.active_count() == 2
else:
    assert os.wait()[1] == 0
    assert len(sockets()) == 2
"""
    with listen(lab):
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]  # 3.12 warns of a fork beside a thread
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, "")


async def by_anyio_stream(lab: Lab) -> None:
    async with await bindsock.anyio.connect_tcp(lab.server.ipv6, PORT) as stream:
        await stream.send(b"the last words")


async def by_forceful_end(lab: Lab) -> None:
    await anyio.aclose_forcefully(await bindsock.anyio.connect_tcp(lab.server.ipv6, PORT))


async def by_trio_stream(lab: Lab) -> None:
    bindsock.anyio.install_trio_socket_factory()
    await (await trio.open_tcp_stream(lab.server.ipv6, PORT)).aclose()


@pytest.mark.parametrize("close", [by_anyio_stream, by_forceful_end, by_trio_stream])
def test_on_trio_no_packet_of_a_closed_connection_enters_the_tunnel(lab: Lab, close: Callable[[Lab], Awaitable[None]]) -> None:
    lab.vpn_up("metric")

    async def main() -> None:
        with lab.inside("server"):
            listener = socket.create_server(("::", PORT), family=socket.AF_INET6)
            listener.setblocking(False)

        async def serve(stream: trio.SocketStream) -> None:
            while await stream.receive_some():
                pass
            await trio.sleep(FIN_DELAY)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            with lab.tap(interface="tun0", port=PORT) as tap:
                await close(lab)
                with trio.fail_after(20):
                    while states(lab):
                        await trio.sleep(0.02)
                assert tap.packets == []
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_end_of_the_loop_waits_a_moment_for_the_peer(lab: Lab) -> None:
    """The program ends right after it has closed its connection."""
    lab.vpn_up("metric")
    listener = listen(lab)

    def serve() -> bytes:
        peer, _ = listener.accept()
        with peer:
            received = b"".join(iter(functools.partial(peer.recv, 4096), b""))
            time.sleep(FIN_DELAY)
        return received

    with listener, concurrent.futures.ThreadPoolExecutor() as threads, lab.tap(interface="tun0", port=PORT) as tap:
        received = threads.submit(serve)
        asyncio.run(by_writer(lab))
        assert received.result(20) == b"the last words"
        deadline = time.monotonic() + 20
        while states(lab) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not states(lab)
        assert tap.packets == []


async def test_a_thousand_connections_leave_nothing_behind(lab: Lab) -> None:
    lab.vpn_up("metric")
    async with slow_to_end(lab):
        with lab.tap(interface="tun0", port=PORT) as tap:
            for _ in range(20):
                await asyncio.gather(*(by_writer(lab) for _ in range(50)))
            await until_all_have_ended(lab)
            assert tap.packets == []


async def test_a_peer_that_goes_on_sending_is_reset(lab: Lab) -> None:
    lab.vpn_up("metric")
    listener = listen(lab)
    failed: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        try:
            for _ in range(1000):
                writer.write(bytes(1 << 16))
                await writer.drain()
        except OSError as error:
            failed.set_result(error)
        writer.close()

    async with await asyncio.start_server(serve, sock=listener), asyncio.timeout(20):
        await by_writer(lab)
        assert isinstance(await failed, ConnectionError)


async def test_a_peer_that_does_not_end_is_reset_after_a_while(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering_close, "DEADLINE", 0.1)
    lab.vpn_up("metric")
    listener = listen(lab)
    with listener, lab.tap(interface="tun0", port=PORT) as tap:
        await by_writer(lab)
        with listener.accept()[0] as peer:
            # The peer keeps its end open: only a reset takes its socket out of the kernel's table.
            await until_all_have_ended(lab)
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        assert tap.packets == []


async def test_what_was_not_read_is_answered_by_a_reset_as_ever(lab: Lab) -> None:
    lab.vpn_up("metric")
    listener = listen(lab)
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"unread")
        try:
            await reader.read()
        except OSError as error:
            ended.set_result(error)
        writer.close()

    async with await asyncio.start_server(serve, sock=listener), asyncio.timeout(20):
        sock = await bindsock.connect(lab.server.ipv6, PORT)
        await asyncio.get_running_loop().run_in_executor(None, select.select, [sock], [], [], 20)
        sock.close()
        assert isinstance(await ended, ConnectionResetError)


def segment_on(wire: socket.socket, flag: int) -> tuple[bytes, str]:
    """The next segment of the server with this flag, and the device that sent it."""
    while True:
        frame, (device, *_) = wire.recvfrom(1 << 16)
        packet = parse(frame[HEADERS:], 0.0, device, True)
        if packet is not None and packet.protocol == "tcp" and packet.source_port == PORT and packet.flags & flag:
            return frame, device


@pytest.mark.parametrize("flag", [FIN, PSH], ids=["end", "data"])
async def test_the_kernel_answers_what_is_repeated_after_the_end_by_the_routes_while_the_socket_is_open(
    lab: Lab, flag: int
) -> None:
    """No program can avoid this, even without bindsock: TIME_WAIT replaces the socket as soon as it has acknowledged the FIN."""
    lab.vpn_up("metric")
    with lab.inside("server"):
        listener = socket.create_server(("::", PORT), family=socket.AF_INET6)
        wire = socket.socket(AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERNET_ALL))
    with listener, wire, socket.socket(socket.AF_INET6) as sock, lab.tap(port=PORT) as tap:
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.settimeout(20)
        sock.settimeout(20)
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"wifi0")
        sock.connect((lab.server.ipv6, PORT))
        with listener.accept()[0] as peer:
            peer.sendall(b"data")
            assert sock.recv(4) == b"data"
            sock.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
        assert sock.recv(1) == b""
        frame, device = segment_on(wire, flag)
        wire.sendto(frame, (device, 0))
        async with asyncio.timeout(20):
            while not (by_tunnel := [packet for packet in tap.packets if packet.interface == "tun0"]):
                await asyncio.sleep(0.02)
        by_uplink = [packet for packet in tap.packets if packet.interface == "wifi0"]
        assert [packet.acknowledgement for packet in by_tunnel] == [by_uplink[-1].acknowledgement]


async def test_no_more_than_a_stated_number_wait_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering_close, "MAX_SOCKETS", 3)
    lab.vpn_up("metric")
    may_end = asyncio.Event()
    async with slow_to_end(lab, may_end=may_end):
        for _ in range(8):
            await by_socket(lab)
        assert len(runtime_of(asyncio.get_running_loop()).shared(lingering_close.LingeringSockets)) == 3
        may_end.set()
        await until_all_have_ended(lab)


@pytest.mark.usefixtures("descriptors")
async def test_no_descriptor_is_left(lab: Lab) -> None:
    async with slow_to_end(lab, 0.0):
        await by_writer(lab)
        await by_socket(lab)
        await until_all_have_ended(lab)
