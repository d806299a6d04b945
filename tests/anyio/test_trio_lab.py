"""trio: its own streams on sockets that bindsock makes, and the watcher on trio."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
import trio
import trio.testing

import bindsock
import bindsock.anyio
from bindsock.anyio import install_trio_socket_factory
from bindsock.anyio._trio import trio_runtime
from bindsock.anyio._trio_network import TrioNetwork, running_network
from bindsock.datagram.sender import HELD_FOR
from bindsock.testing import SimulatedKernel, interface, network
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab

WIFI = interface("2: en0 wifi 192.0.2.5/24")
ON_WIFI = network(WIFI, "default via 192.0.2.1 dev en0")


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous function on trio, which must end within a minute."""

    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded)


async def source(stream: trio.SocketStream) -> str:
    return (await stream.receive_some()).decode().split()[1]


def test_trios_streams_and_anyios_ride_along(lab: Lab) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        async with await trio.open_tcp_stream(lab.server.ipv4, lab.server.tcp_port) as stream:
            assert await source(stream) == lab.address("wifi0")
        async with await trio.open_tcp_stream(lab.server.ipv6, lab.server.tcp_port) as stream:
            assert await source(stream) == lab.address("wifi0", socket.AF_INET6)
        async with await anyio.connect_tcp(lab.server.ipv4, lab.server.tcp_port) as plain:
            assert (await plain.receive()).decode().split()[1] == lab.address("wifi0")
        async with await anyio.create_connected_udp_socket(lab.server.ipv4, lab.server.udp_port) as datagrams:
            await datagrams.send(b"ping")
            assert (await datagrams.receive()).decode().split()[0] == lab.address("wifi0")

    lab.vpn_up("metric")
    with nothing_through_the_tunnel(lab):
        run(main)


def test_httpx_on_trio_rides_along(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{servers.host}:{ports.HTTP}/")).text == lab.address("wifi0")

    run(main)


def test_a_stream_whose_interface_goes_is_broken_and_says_why(lab: Lab) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        async with await trio.open_tcp_stream(lab.server.ipv4, lab.server.tcp_port) as stream:
            await source(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, lab.down, "wifi0")
                with pytest.raises(trio.BrokenResourceError, match="wifi0 is down") as error:
                    await stream.receive_some()
            assert isinstance(error.value.__cause__, bindsock.InterfaceChanged)

    run(main)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connect_in_a_cancelled_scope_is_cancelled_and_closes_its_socket(lab: Lab, family: socket.AddressFamily) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        with trio.socket.socket(family) as sock, trio.CancelScope() as scope:
            scope.cancel()
            await sock.connect((lab.server.address(family), lab.server.tcp_port))
        assert scope.cancelled_caught
        assert sock.fileno() == -1

    run(main)


@pytest.mark.parametrize("connected", [True, False])
def test_datagram_sockets_move(lab: Lab, connected: bool) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        target = (lab.server.ipv4, lab.server.udp_port)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if connected:
                await sock.connect(target)

            async def ask() -> str:
                await (sock.send(b"ping") if connected else sock.sendto(b"ping", target))
                return (await sock.recv(100)).decode().split()[0]

            assert await ask() == lab.address("wifi0")
            lab.down("wifi0")
            for _ in range(2000):
                await trio.sleep(0.001)
                if lab.interface_of(sock.getsockname()[0]) == "eth0" or not connected:
                    break
            for _ in range(100):
                try:
                    answer = await ask()
                except OSError:  # the watcher has not read the change yet
                    await trio.sleep(0.001)
                    continue
                break
            assert answer == lab.address("eth0")

    run(main)


def test_servers_and_this_host_are_left_alone(lab: Lab) -> None:
    async def main() -> None:
        install_trio_socket_factory()
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, _echo, [listener])
            async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
                await stream.send_all(b"ping")
                assert await stream.receive_some() == b"ping"
            nursery.cancel_scope.cancel()

    lab.vpn_up("metric")
    run(main)


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


def test_a_socket_that_cannot_be_bound_does_not_connect(lab: Lab) -> None:
    async def main() -> None:
        install_trio_socket_factory(bindsock.anyio.TransportFactory(interface="nothing0"))
        with trio.socket.socket() as sock:
            with pytest.raises(bindsock.NoEffectiveInterface):
                await sock.connect((lab.server.ipv4, lab.server.tcp_port))
            assert sock.fileno() == -1

    run(main)


def test_streams_pass_trios_conformance_checks(lab: Lab) -> None:
    """Both streams pass: trio's own over a bound socket, and anyio's, wrapped as a trio stream."""

    async def bound_sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
        (listener,) = await trio.open_tcp_listeners(0, host=lab.address("eth0"))
        async with listener:
            client = await trio.open_tcp_stream(lab.address("eth0"), listener.socket.getsockname()[1])
            return client, await listener.accept()

    async def anyios() -> tuple[DressedStream, trio.SocketStream]:
        (listener,) = await trio.open_tcp_listeners(0, host=lab.address("eth0"))
        async with listener:
            client = await bindsock.anyio.connect_tcp(lab.address("eth0"), listener.socket.getsockname()[1])
            return DressedStream(client), await listener.accept()

    async def main() -> None:
        install_trio_socket_factory()
        await trio.testing.check_half_closeable_stream(bound_sockets, None)
        await trio.testing.check_half_closeable_stream(anyios, None)

    run(main)


