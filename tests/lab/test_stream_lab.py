"""Streams in the laboratory, with the VPN up: kept while they can work, and then ended with a reason."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

import bindsock
from bindsock.netmon.runtime import Runtime
from bindsock.stream import follower, guard, viability
from bindsock.stream.waiting import IdleWait, StallGrace
from bindsock.testing.lab import Lab
from tests.streams import Connected, ended, works
from tests.waiting import until

pytestmark = pytest.mark.lab
_RESET = 4


LOSSES: dict[str, Callable[[Lab], object]] = {
    "admin down": lambda lab: lab.down("wifi0"),
    "address removed": lambda lab: lab.remove_addresses("wifi0"),
    "interface deleted": lambda lab: lab.delete("wifi0"),
    "renumbered": lambda lab: lab.renumber("wifi0", "b"),
    "carrier lost": lambda lab: lab.carrier("wifi0", False),
    "default route gone": lambda lab: [lab.ip(f"-{v}", "route", "del", "default", "dev", "wifi0") for v in "46"],
}


class Connections:
    """Opens connections to the laboratory's server, and closes the remaining ones at the end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.writers: list[asyncio.StreamWriter] = []

    async def open(
        self,
        *,
        family: socket.AddressFamily = socket.AF_INET,
        tls: bool = False,
        factory: bindsock.TransportFactory | None = None,
        **options: Any,
    ) -> Connected:
        server = self.lab.server
        if tls:
            options |= {"ssl": self.lab.client_ssl_context(), "server_hostname": server.name}
        opening = factory.open_connection if factory is not None else bindsock.open_connection
        reader, writer = await opening(server.address(family), server.tls_port if tls else server.tcp_port, **options)
        self.writers.append(writer)
        async with asyncio.timeout(20):
            greeting = (await reader.readline()).decode().split()
        assert self.lab.interface_of(greeting[1]) == bindsock.interface_of(writer)
        return reader, writer

    async def close(self) -> None:
        # Once a TLS transport has been closed twice, early releases of Python 3.11 cannot abort it.
        for writer in self.writers:
            if not writer.is_closing():
                writer.close()
        await asyncio.sleep(0.02)
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def connections(lab: Lab) -> AsyncIterator[Connections]:
    lab.vpn_up("metric")
    made = Connections(lab)
    yield made
    await made.close()


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_loss_wakes_the_reader(lab: Lab, connections: Connections, loss: str) -> None:
    readers = [
        (await connections.open(family=family, tls=tls))[0]
        for family in (socket.AF_INET, socket.AF_INET6)
        for tls in (False, True)
    ]
    reads = [asyncio.ensure_future(ended(reader)) for reader in readers]
    await asyncio.sleep(0)
    begun = time.monotonic()
    LOSSES[loss](lab)
    for error in await asyncio.gather(*reads):
        assert error.interface == "wifi0"
        assert error.new_interface == ("wifi0" if loss == "renumbered" else "eth0")
    if loss in ("carrier lost", "default route gone"):
        assert time.monotonic() - begun >= viability.STALL_GRACE, "it was not given time to come back"


async def test_one_with_the_address_of_another_uplink_outlives_the_default_one(lab: Lab, connections: Connections) -> None:
    connected = await connections.open(local_addr=(lab.address("eth0"), 0))
    lab.down("wifi0")
    lab.wait_until_running("wifi0", False)
    await until(lambda: bindsock.effective_interface().name == "eth0" and bindsock.statistics().readings > 1, seconds=20)
    assert await works(connected)


async def test_carrier_that_comes_back_in_time_is_forgiven(
    lab: Lab, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Grace] = []

    class Grace(StallGrace):
        stopped = False

        def __init__(self, runtime: Runtime, on_over: Callable[[], object]) -> None:
            super().__init__(runtime, on_over)
            waits.append(self)

        def stop(self) -> None:
            super().stop()
            self.stopped = True

    monkeypatch.setattr(viability, "STALL_GRACE", 3600.0)
    monkeypatch.setattr(follower, "StallGrace", Grace)
    connected = await connections.open()
    lab.carrier("wifi0", False)
    await until(lambda: waits)
    lab.carrier("wifi0", True)
    await until(lambda: waits[0].stopped)
    assert not waits[0].over
    assert await works(connected)
    assert bindsock.statistics().ended == 0


async def test_kept_while_nothing_else_is_usable_and_ended_when_another_uplink_comes(lab: Lab, connections: Connections) -> None:
    lab.down("eth0")
    reader, _ = await connections.open()
    lab.down("wifi0")
    read = asyncio.ensure_future(ended(reader))
    await asyncio.sleep(0.3)
    assert not read.done()
    lab.up("eth0")
    assert (await read).new_interface == "eth0"
    assert bindsock.statistics().ended == 1


async def test_kept_if_the_own_uplink_comes_back(lab: Lab, connections: Connections) -> None:
    lab.down("eth0")
    connected = await connections.open()
    lab.down("wifi0")
    await asyncio.sleep(0.1)
    lab.up("wifi0")
    assert await works(connected)


