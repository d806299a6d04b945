"""anyio's TCP functions with the VPN up, on every backend."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream

import bindsock
import bindsock.anyio
from bindsock.anyio import BindsockAttribute, ReconnectingStream, TCPConnectable, connect_tcp
from bindsock.dial.resolving import AddrInfo, numeric
from bindsock.netmon.loop import Timer
from bindsock.netmon.runtime import Runtime
from bindsock.testing.lab import Lab
from tests.anyio.conftest import opens_no_more_descriptors
from tests.integrations.tunnel import nothing_through_the_tunnel

from .conftest import Run

pytestmark = pytest.mark.lab

PATIENCE = 1000.0


async def line(stream: ByteStream) -> bytes:
    """Read exactly one line."""
    received = b""
    while not received.endswith(b"\n"):
        received += await stream.receive(1)
    return received


async def source(stream: ByteStream) -> str:
    return (await line(stream)).decode().split()[1]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_connections_leave_beneath_the_vpn(lab: Lab, run: Run, family: socket.AddressFamily) -> None:
    async def main() -> None:
        async with await connect_tcp(lab.server.address(family), lab.server.tcp_port) as stream:
            assert await source(stream) == lab.address("wifi0", family)
            assert stream.extra(BindsockAttribute.interface) == "wifi0"
            assert stream.extra(SocketAttribute.remote_port) == lab.server.tcp_port
            assert stream.extra(SocketAttribute.raw_socket).getsockname()[0] == lab.address("wifi0", family)
            await stream.send(b"ping\n")
            assert await line(stream) == b"ping\n"

    lab.vpn_up("metric")
    with nothing_through_the_tunnel(lab):
        run(main)


def test_tls_is_anyios_own(lab: Lab, run: Run) -> None:
    context = lab.client_ssl_context()

    async def main() -> None:
        stream = await connect_tcp(
            lab.server.ipv4,
            lab.server.tls_port,
            ssl_context=context,
            tls=True,
            tls_standard_compatible=False,
            tls_hostname=lab.server.name,
        )
        async with stream:
            assert isinstance(stream, TLSStream)
            assert await source(stream) == lab.address("wifi0")
        with pytest.raises(ssl.SSLError):
            await connect_tcp(lab.server.ipv4, lab.server.tls_port, tls=True)

    lab.vpn_up("metric")
    run(main)


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_whose_interface_goes_is_broken_and_says_why(lab: Lab, run: Run, tls: bool) -> None:
    context = lab.client_ssl_context() if tls else None

    async def main() -> None:
        stream = await connect_tcp(
            lab.server.ipv4,
            lab.server.tls_port if tls else lab.server.tcp_port,
            ssl_context=context,
            tls=tls,
            tls_standard_compatible=False,
        )
        async with stream:
            await source(stream)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, lab.down, "wifi0")
                with pytest.raises(anyio.BrokenResourceError) as error:
                    await stream.receive()
            assert isinstance(error.value.__cause__, bindsock.InterfaceChanged)
            assert error.value.__cause__.new_interface == "eth0"
            with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
                await stream.send(b"more")

    run(main)


@pytest.mark.parametrize("tls", [False, True])
def test_a_reconnecting_stream_goes_on_by_the_other_interface(lab: Lab, run: Run, tls: bool) -> None:
    context = lab.client_ssl_context() if tls else None

    async def main() -> None:
        sources = []

        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            assert unread == b""
            sources.append(await source(stream))
            await stream.send(b"said again\n")
            return b"from the hook\n"

        stream = await connect_tcp(
            lab.server.ipv4,
            lab.server.tls_port if tls else lab.server.tcp_port,
            tls=tls,
            ssl_context=context,
            tls_standard_compatible=False,
            on_reconnect=on_reconnect,
        )
        async with stream:
            assert isinstance(stream, ReconnectingStream)
            await source(stream)
            for down, up, other in (("wifi0", "eth0", "eth0"), ("eth0", "wifi0", "wifi0")):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.to_thread.run_sync, lab.down, down)
                    assert await line(stream) == b"from the hook\n"
                assert await line(stream) == b"said again\n"
                assert sources[-1] == lab.address(other)
                await stream.send(b"ping\n")
                assert await line(stream) == b"ping\n"
                lab.up(down)
                lab.wait_until_running(down)
                assert up == other
            assert stream.reconnections == 2

    run(main)


def test_a_send_that_meets_a_dead_connection_waits_for_the_new_one(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> None:
            await source(stream)

        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect) as stream:
            await source(stream)
            lab.down("wifi0")
            while not stream.reconnections:
                await stream.send(b"ping\n")
            assert await line(stream) == b"ping\n"
            assert stream.extra(SocketAttribute.local_address)[0] == lab.address("eth0")

    run(main)


def test_a_hook_that_fails_ends_the_stream_with_its_error(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> None:
            raise ValueError("no")

        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect) as stream:
            await source(stream)
            lab.down("wifi0")
            for _ in range(2):
                with pytest.raises(anyio.BrokenResourceError, match="on_reconnect failed") as error:
                    await stream.receive()
                assert isinstance(error.value.__cause__, ValueError)

    run(main)


def test_without_a_new_connection_in_time_the_stream_is_broken(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> None:
            raise AssertionError

        stream = await connect_tcp(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect, reconnect_timeout=0.3)
        async with stream:
            await source(stream)
            lab.ip("route", "add", "unreachable", lab.server.ipv4, namespace="router")
            lab.down("wifi0")
            with pytest.raises(anyio.BrokenResourceError, match=r"no new connection within 0\.3 s"):
                await stream.receive()

    run(main)


def test_cancelling_a_reconnection_leaves_a_stream_that_reconnects_later(lab: Lab, run: Run) -> None:
    async def main() -> None:
        slow = True

        async def on_reconnect(stream: ByteStream, unread: bytes) -> None:
            await source(stream)
            if slow:
                await anyio.sleep(60)

        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect) as stream:
            await source(stream)
            lab.down("wifi0")
            with anyio.move_on_after(0.3) as scope:
                await stream.receive()
            assert scope.cancelled_caught
            slow = False
            await stream.send(b"ping\n")
            assert await line(stream) == b"ping\n"

    run(main)


def test_a_dial_whose_path_goes_is_dialled_again(lab: Lab, run: Run) -> None:
    async def main() -> None:
        lab.blackhole("wifi0", on=True)
        async with anyio.create_task_group() as tasks:

            async def down() -> None:
                while not lab.counters("wifi0").tx_packets > before:
                    await anyio.sleep(0.001)
                lab.down("wifi0")

            before = lab.counters("wifi0").tx_packets
            tasks.start_soon(down)
            async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
                assert await source(stream) == lab.address("eth0")

    run(main)


def test_the_second_address_is_tried_when_the_first_fails_or_is_slow(lab: Lab, run: Run) -> None:
    async def resolver(host: str | None, port: int | str | None, **options: int) -> list[AddrInfo]:
        assert host is not None
        first = host.removesuffix(".test").replace("-", ".")
        infos = [numeric(a, port, 0, socket.SOCK_STREAM, 0) for a in (first, lab.server.ipv6)]
        return [i for i in infos if i is not None]

    async def main() -> None:
        factory = bindsock.anyio.TransportFactory(resolver=resolver)
        for first in ("10-9-0-11.test", "10-9-0-1.test"):  # nobody answers; the router refuses
            stream = await factory.connect_tcp(first, lab.server.tcp_port, happy_eyeballs_delay=0.05)
            async with stream:
                assert await source(stream) == lab.address("wifi0", socket.AF_INET6)

    run(main)


def test_errors_are_bindsocks_own(lab: Lab, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect_tcp(lab.server.ipv4, 1)
        with pytest.raises(anyio.ConnectionFailed, match="Errno 111"):
            await TCPConnectable(lab.server.ipv4, 1).connect()
        with pytest.raises(bindsock.BindFailed, match="does not belong to wifi0"):
            await connect_tcp(lab.server.ipv4, lab.server.tcp_port, local_host=lab.address("tun0"))
        lab.down("wifi0")
        lab.down("eth0")
        with pytest.raises(bindsock.NoEffectiveInterface) as error:
            await connect_tcp(lab.server.ipv4, lab.server.tcp_port)
        assert error.value.errno == errno.ENETUNREACH

    lab.vpn_up("metric")
    run(main)


def test_a_connectable_and_a_local_address_work(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async with await TCPConnectable(lab.server.ipv4, lab.server.tcp_port).connect() as stream:
            assert await source(stream) == lab.address("wifi0")
        for uplink in ("wifi0", "eth0"):
            stream = await connect_tcp(lab.server.ipv4, lab.server.tcp_port, local_host=lab.address(uplink))
            async with stream:
                assert await source(stream) == lab.address(uplink)
        factory = bindsock.anyio.TransportFactory(interface="eth0")
        async with await TCPConnectable(lab.server.ipv4, lab.server.tcp_port, factory).connect() as stream:
            assert await source(stream) == lab.address("eth0")
        async with await factory.connect_tcp(lab.server.ipv4, lab.server.tcp_port, interface="wifi0") as stream:
            assert await source(stream) == lab.address("wifi0")

    lab.vpn_up("metric")
    run(main)


def test_waiting_for_an_interface(lab: Lab, run: Run) -> None:
    async def main() -> None:
        lab.down("wifi0")
        lab.down("eth0")
        factory = bindsock.anyio.TransportFactory(bindsock.Preferences(on_no_interface="wait"))
        async with anyio.create_task_group() as tasks:

            async def up() -> None:
                await anyio.sleep(0.05)
                lab.up("eth0")

            tasks.start_soon(up)
            async with await factory.connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
                assert await source(stream) == lab.address("eth0")

    run(main)


def test_an_installed_factory_is_the_module_level_functions_own(lab: Lab, run: Run) -> None:
    async def main() -> None:
        bindsock.anyio.install(bindsock.anyio.TransportFactory(interface="eth0"))
        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
            assert await source(stream) == lab.address("eth0")

    run(main)


def test_a_large_transfer_arrives_whole(lab: Lab, run: Run) -> None:
    size = 3_000_000

    async def main() -> None:
        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
            await source(stream)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, bytes(size))
                received = await BufferedByteReceiveStream(stream).receive_exactly(size)
            assert received == bytes(size)
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    run(main)


def test_nothing_is_left_open(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async with await connect_tcp(lab.server.ipv4, lab.server.tcp_port) as stream:
            await source(stream)
        with (
            anyio.move_on_after(0.05),
            contextlib.suppress(OSError),
        ):  # the router reports it once its neighbour discovery has failed
            await connect_tcp("10.9.0.11", 9)
        stream = await connect_tcp(lab.server.ipv4, lab.server.tcp_port)
        await stream.aclose()

    opens_no_more_descriptors(run, main)


@contextlib.contextmanager
def last_words(lab: Lab, *, ends: bool = True) -> Iterator[int]:
    """A server that sends data after its client's end of file.

    :param ends: whether it closes afterwards
    """
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 0))
    with listener, contextlib.ExitStack() as open_until_the_end:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    open_until_the_end.enter_context(connection)
                    connection.sendall(f"from {address[0]}\n".encode())
                    threading.Thread(target=talk, args=[connection], daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while connection.recv(100):
                    pass
                connection.sendall(b"last words\n")
                if ends:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_is_in_flight_on_a_path_that_works_is_received_before_a_better_one_is_taken(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            assert unread == b""
            assert await source(stream) == lab.address("wifi0")
            return b"from the hook\n"

        stream = await connect_tcp(lab.server.ipv4, port, better_path="abort", on_reconnect=on_reconnect, drain_timeout=PATIENCE)
        async with stream:
            assert await source(stream) == lab.address("eth0")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, lab.default, "wifi0")
                assert await line(stream) == b"last words\n"
            assert await line(stream) == b"from the hook\n"

    lab.default("eth0")
    with last_words(lab) as port:
        run(main)


@pytest.mark.parametrize("ended_by", ["the peer", "the timeout", "nobody"])
def test_a_send_that_has_to_wait_hands_what_was_in_flight_to_the_hook(lab: Lab, run: Run, ended_by: str) -> None:
    async def main() -> None:
        seen = []

        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            seen.append(unread)
            assert await source(stream) == lab.address("wifi0")
            return b"from the hook\n"

        stream = await connect_tcp(
            lab.server.ipv4,
            port,
            better_path="abort",
            on_reconnect=on_reconnect,
            drain_timeout=0 if ended_by == "nobody" else PATIENCE,
        )
        async with stream:
            assert isinstance(stream, ReconnectingStream)
            assert await source(stream) == lab.address("eth0")
            lab.default("wifi0")
            while stream.extra(BindsockAttribute.viable):
                await anyio.sleep(0.01)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, b"more\n")
                if ended_by == "the timeout":
                    old = stream._stream
                    while old._unread != b"last words\n":
                        await anyio.sleep(0.001)
                    assert old.guard is not None
                    assert seen == []
                    old.guard._expire()
            assert seen == [b"" if ended_by == "nobody" else b"last words\n"]
            assert await line(stream) == b"from the hook\n"

    lab.default("eth0")
    with last_words(lab, ends=ended_by != "the timeout") as port:
        run(main)


def test_a_peer_that_does_not_end_is_waited_for_until_the_timeout(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            assert await source(stream) == lab.address("wifi0")
            return b"from the hook\n"

        stream = await connect_tcp(lab.server.ipv4, port, better_path="abort", on_reconnect=on_reconnect, drain_timeout=0.1)
        async with stream:
            assert await source(stream) == lab.address("eth0")
            lab.default("wifi0")
            while stream.extra(BindsockAttribute.viable):
                await anyio.sleep(0.01)
            await stream.send(b"more\n")
            assert await line(stream) == b"from the hook\n"

    lab.default("eth0")
    with last_words(lab, ends=False) as port:
        run(main)


@pytest.mark.parametrize("run", ["asyncio", "uvloop", "bindsock"], indirect=True)
def test_last_words_that_came_while_the_event_loop_was_busy_are_received(
    lab: Lab, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop calls timers before it looks at sockets again."""
    call = Runtime.call_after_reading
    deadlines = []
    seen = []
    peers: list[socket.socket] = []
    half_closed, may_speak = threading.Event(), threading.Event()

    def serve() -> None:
        peer, _ = listener.accept()
        peers.append(peer)
        assert peer.recv(1) == b""
        half_closed.set()
        may_speak.wait()
        peer.sendall(b"last words\n")

    def call_after_reading(runtime: Runtime, delay: float, callback: Callable[[], object]) -> Timer:
        deadlines.append((runtime, callback))
        return call(runtime, delay, callback)

    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            seen.append(unread)
            return b"from the hook\n"

        stream = await connect_tcp(
            *listener.getsockname(), better_path="abort", on_reconnect=on_reconnect, drain_timeout=PATIENCE
        )
        async with stream:
            raw = stream.extra(SocketAttribute.raw_socket)

            def busy() -> None:
                loop.remove_reader(wakes)
                may_speak.set()
                assert select.select([raw], [], [], 20)[0]
                [(runtime, expire)] = deadlines
                call(runtime, 0.01, expire)
                time.sleep(0.05)

            loop = asyncio.get_running_loop()
            loop.add_reader(wakes, busy)
            lab.default("wifi0")
            while stream.extra(BindsockAttribute.viable):
                await anyio.sleep(0.01)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, b"more\n")
                await anyio.to_thread.run_sync(half_closed.wait)
                wake.send(b"x")
        assert seen == [b"last words\n"]

    monkeypatch.setattr(Runtime, "call_after_reading", call_after_reading)
    lab.default("eth0")
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 0))
    wakes, wake = socket.socketpair()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        run(main)
    finally:
        may_speak.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in (listener, wakes, wake, *peers):
            sock.close()


