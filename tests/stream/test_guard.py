"""Streams are ended with a reason when they can no longer work: real transports over loopback, on a scripted network."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any, cast

import pytest
import pytest_asyncio

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.errors import InterfaceChanged
from bindsock.model.decision import Path
from bindsock.model.network import Network
from bindsock.netmon import turns
from bindsock.netmon.turns import CallbackBudget
from bindsock.options import BetterPath
from bindsock.stream.follower import FIRST_CHECK, LAST_CHECK
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.plan import Requirement
from bindsock.stream.viability import IDLE, LATEST, SAMPLE, STALL_GRACE
from bindsock.testing import interface, network
from tests.scene import Scene
from tests.stepped_loop import SteppedLoop
from tests.streams import Connected, ended, works
from tests.tls import tls_client_context, tls_server_context
from tests.waiting import settle, until

PEER = ip_address("198.51.100.7")
WIFI = interface("2: wifi0 wifi 127.0.0.1/8")
WIFI_DOWN = interface("2: wifi0 wifi down")
WIFI_UNPLUGGED = interface("2: wifi0 wifi 127.0.0.1/8 no-carrier")
CELLULAR = interface("2: wifi0 cellular 127.0.0.1/8")
ETHERNET = interface("3: eth0 wired 203.0.113.5/24")
BY_WIFI = "default via 127.0.0.254 dev wifi0 metric 600"
BY_ETHERNET = "default via 203.0.113.1 dev eth0 metric 700"
BY_ETHERNET_FIRST = "default via 203.0.113.1 dev eth0 metric 100"

ON_WIFI = network(WIFI, BY_WIFI)
ON_ETHERNET = network(WIFI_DOWN, ETHERNET, BY_ETHERNET)
NOWHERE = network(WIFI_DOWN)
ETHERNET_BETTER = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
CELLULAR_WORKS = network(CELLULAR, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
UNPLUGGED = network(WIFI_UNPLUGGED, ETHERNET, BY_WIFI, BY_ETHERNET)


class StreamScene(Scene):
    """A scene with a server on loopback that is treated as remote."""

    def __init__(self, initial: Network = ON_WIFI) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(initial, SteppedLoop(self.loop))
        self.accepted: list[asyncio.Transport] = []
        self.upgrades: list[asyncio.Task[Any]] = []
        self.guards: list[StreamGuard] = []
        self.sockets: list[weakref.ref[socket.socket]] = []
        self.exits = contextlib.AsyncExitStack()
        self.server: asyncio.Server

    async def listen(self, tls: ssl.SSLContext | None = None) -> None:
        self.server = await self.loop.create_server(lambda: Echo(self), "127.0.0.1", 0, ssl=tls)

    async def dial(self, kind: type[socket.socket] = FollowedSocket) -> socket.socket:
        sock = kind(socket.AF_INET, socket.SOCK_STREAM)
        self.sockets.append(weakref.ref(sock))
        sock.setblocking(False)
        await self.loop.sock_connect(sock, self.server.sockets[0].getsockname())
        return sock

    def follow(self, sock: socket.socket, *, better_path: BetterPath = "auto", pin: str | None = None) -> StreamGuard:
        path = Path(socket.AF_INET, "wifi0", 2, frozenset([ip_address("127.0.0.1")]), None)
        guard = follow_stream(self.watcher, sock, Requirement(PEER, pin, better_path), path)
        self.guards.append(guard)
        return guard

    async def open(self, *, tls: bool = False, better_path: BetterPath = "auto", pin: str | None = None) -> Connected:
        sock = await self.dial()
        guard = self.follow(sock, better_path=better_path, pin=pin)
        options: dict[str, Any] = {"ssl": tls_client_context(), "server_hostname": "localhost"} if tls else {}
        reader, writer = await asyncio.open_connection(sock=sock, **options)
        guard.attach(writer.transport)
        writer.write(b"hello\n")
        async with asyncio.timeout(20):
            assert await reader.readline() == b"hello\n"
        self.exits.callback(writer.close)  # and keep it until then
        return reader, writer

    async def close(self) -> None:
        await self.exits.aclose()
        self.server.close()
        await settle()
        for transport in self.accepted:
            transport.abort()
        self.watcher.forget_followers()
        self.watcher.stop()
        await settle()


class Echo(asyncio.Protocol):
    """The server's side: sends back what it receives. ``upgrade`` starts TLS."""

    def __init__(self, scene: StreamScene) -> None:
        self.scene = scene

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.scene.accepted.append(self.transport)

    def data_received(self, data: bytes) -> None:
        if data == b"upgrade\n":
            upgrade = self.scene.loop.start_tls(self.transport, self, tls_server_context(), server_side=True)
            self.scene.upgrades.append(asyncio.ensure_future(self.upgraded(upgrade)))
        else:
            self.transport.write(data)

    async def upgraded(self, upgrade: Coroutine[Any, Any, asyncio.Transport | None]) -> None:
        transport = await upgrade
        assert transport is not None
        self.transport = transport


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[StreamScene]:
    made = StreamScene()
    await made.listen()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def tls_scene() -> AsyncIterator[StreamScene]:
    made = StreamScene()
    await made.listen(tls_server_context())
    yield made
    await made.close()