async def test_a_better_path_leaves_what_works_alone(lab: Lab, connections: Connections) -> None:
    connected = await connections.open()
    lab.default("eth0")
    await asyncio.sleep(0.2)
    assert await works(connected)
    lab.down("wifi0")
    await ended(connected[0])


async def test_a_better_path_ends_what_is_to_be_aborted(lab: Lab, connections: Connections) -> None:
    reader, _ = await connections.open(better_path="abort")
    lab.default("eth0")
    assert (await ended(reader)).new_interface == "eth0"


async def test_off_an_expensive_uplink_when_idle(lab: Lab, connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Waiting] = []

    class Waiting(IdleWait):
        """Takes its samples by order of the test: a server that is late is idle, too."""

        def start(self) -> None:
            super().start()
            waits.append(self)

    monkeypatch.setattr(viability, "SAMPLE", 3600.0)
    monkeypatch.setattr(viability, "LATEST", 3600.0)
    monkeypatch.setattr(viability, "IDLE", 0.4)
    monkeypatch.setattr(guard, "IdleWait", Waiting)
    lab.down("eth0")
    factory = bindsock.TransportFactory(bindsock.Preferences(expensive=["wifi*"]))
    idle = await connections.open(factory=factory)
    busy = await connections.open(factory=factory)
    kept = await connections.open(factory=factory, better_path="keep")
    lab.up("eth0")
    read = asyncio.ensure_future(ended(idle[0]))
    await until(lambda: len(waits) >= 2)
    async with asyncio.timeout(20):
        while not read.done():
            assert await works(busy)
            for wait in waits:
                wait._sample()
            await asyncio.sleep(0.01)
    assert (await read).new_interface == "eth0"
    assert await works(busy)
    assert await works(kept)


async def test_tls_that_the_application_started_itself_is_told(lab: Lab, connections: Connections) -> None:
    # The TLS port expects a handshake at once: connect without TLS, then upgrade.
    server = lab.server
    context = lab.client_ssl_context()
    reader, writer = await bindsock.open_connection(server.ipv4, server.tls_port)
    connections.writers.append(writer)
    await writer.start_tls(context, server_hostname=server.name)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"hello ")
    lab.down("wifi0")
    await ended(reader)


async def test_a_buffered_protocol_is_told(lab: Lab, connections: Connections) -> None:
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    class Buffered(asyncio.BufferedProtocol):
        def get_buffer(self, sizehint: int) -> bytearray:
            return bytearray(4096)

        def buffer_updated(self, nbytes: int) -> None:
            pass

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    await bindsock.create_connection(Buffered, lab.server.ipv6, lab.server.tcp_port)
    lab.down("wifi0")
    async with asyncio.timeout(20):
        assert isinstance(await lost, bindsock.InterfaceChanged)


async def test_a_raw_socket_is_reset(lab: Lab, connections: Connections) -> None:
    loop = asyncio.get_running_loop()
    sock = await bindsock.connect(lab.server.ipv4, lab.server.tcp_port)
    assert await loop.sock_recv(sock, 100)
    receiving = asyncio.ensure_future(loop.sock_recv(sock, 100))
    await asyncio.sleep(0)
    lab.down("wifi0")
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(20):
            await receiving
    sock.close()


async def test_the_peer_does_not_take_an_aborted_stream_for_a_finished_one(lab: Lab, connections: Connections) -> None:
    loop = asyncio.get_running_loop()
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 0))
    with listener:
        _, writer = await bindsock.open_connection(*listener.getsockname(), better_path="abort")
        connections.writers.append(writer)
        peer, _ = listener.accept()
    with peer:
        peer.setblocking(False)
        lab.default("eth0")
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(20):
                await loop.sock_recv(peer, 1)


async def test_nothing_is_left_open(lab: Lab, connections: Connections) -> None:
    counts = []
    for _ in range(2):
        readers = [(await connections.open(tls=tls))[0] for tls in (False, True) for _ in range(10)]
        lab.down("wifi0")
        for reader in readers:
            await ended(reader)
        await asyncio.sleep(0)
        assert bindsock.statistics().tracked == 0
        lab.up("wifi0")
        lab.wait_until_running("wifi0")  # until then eth0 is better
        await asyncio.sleep(0.3)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def test_a_connection_that_was_reset_before_it_moved_along_with_its_address_ends(family: socket.AddressFamily) -> None:
    """The address was on the new interface before the socket was bound to it: the kernel answered the peer with a reset."""
    with Lab(uplinks=("wifi0",)) as lab, lab.inside(), lab.tap(outgoing=True, protocol="tcp") as tap:
        with lab.inside("server"):
            listener = socket.create_server((lab.server.address(family), 0), family=family)
        async with bindsock.TransportFactory() as factory:
            reader, writer = await factory.open_connection(*listener.getsockname()[:2])
            peer, _ = listener.accept()
            with listener, peer:
                tap.take()
                lab.delete("wifi0")
                lab.create("wifi0")
                peer.sendall(b"hello\n")
                deadline = time.monotonic() + 20
                while not any(packet.flags & _RESET for packet in tap.packets):  # the event loop must not run
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionResetError):
                    while await reader.readline():
                        pass
            assert factory.statistics().rebinds == 1
            writer.close()