class DressedStream(trio.abc.HalfCloseableStream):
    """An anyio stream with the methods and the errors of a trio stream."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._sending = trio._util.ConflictDetector("another task is sending")
        self._sent_eof = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            if self._sent_eof:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError
            with translated():
                await trio.lowlevel.checkpoint()
                await self._stream.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            sock = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)
            await trio.lowlevel.checkpoint()
            if sock.fileno() == -1 or self._sent_eof:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_writable(sock)

    async def send_eof(self) -> None:
        with self._sending, translated():
            await trio.lowlevel.checkpoint()
            if not self._sent_eof:
                self._sent_eof = True
                await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with translated():
            try:
                return await self._stream.receive(max_bytes or 65536)
            except anyio.EndOfStream:
                return b""

    async def aclose(self) -> None:
        await self._stream.aclose()
        await trio.lowlevel.checkpoint()  # anyio's aclose() is a checkpoint itself since 4.16


@contextlib.contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except anyio.ClosedResourceError as error:
        raise trio.ClosedResourceError from error
    except anyio.BusyResourceError as error:
        raise trio.BusyResourceError from error
    except anyio.BrokenResourceError as error:
        raise trio.BrokenResourceError from error


def network_by(kernel: SimulatedKernel) -> TrioNetwork:
    """The network of this run, with a factory that asks this kernel."""
    bindsock.anyio.install(bindsock.anyio.TransportFactory(kernel=kernel))
    return running_network()


def test_the_watcher_ends_with_the_run_whoever_still_follows() -> None:
    kernel = SimulatedKernel(ON_WIFI)

    async def main() -> None:
        watcher = network_by(kernel).watcher
        watcher.follow(Nobody())
        assert kernel.open_sources == 1
        await trio.sleep(0)

    trio.run(main)
    assert kernel.open_sources == 0


class Nobody:
    def network_changed(self, decider: Any, cause: Any) -> None:
        self.cause = cause


def test_the_watcher_can_be_stopped_and_started_on_trio() -> None:
    kernel = SimulatedKernel(ON_WIFI)

    async def main() -> None:
        watcher = network_by(kernel).watcher
        for _ in range(3):
            nobody = Nobody()
            watcher.follow(nobody)
            kernel.change(network(WIFI))
            with trio.fail_after(20):
                while not hasattr(nobody, "cause"):
                    await trio.sleep(0.001)
            kernel.change(ON_WIFI)
            watcher.unfollow(nobody)
            assert not watcher.running
            watcher.stop()
            assert kernel.open_sources == 0

    gc.collect()
    before = len(os.listdir("/dev/fd"))
    trio.run(main)
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before


def test_the_watcher_keeps_the_runs_time() -> None:
    """On trio's autojump clock, the minute between two readings passes at once."""
    kernel = SimulatedKernel(ON_WIFI)
    kernel.silent = True

    async def main() -> None:
        watcher = network_by(kernel).watcher
        nobody = Nobody()
        watcher.follow(nobody)
        kernel.change(network(WIFI))
        begun = trio.current_time()
        while not hasattr(nobody, "cause"):
            await trio.sleep(1)
        assert 55 < trio.current_time() - begun < 70
        watcher.unfollow(nobody)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_trio_run_that_is_over_leaves_no_runtime() -> None:
    ended = []

    async def main() -> None:
        install_trio_socket_factory()
        network = running_network()
        network.watcher.refresh()
        assert running_network() is network
        assert trio_runtime() is network.runtime
        ended.append(weakref.ref(network.runtime))

    for _ in range(2):
        trio.run(main)
    gc.collect()  # the run's own objects, of which some have finalizers
    gc.collect()
    assert [runtime() for runtime in ended] == [None, None]


class Datagrams(asyncio.DatagramProtocol):
    """Records the errors that it receives, with their times by trio's clock."""

    def __init__(self) -> None:
        self.errors: list[tuple[float, Exception]] = []
        self.told = trio.Event()

    def error_received(self, exc: Exception) -> None:
        self.errors.append((trio.current_time(), exc))
        self.told.set()


def test_a_datagram_that_waits_for_a_path_is_given_up_by_trios_clock() -> None:
    kernel = SimulatedKernel(ON_WIFI)

    async def main() -> None:
        inside = network_by(kernel)
        transport, protocol = await inside.open_datagram(Datagrams, None, None, family=socket.AF_INET)
        kernel.change(network(WIFI))
        inside.watcher.refresh()
        begun = trio.current_time()
        transport.sendto(b"nobody takes it", ("198.51.100.7", 9))
        await protocol.told.wait()
        transport.abort()
        ((when, error),) = protocol.errors
        assert isinstance(error, bindsock.InterfaceChanged)
        assert HELD_FOR <= when - begun < HELD_FOR + 1.0
        inside.watcher.stop()
        await trio.testing.wait_all_tasks_blocked()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