def test_over_tls_a_better_path_is_taken_when_the_old_one_is_quiet(lab: Lab, run: Run) -> None:
    context = lab.client_ssl_context()

    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            assert await source(stream) == lab.address("wifi0")
            return b"from the hook\n"

        stream = await connect_tcp(
            lab.server.ipv4,
            lab.server.tls_port,
            tls=True,
            ssl_context=context,
            tls_standard_compatible=False,
            better_path="abort",
            on_reconnect=on_reconnect,
            drain_timeout=2,
        )
        async with stream:
            assert await source(stream) == lab.address("eth0")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, lab.default, "wifi0")
                assert await line(stream) == b"from the hook\n"

    lab.default("eth0")
    run(main)


def test_a_connection_that_dies_while_it_is_drained_is_replaced_at_once(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async def on_reconnect(stream: ByteStream, unread: bytes) -> bytes:
            assert await source(stream) == lab.address("wifi0")
            return unread + b"from the hook\n"

        stream = await connect_tcp(lab.server.ipv4, port, better_path="abort", on_reconnect=on_reconnect, drain_timeout=PATIENCE)
        async with stream:
            assert await source(stream) == lab.address("eth0")
            lab.default("wifi0")
            assert await line(stream) == b"last words\n"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, lab.down, "eth0")
                assert await line(stream) == b"from the hook\n"

    lab.default("eth0")
    with last_words(lab, ends=False) as port:
        run(main)


@pytest.mark.parametrize("options", [{"drain_timeout": 2}, {"reconnect_timeout": 2}])
def test_without_a_hook_there_is_nothing_to_drain(lab: Lab, run: Run, options: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="drain_timeout and reconnect_timeout need on_reconnect"):
            await connect_tcp(lab.server.ipv4, lab.server.tcp_port, **options)

    run(main)