async def test_a_pending_read_wakes_with_the_reason(scene: StreamScene) -> None:
    reader, _ = await scene.open()
    read = asyncio.ensure_future(ended(reader))
    await settle()
    scene.kernel.change(ON_ETHERNET)
    error = await read
    assert (error.interface, error.new_interface) == ("wifi0", "eth0")
    assert "wifi0 is down" in str(error)
    assert scene.watcher.statistics.ended == 1
    assert scene.watcher.statistics.tracked == 0


async def test_a_pending_read_over_tls_wakes_with_the_reason(tls_scene: StreamScene) -> None:
    reader, writer = await tls_scene.open(tls=True)
    tls_scene.kernel.change(ON_ETHERNET)
    assert (await ended(reader)).new_interface == "eth0"
    with pytest.raises(InterfaceChanged):
        await writer.wait_closed()


async def test_a_pending_drain_wakes_with_the_reason(scene: StreamScene) -> None:
    _, writer = await scene.open()
    scene.accepted[0].pause_reading()
    writer.transport.set_write_buffer_limits(0)
    writer.write(bytes(16 << 20))
    drain = asyncio.ensure_future(writer.drain())
    await settle()
    assert not drain.done()
    scene.kernel.change(ON_ETHERNET)
    with pytest.raises(InterfaceChanged):
        async with asyncio.timeout(20):
            await drain


async def test_tls_that_the_application_started_later_is_told(scene: StreamScene) -> None:
    reader, writer = await scene.open()
    writer.write(b"upgrade\n")
    # asyncio loses data that a client sends before the server calls start_tls().
    await until(lambda: bool(scene.upgrades))
    await settle()
    await writer.start_tls(tls_client_context(), server_hostname="localhost")
    async with asyncio.timeout(20):
        await scene.upgrades[0]  # before this, the server would answer without TLS
    assert writer.get_extra_info("ssl_object") is not None
    assert await works((reader, writer))
    scene.kernel.change(ON_ETHERNET)
    await ended(reader)


class Buffered(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(4096)
        self.received = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.end_of_file = False

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.end_of_file = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_buffered_protocol_is_told(scene: StreamScene, tls_scene: StreamScene, tls: bool) -> None:
    here = tls_scene if tls else scene
    sock = await here.dial()
    guard = here.follow(sock)
    options: dict[str, Any] = {"ssl": tls_client_context(), "server_hostname": "localhost"} if tls else {}
    transport, protocol = await here.loop.create_connection(Buffered, sock=sock, **options)
    guard.attach(transport)
    transport.write(b"hello\n")
    await until(lambda: protocol.received == b"hello\n")
    here.kernel.change(ON_ETHERNET)
    async with asyncio.timeout(20):
        assert isinstance(await protocol.lost, InterfaceChanged)
    assert not protocol.end_of_file
    assert sock.fileno() == -1


async def test_a_raw_socket_fails_whoever_waits_on_it(scene: StreamScene) -> None:
    sock = await scene.dial()
    scene.follow(sock)
    scene.kernel.change(ON_ETHERNET)
    async with asyncio.timeout(20):
        assert await scene.loop.sock_recv(sock, 1) == b"", "the simulated kernel ends it, the real one resets it"
    assert scene.kernel.binds == [("abort", "")]
    sock.close()


async def test_a_transport_of_a_socket_that_was_ended_before_is_ended(
    scene: StreamScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = await scene.dial()
    guard = scene.follow(sock)
    monkeypatch.setattr(scene.kernel, "abort", lambda sock: None)
    scene.kernel.change(ON_ETHERNET)
    await until(lambda: guard.error is not None)
    reader, writer = await asyncio.open_connection(sock=sock)
    guard.attach(writer.transport)
    assert await ended(reader) is guard.error


async def test_what_happened_between_the_dial_and_the_following_counts(scene: StreamScene) -> None:
    sock = await scene.dial()
    scene.kernel.change(ON_ETHERNET)
    assert scene.follow(sock).error is not None
    assert scene.watcher.statistics.tracked == 0
    sock.close()


async def test_kept_while_nothing_else_is_usable(scene: StreamScene) -> None:
    connected = await scene.open()
    scene.kernel.change(NOWHERE)
    await settle()
    assert await works(connected)
    scene.kernel.change(ON_ETHERNET)
    await ended(connected[0])


async def test_what_the_peer_has_sent_before_its_end_is_read_although_the_path_is_lost(scene: StreamScene) -> None:
    reader, writer = await scene.open()
    writer.write(b"the rest\n")
    await settle()
    scene.kernel.finished = True
    scene.change(ON_ETHERNET)
    await settle()
    assert await reader.readline() == b"the rest\n"
    assert scene.watcher.statistics.ended == 0


async def test_one_that_the_peer_has_ended_is_ended_once_it_is_written_to_by_a_lost_path(scene: StreamScene) -> None:
    reader, _ = await scene.open()
    scene.kernel.finished = True
    scene.change(ON_ETHERNET)
    await settle()
    for _ in range(3):
        scene.wait(FIRST_CHECK + LAST_CHECK)
        await settle()
    assert scene.watcher.statistics.ended == 0
    scene.kernel.finished = False
    scene.wait(LAST_CHECK)
    await ended(reader)


async def test_one_that_the_peer_has_ended_is_not_checked_once_its_path_is_back(scene: StreamScene) -> None:
    await scene.open()
    scene.kernel.finished = True
    await settle()
    before = len(scene.clock.timers)
    scene.change(ON_ETHERNET)
    await settle()
    assert len(scene.clock.timers) > before
    scene.change(ON_WIFI)
    await settle()
    assert len(scene.clock.timers) == before


async def test_one_that_the_peer_has_ended_is_not_left_for_a_cheaper_path(scene: StreamScene) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    reader, writer = await scene.open()
    scene.change(CELLULAR_WORKS)
    scene.wait(SAMPLE)
    scene.kernel.finished = True
    for _ in range(int(IDLE / SAMPLE) + 2):
        scene.wait(SAMPLE)
        await settle()
    assert scene.watcher.statistics.ended == 0
    assert await works((reader, writer))


async def test_kept_if_what_was_lost_comes_back(scene: StreamScene) -> None:
    connected = await scene.open()
    scene.kernel.change(NOWHERE)
    await settle()
    scene.kernel.change(ON_WIFI)
    await settle()
    assert await works(connected)
    assert scene.guards[0].error is None


async def test_lost_carrier_is_waited_for(scene: StreamScene) -> None:
    reader, _ = await scene.open()
    scene.change(UNPLUGGED)
    scene.wait(STALL_GRACE - 0.01)
    assert scene.guards[0].error is None
    scene.wait(0.01)
    assert "no carrier" in str(await ended(reader))


async def test_carrier_that_comes_back_is_forgiven(scene: StreamScene) -> None:
    connected = await scene.open()
    for _ in range(3):
        scene.change(UNPLUGGED)
        scene.wait(STALL_GRACE / 2)
        scene.change(ON_WIFI)
        await settle()  # on a busy machine the connection's turn to see it comes later
        scene.wait(STALL_GRACE / 4)
    scene.wait(10 * STALL_GRACE)
    assert await works(connected)


async def test_carrier_is_lost_and_nothing_else_usable_for_long(scene: StreamScene) -> None:
    connected = await scene.open()
    scene.change(network(WIFI_UNPLUGGED, BY_WIFI))
    scene.wait(10 * STALL_GRACE)
    assert await works(connected)
    scene.change(UNPLUGGED)
    await ended(connected[0])


async def test_a_better_path_is_left_alone_within_a_cost_class(scene: StreamScene) -> None:
    connected = await scene.open()
    scene.change(ETHERNET_BETTER)
    scene.wait(2 * LATEST)
    assert await works(connected)


async def test_a_better_path_ends_what_is_to_be_aborted(scene: StreamScene) -> None:
    reader, _ = await scene.open(better_path="abort")
    scene.kernel.change(ETHERNET_BETTER)
    error = await ended(reader)
    assert "better path" in str(error)
    assert error.new_interface == "eth0"


async def test_off_an_expensive_interface_once_idle(scene: StreamScene) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    reader, _ = await scene.open()
    scene.change(CELLULAR_WORKS)
    scene.wait(IDLE - SAMPLE / 2)
    assert scene.guards[0].error is None
    scene.wait(SAMPLE)
    await ended(reader)


async def test_off_an_expensive_interface_at_last_though_busy(scene: StreamScene) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    reader, _ = await scene.open()
    scene.change(CELLULAR_WORKS)
    for _ in range(int(LATEST / SAMPLE) - 1):
        scene.kernel.transfer()
        scene.wait(SAMPLE)
    assert scene.guards[0].error is None, "a busy connection was taken for an idle one"
    scene.kernel.transfer()
    scene.wait(2 * SAMPLE)
    await ended(reader)


@pytest.mark.parametrize("back", [network(CELLULAR, BY_WIFI), ON_WIFI])
async def test_a_better_path_that_goes_away_calls_it_off(scene: StreamScene, back: Network) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    connected = await scene.open()
    scene.change(CELLULAR_WORKS)
    scene.wait(IDLE / 2)
    scene.change(back)
    scene.wait(2 * LATEST)
    assert await works(connected)


@pytest.fixture
def no_turn_comes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, thousands of other connections are shown each reading first."""
    return lambda: monkeypatch.setattr(CallbackBudget, "do", lambda budget, work: None)


async def test_many_connections_are_shown_a_reading_in_turns(scene: StreamScene, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    readers = [(await scene.open())[0] for _ in range(count)]
    monkeypatch.setattr(turns, "BUDGET", 1e-9)
    scene.change(ON_ETHERNET)
    at_once = sum(guard.error is not None for guard in scene.guards)
    assert 0 < at_once < count / 2
    for reader in readers:
        await ended(reader)


async def test_whoever_asks_before_its_turn_hears_of_the_newest_reading(
    scene: StreamScene, no_turn_comes: Callable[[], None]
) -> None:
    await scene.open()
    assert scene.guards[0].is_viable()
    no_turn_comes()
    scene.change(ON_ETHERNET)
    assert scene.guards[0].error is None
    assert not scene.guards[0].is_viable()
    assert scene.guards[0].error is not None


@pytest.mark.parametrize("back", [network(CELLULAR, BY_WIFI), ON_WIFI])
async def test_a_better_path_that_went_away_before_its_turn_is_not_left_for(
    scene: StreamScene, no_turn_comes: Callable[[], None], back: Network
) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    connected = await scene.open()
    scene.change(CELLULAR_WORKS)
    scene.wait(IDLE / 2)
    no_turn_comes()
    scene.change(back)
    scene.wait(2 * LATEST)
    assert scene.guards[0].error is None
    assert await works(connected)


async def test_keep_means_keep(scene: StreamScene) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    connected = await scene.open(better_path="keep")
    scene.change(CELLULAR_WORKS)
    scene.wait(2 * LATEST)
    assert await works(connected)
    scene.change(ON_ETHERNET)
    await ended(connected[0])


async def test_a_pinned_connection_waits_for_its_interface(scene: StreamScene) -> None:
    connected = await scene.open(pin="wifi0", better_path="abort")
    scene.kernel.change(ETHERNET_BETTER)
    await settle()
    scene.kernel.change(ON_ETHERNET)
    await settle()
    assert await works(connected)
    created_anew = interface("12: wifi0 wifi 192.0.2.5/24")
    scene.kernel.change(network(created_anew, ETHERNET, "default via 192.0.2.1 dev wifi0", BY_ETHERNET))
    assert (await ended(connected[0])).new_interface == "wifi0"


BRIDGE = interface("4: br0 bridge 127.0.0.1/8")
IN_BRIDGE = network("2: wifi0 wifi", BRIDGE, ETHERNET, "default via 127.0.0.254 dev br0", BY_ETHERNET)


@pytest.mark.parametrize("bound", [True, False])
async def test_a_connection_moves_along_with_its_address(scene: StreamScene, bound: bool) -> None:
    connected = await scene.open()
    sock = scene.sockets[0]()
    assert sock is not None
    if bound:
        scene.kernel.bind(sock, WIFI)
    scene.kernel.change(IN_BRIDGE)
    await settle()
    assert await works(connected)
    assert scene.guards[0].interface == "br0"
    assert scene.kernel.binds == ([("bind", "wifi0"), ("rebind", "br0"), ("probe", "")] if bound else [])
    assert scene.watcher.statistics.rebinds == 1
    scene.kernel.change(network(BRIDGE, "default via 127.0.0.254 dev br0"))
    await settle()
    assert scene.guards[0].error is None
    scene.kernel.change(ON_ETHERNET)
    assert (await ended(connected[0])).interface == "br0"
    assert not bound or ("probe", "ended") in scene.kernel.binds


async def test_a_connection_that_may_not_move_is_ended(scene: StreamScene) -> None:
    reader, _ = await scene.open()
    sock = scene.sockets[0]()
    assert sock is not None
    scene.kernel.bind(sock, WIFI)
    scene.kernel.refuse.add("br0")
    scene.kernel.change(IN_BRIDGE)
    assert (await ended(reader)).new_interface == "br0"


async def test_following_stops_when_the_transport_is_closed(scene: StreamScene, tls_scene: StreamScene) -> None:
    for here, tls in ((scene, False), (tls_scene, True)):
        watcher = here.watcher
        _, writer = await here.open(tls=tls)
        assert watcher.statistics.tracked == 1
        writer.close()
        await writer.wait_closed()
        await settle()
        assert watcher.statistics.tracked == 0
        assert not watcher.running


async def test_following_stops_when_a_foreign_socket_is_forgotten(scene: StreamScene) -> None:
    sock = await scene.dial(socket.socket)
    guard = weakref.ref(scene.follow(sock))
    scene.guards.clear()
    assert scene.watcher.statistics.tracked == 1
    await settle()
    with pytest.warns(ResourceWarning):
        del sock
    assert scene.watcher.statistics.tracked == 0
    gc.collect()
    assert guard() is None


async def test_following_stops_when_a_foreign_socket_is_found_closed(scene: StreamScene) -> None:
    sock = await scene.dial(socket.socket)
    scene.follow(sock)
    sock.close()
    scene.kernel.change(ON_ETHERNET)
    await until(lambda: scene.watcher.statistics.tracked == 0)
    assert scene.kernel.binds == []


async def test_a_forgotten_tls_transport_is_not_kept_alive(tls_scene: StreamScene) -> None:
    reader, writer = await tls_scene.open(tls=True)
    tls_scene.exits.pop_all()
    tls_scene.guards.clear()
    writer.close()
    await writer.wait_closed()
    del reader, writer
    await until(lambda: gc.collect() >= 0 and tls_scene.sockets[0]() is None)


@pytest.mark.parametrize("reading", [UNPLUGGED, CELLULAR_WORKS])
async def test_forgotten_followers_are_left_alone_by_their_timers(scene: StreamScene, reading: Network) -> None:
    scene.change(network(CELLULAR, BY_WIFI))
    connected = await scene.open()
    scene.change(reading)
    scene.watcher.forget_followers()
    scene.wait(2 * LATEST)
    assert await works(connected)


async def test_a_connection_that_is_being_closed_is_not_told_of_it(scene: StreamScene) -> None:
    sock = await scene.dial()
    guard = scene.follow(sock)
    transport, protocol = await scene.loop.create_connection(Buffered, sock=sock)
    guard.attach(transport)
    scene.kernel.change(ON_ETHERNET)
    transport.close()
    scene.watcher.refresh()
    async with asyncio.timeout(20):
        assert await protocol.lost is None


async def test_an_end_within_the_protocols_own_callback(scene: StreamScene) -> None:
    class Curious(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            scene.kernel.change(ON_ETHERNET)
            scene.watcher.refresh()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    sock = await scene.dial()
    guard = scene.follow(sock)
    transport, protocol = await scene.loop.create_connection(Curious, sock=sock)
    guard.attach(transport)
    transport.write(b"hello\n")
    async with asyncio.timeout(20):
        assert await protocol.lost is guard.error


async def test_sendfile_that_is_under_way_ends(scene: StreamScene, tmp_path: FilePath) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(32 << 20))
    _, writer = await scene.open()
    scene.accepted[0].pause_reading()
    with path.open("rb") as file:
        try:
            sending = asyncio.ensure_future(scene.loop.sendfile(writer.transport, file))
            await settle()
        except NotImplementedError:
            pytest.skip("this loop has no sendfile")
        if sending.done() and isinstance(sending.exception(), NotImplementedError):
            pytest.skip("this loop has no sendfile")
        scene.kernel.change(ON_ETHERNET)
        done, _ = await asyncio.wait([sending], timeout=20)
        assert done
        assert isinstance(sending.exception(), OSError)


async def test_many_streams_end_in_one_go(scene: StreamScene) -> None:
    connections = [await scene.open() for _ in range(100)]
    scene.kernel.change(ON_ETHERNET)
    for reader, _ in connections:
        await ended(reader)
    assert scene.watcher.statistics.ended == 100
    assert scene.watcher.statistics.tracked == 0


def test_a_followed_socket_tells_once() -> None:
    told: list[str] = []
    sock = FollowedSocket()
    sock.on_close(lambda: told.append("first"))
    sock.on_close(lambda: told.append("second"))
    file = sock.makefile("rb")
    sock.close()
    assert told == []
    file.close()
    sock.close()
    assert told == ["first", "second"]
    sock.on_close(lambda: told.append("late"))
    assert told == ["first", "second", "late"]


def test_a_followed_socket_tells_when_it_is_detached() -> None:
    told: list[int] = []
    sock = FollowedSocket()
    sock.on_close(lambda: told.append(sock.fileno()))
    socket.close(sock.detach())
    assert told == [-1]


async def test_what_has_been_announced_but_not_read_when_following_begins_counts(scene: StreamScene) -> None:
    """Reading the event shows the guard a network before it knows its own location."""
    with scene.watcher.hold():
        sock = await scene.dial()
        scene.kernel.change(ON_ETHERNET)
        guard = scene.follow(sock)
    assert guard.error is not None
    sock.close()


async def test_a_change_that_is_none_of_its_own_is_announced_when_following_begins(scene: StreamScene) -> None:
    with scene.watcher.hold():
        sock = await scene.dial()
        scene.kernel.change(network(WIFI, BY_WIFI, ETHERNET, BY_ETHERNET))
        guard = scene.follow(sock)
    assert guard.following
    scene.kernel.change(ON_ETHERNET)
    await until(lambda: guard.error is not None)
    sock.close()
