"""Connections that are replaced: real transports over loopback, on a scripted network. Each interface has its own address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar, cast

import pytest
import pytest_asyncio

from bindsock.dial.dialer import PathChanged
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.errors import InterfaceChanged
from bindsock.model.decision import Path
from bindsock.model.network import IPAddress, Network
from bindsock.options import LIMIT, ConnectOptions
from bindsock.reconnect import connecting
from bindsock.reconnect.controller import Controller
from bindsock.reconnect.machine import State
from bindsock.reconnect.open import create_replaceable, open_replaceable
from bindsock.reconnect.transport import ReplaceableTransport
from bindsock.stream.follower import PathFollower
from bindsock.stream.viability import ROUTE_GRACE, STALL_GRACE
from bindsock.testing import network
from tests.scene import Scene
from tests.stepped_loop import SteppedLoop
from tests.tls import tls_client_context, tls_server_context
from tests.waiting import settle, until

T = TypeVar("T")

PEER = ip_address("198.51.100.7")
ADDRESSES = {"wifi0": "127.0.0.1", "eth0": "127.0.0.2", "wwan0": "127.0.0.3"}
NAMES = {address: name for name, address in ADDRESSES.items()}


def reading(*names: str, unplugged: str | None = None, routeless: str | None = None) -> Network:
    """A network with these interfaces up, best first.

    :param unplugged: the name of an interface without carrier
    :param routeless: the name of an interface without a default route
    """
    lines = []
    for index, (name, address) in enumerate(ADDRESSES.items(), 2):
        up = name in names
        state = f"{address}/8 {'no-carrier' if name == unplugged else ''}" if up else "down"
        lines.append(f"{index}: {name} wired {state}")
        if up and name != routeless:
            lines.append(f"default via 127.0.0.254 dev {name} metric {names.index(name)}")
    return network(*lines)


@dataclass
class Dialled:
    sock: socket.socket
    address: IPAddress
    path: Path | None


class Session:
    """One connection at the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.interface = NAMES[writer.get_extra_info("peername")[0]]
        self.lines: list[bytes] = []
        self.finished = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.error: Exception | None = None

    async def run(self, answer: Answer) -> None:
        try:
            while line := await self.reader.readline():
                self.lines.append(line)
                await answer(self, line)
        except OSError as error:
            self.error = error
        finally:
            self.finished.set()
            await self.may_close.wait()
            self.writer.close()

    def say(self, line: bytes) -> None:
        self.writer.write(line)


Answer = Callable[[Session, bytes], Awaitable[None]]


async def echo(session: Session, line: bytes) -> None:
    session.say(session.interface.encode() + b":" + line)


class ReplacingScene(Scene):
    """A scene with a server on loopback that records each connection."""

    def __init__(self, tls: bool) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(reading("wifi0", "eth0"), SteppedLoop(self.loop))
        self.tls = tls
        self.sessions: list[Session] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.answer: Answer = echo
        self.refuse_dials = 0
        self.dials = 0
        self.open: list[asyncio.Transport] = []
        self.server: asyncio.Server

    async def pass_until(self, condition: Callable[[], object]) -> None:
        """Advance the clock until the condition is true."""
        for _ in range(100):
            for _ in range(10):
                await settle()
                if condition():
                    return
            self.wait(0.1)
        raise AssertionError("it never came true")

    async def listen(self) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            session = Session(reader, writer)
            self.sessions.append(session)
            await session.run(self.answer)

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls_server_context() if self.tls else None)

    async def dial(self) -> Dialled:
        self.dials += 1
        if self.refuse_dials:
            self.refuse_dials -= 1
            raise ConnectionRefusedError("refused by the test")
        decider = self.watcher.refresh()
        path = decider.path(PEER)
        if path is None:
            raise OSError("no interface")
        sock = FollowedSocket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind((ADDRESSES[path.interface], 0))
            await self.loop.sock_connect(sock, self.server.sockets[0].getsockname())
        except BaseException:
            sock.close()
            raise
        return Dialled(sock, PEER, path)

    async def complete(self, rest: Callable[[Any], Awaitable[T]]) -> T:
        """Do the same as :meth:`bindsock.dial.dialer.Dialer.complete`."""
        for _ in range(6):
            with contextlib.suppress(PathChanged):
                return await rest(await self.dial())
            self.watcher.statistics.redialled += 1
        raise AssertionError("the path changes for ever")

    async def attach(self, protocol: asyncio.BaseProtocol, sock: socket.socket) -> asyncio.Transport:
        options: dict[str, Any] = {"ssl": tls_client_context(), "server_hostname": "localhost"} if self.tls else {}
        try:
            transport, _ = await self.loop.create_connection(lambda: protocol, sock=sock, **options)
        except BaseException:
            sock.close()
            raise
        return transport

    def options(self, changed: dict[str, Any]) -> ConnectOptions:
        return ConnectOptions(**({"drain_timeout": 0.2, "reconnect_timeout": 5.0, "ssl": self.tls or None} | changed))

    async def streams(self, on_reconnect: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        limit = options.pop("limit", LIMIT)
        connect_options = self.options(options)
        before = len(self.sessions)
        reader, writer = await open_replaceable(
            self.watcher, self.loop, on_reconnect, self.complete, self.attach, connect_options, limit=limit
        )
        self.open.append(cast(asyncio.Transport, writer.transport))
        await until(lambda: len(self.sessions) > before)
        self.kept = (reader, writer)
        return reader, writer

    async def protocol(self, factory: Callable[[], Any], **options: Any) -> tuple[ReplaceableTransport, Any]:
        connect_options = self.options(options)
        before = len(self.sessions)
        transport, protocol = await create_replaceable(
            self.watcher, self.loop, factory, self.complete, self.attach, connect_options
        )
        self.open.append(transport)
        await until(lambda: len(self.sessions) > before)
        return transport, protocol

    async def close(self) -> None:
        for transport in self.open:
            transport.abort()
        self.server.close()
        await settle()
        for session in self.sessions:
            if not session.writer.is_closing():
                session.writer.transport.abort()
        self.watcher.forget_followers()
        self.watcher.stop()
        await settle()


def has_addresses() -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((ADDRESSES["wwan0"], 0))
        except OSError:
            return False
        return True


pytestmark = pytest.mark.skipif(not has_addresses(), reason="127.0.0.3 is no address of this system")


@pytest_asyncio.fixture(params=["plain", "tls"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[ReplacingScene]:
    made = ReplacingScene(request.param == "tls")
    await made.listen()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def plain() -> AsyncIterator[ReplacingScene]:
    made = ReplacingScene(False)
    await made.listen()
    yield made
    await made.close()


async def line(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(60):
        return await reader.readline()


def state_of(writer: asyncio.StreamWriter) -> State:
    return cast(Controller, cast(Any, writer.transport)._owner).state


async def arrived(reader: asyncio.StreamReader, count: int) -> None:
    """Wait until ``count`` bytes are in the reader's buffer."""
    await until(lambda: f" {count} bytes" in repr(reader))


class Log:
    """An on_reconnect hook that sends a greeting, and records its calls."""

    def __init__(self, returned: bytes | None = None) -> None:
        self.unread: list[bytes] = []
        self.answers: list[bytes] = []
        self.returned = returned

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> bytes | None:
        self.unread.append(unread)
        writer.write(b"again\n")
        answer = await reader.readline()
        if not answer:
            raise EOFError
        self.answers.append(answer)
        return self.returned


async def test_a_pending_readline_returns_the_new_connections_line(scene: ReplacingScene) -> None:
    hook = Log()
    reader, writer = await scene.streams(hook)
    writer.write(b"one\n")
    assert await line(reader) == b"wifi0:one\n"
    pending = asyncio.ensure_future(line(reader))
    await asyncio.sleep(0)
    scene.change(reading("eth0"))
    await until(lambda: len(hook.answers) == 1)
    writer.write(b"two\n")
    assert await pending == b"eth0:two\n"
    assert hook.answers == [b"eth0:again\n"]
    assert hook.unread == [b""]
    assert scene.watcher.statistics.reconnected == 1
    assert writer.get_extra_info("interface") == "eth0"
    assert writer.get_extra_info("sockname")[0] == ADDRESSES["eth0"]


async def test_a_path_that_goes_while_the_transport_is_made_is_noticed_though_the_hook_waits(
    plain: ReplacingScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = 0
    attach = plain.attach

    async def attach_and_lose(protocol: asyncio.BaseProtocol, sock: socket.socket) -> asyncio.Transport:
        nonlocal attached
        attached += 1
        transport = await attach(protocol, sock)
        if attached == 2:
            plain.change(reading("wwan0"))
        return transport

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        if writer.get_extra_info("sockname")[0] == ADDRESSES["eth0"]:
            await reader.readline()  # no line will arrive on this connection

    monkeypatch.setattr(plain, "attach", attach_and_lose)
    reader, writer = await plain.streams(hook)
    plain.change(reading("eth0", "wwan0"))
    await until(lambda: plain.watcher.statistics.reconnected == 1)
    writer.write(b"one\n")
    assert await line(reader) == b"wwan0:one\n"
    assert [session.interface for session in plain.sessions] == ["wifi0", "eth0", "wwan0"]


async def test_bytes_of_the_two_streams_are_not_joined(scene: ReplacingScene) -> None:
    hook = Log()
    reader, _writer = await scene.streams(hook)
    scene.sessions[0].say(b"half a li")
    pending = asyncio.ensure_future(line(reader))
    await arrived(reader, 9)
    scene.change(reading("eth0"))
    await until(lambda: len(hook.answers) == 1)
    scene.sessions[1].say(b"a whole one\n")
    assert await pending == b"a whole one\n"
    assert hook.unread == [b"half a li"]


async def test_the_hook_may_join_them(scene: ReplacingScene) -> None:
    hook = Log(b"half a li")
    reader, _writer = await scene.streams(hook)
    scene.sessions[0].say(b"half a li")
    pending = asyncio.ensure_future(line(reader))
    await arrived(reader, 9)
    scene.change(reading("eth0"))
    await until(lambda: len(hook.answers) == 1)
    scene.sessions[1].say(b"ne\n")
    assert await pending == b"half a line\n"


async def test_what_the_hook_left_unread_is_the_applications(scene: ReplacingScene) -> None:
    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        writer.write(b"first\nsecond\n")
        assert await reader.readline() == b"eth0:first\n"
        await arrived(reader, 12)

    reader, _writer = await scene.streams(hook)
    scene.change(reading("eth0"))
    assert await line(reader) == b"eth0:second\n"


async def test_writes_made_meanwhile_wait_in_order_and_never_reach_the_old_connection(scene: ReplacingScene) -> None:
    release = asyncio.Event()

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        writer.write(b"login\n")
        await release.wait()
        writer.write(b"ready\n")

    reader, writer = await scene.streams(hook)
    writer.write(b"before\n")
    assert await line(reader) == b"wifi0:before\n"
    scene.change(reading("eth0"))
    for number in range(100):
        writer.write(b"%d\n" % number)
    await until(lambda: len(scene.sessions) == 2)
    writer.writelines([b"and ", b"more\n"])
    await settle()
    release.set()
    await until(lambda: scene.sessions[1].lines[-1:] == [b"and more\n"])
    assert scene.sessions[0].lines == [b"before\n"]
    assert scene.sessions[1].lines == [b"login\n", b"ready\n", *(b"%d\n" % n for n in range(100)), b"and more\n"]


async def test_drain_blocks_while_there_is_no_connection(scene: ReplacingScene) -> None:
    release = asyncio.Event()

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        await release.wait()

    _reader, writer = await scene.streams(hook)
    writer.transport.set_write_buffer_limits(1000)
    scene.change(reading("eth0"))
    writer.write(bytes(999) + b"\n")
    await writer.drain()
    writer.write(b"one too many\n")
    drain = asyncio.ensure_future(writer.drain())
    await settle()
    assert not drain.done()
    assert writer.transport.get_write_buffer_size() == 1013
    release.set()
    async with asyncio.timeout(60):
        await drain
    await until(lambda: scene.sessions[1].lines[-1:] == [b"one too many\n"])


async def test_a_better_path_is_taken_when_it_stands_and_nothing_on_its_way_is_lost(scene: ReplacingScene) -> None:
    release = asyncio.Event()

    async def slowly(session: Session, request: bytes) -> None:
        await release.wait()
        await echo(session, request)

    scene.answer = slowly
    reader, writer = await scene.streams(Log())
    writer.write(b"request\n")
    await until(lambda: bool(scene.sessions[0].lines))
    scene.change(reading("eth0", "wifi0"))
    await until(lambda: state_of(writer) is State.DRAINING)
    release.set()
    assert await line(reader) == b"wifi0:request\n", "the answer that was on its way"
    scene.wait(0.2)  # over TLS, the server does not learn of the end
    writer.write(b"next\n")
    assert await line(reader) == b"eth0:next\n"
    assert scene.sessions[0].error is None, "the server sees a farewell, not a reset"


async def test_a_better_path_that_does_not_answer_leaves_the_connection_untouched(scene: ReplacingScene) -> None:
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.refuse_dials = 1000
    scene.change(reading("eth0", "wifi0"))
    await scene.pass_until(lambda: scene.dials > 2)
    writer.write(b"still here\n")
    assert await line(reader) == b"wifi0:still here\n"
    scene.change(reading("wifi0", "eth0"))
    await settle()
    dials = scene.dials
    scene.wait(60.0)
    await settle()
    assert scene.dials == dials, "what is no better any more is not dialled"
    assert hook.unread == []


@pytest.mark.parametrize("stalled", [{"unplugged": "wifi0"}, {"routeless": "wifi0"}])
async def test_off_a_stalled_path_it_dials_at_once(scene: ReplacingScene, stalled: dict[str, str]) -> None:
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.change(reading("wifi0", "eth0", **stalled))
    await until(lambda: scene.dials == 2)
    if "routeless" in stalled:
        await until(lambda: state_of(writer) is State.WAITING)
        writer.write(b"still here\n")
        assert await line(reader) == b"wifi0:still here\n"
        scene.wait(ROUTE_GRACE)
    await until(lambda: state_of(writer) is State.LIVE)
    writer.write(b"next\n")
    assert await line(reader) == b"eth0:next\n"
    assert hook.answers == [b"eth0:again\n"]


async def test_carrier_that_is_back_before_the_new_connection_is_ready_costs_nothing(scene: ReplacingScene) -> None:
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.refuse_dials = 1000
    for _ in range(3):
        scene.change(reading("wifi0", "eth0", unplugged="wifi0"))
        await scene.pass_until(lambda: scene.dials > 1)
        assert state_of(writer) is State.STALLED
        scene.change(reading("wifi0", "eth0"))
        assert state_of(writer) is State.LIVE
        scene.dials = 1
    writer.write(b"still here\n")
    assert await line(reader) == b"wifi0:still here\n"
    scene.wait(60.0)
    await settle()
    assert scene.dials == 1
    assert (hook.unread, scene.watcher.statistics.reconnected) == ([], 0)


async def test_a_route_that_is_away_for_a_moment_costs_nothing(scene: ReplacingScene) -> None:
    """A restart of systemd-networkd takes the default route away for some 90 ms."""
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.change(reading("wifi0", "eth0", routeless="wifi0"))
    await until(lambda: state_of(writer) is State.WAITING and len(scene.sessions) == 2)
    scene.wait(0.09)
    scene.change(reading("wifi0", "eth0"))
    assert state_of(writer) is State.LIVE
    scene.wait(60.0)
    await until(lambda: scene.sessions[1].finished.is_set())
    writer.write(b"still here\n")
    assert await line(reader) == b"wifi0:still here\n"
    assert (hook.unread, scene.sessions[1].lines) == ([], [])


async def test_a_stalled_path_that_dies_is_not_waited_for_any_longer(scene: ReplacingScene) -> None:
    reader, writer = await scene.streams(Log())
    scene.change(reading("wifi0", "eth0", routeless="wifi0"))
    await until(lambda: state_of(writer) is State.WAITING)
    scene.change(reading("eth0"))
    writer.write(b"next\n")
    assert await line(reader) == b"eth0:next\n"
    assert scene.dials == 2


async def test_a_new_connection_that_is_lost_while_the_old_path_is_waited_for_is_dialled_again(scene: ReplacingScene) -> None:
    reader, writer = await scene.streams(Log())
    scene.change(reading("wifi0", "eth0", "wwan0", routeless="wifi0"))
    await until(lambda: state_of(writer) is State.WAITING)
    scene.change(reading("wifi0", "wwan0", routeless="wifi0"))
    await until(lambda: scene.dials == 3)
    await until(lambda: state_of(writer) is State.WAITING)
    scene.wait(ROUTE_GRACE)
    writer.write(b"next\n")
    assert await line(reader) == b"wwan0:next\n"


async def test_a_connection_that_is_closed_is_given_up_when_it_is_stalled_for_long(plain: ReplacingScene) -> None:
    _, writer = await plain.streams(Log())
    plain.sessions[0].writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(bytes(16 << 20))
    writer.close()
    assert state_of(writer) is State.FINISHING
    plain.change(reading("wifi0", "eth0", unplugged="wifi0"))
    plain.wait(STALL_GRACE)
    with pytest.raises(InterfaceChanged, match="no carrier"):
        await writer.wait_closed()


async def test_a_better_path_is_left_alone_if_told_so(plain: ReplacingScene) -> None:
    reader, writer = await plain.streams(Log(), better_path="keep")
    plain.change(reading("eth0", "wifi0"))
    plain.wait(60.0)
    await settle()
    assert plain.dials == 1
    plain.change(reading("eth0"))
    writer.write(b"x\n")
    assert await line(reader) == b"eth0:x\n"


async def test_dials_are_tried_again(scene: ReplacingScene) -> None:
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.refuse_dials = 2
    scene.change(reading("eth0"))
    writer.write(b"x\n")
    pending = asyncio.ensure_future(line(reader))
    await scene.pass_until(pending.done)
    assert await pending == b"eth0:x\n"
    assert scene.dials == 4


async def test_it_gives_up_with_the_last_cause(scene: ReplacingScene) -> None:
    reader, writer = await scene.streams(Log(), reconnect_timeout=0.3)
    scene.refuse_dials = 1000
    pending = asyncio.ensure_future(line(reader))
    await asyncio.sleep(0)
    scene.change(reading("eth0"))
    await scene.pass_until(pending.done)
    with pytest.raises(InterfaceChanged) as caught:
        await pending
    assert caught.value.interface == "wifi0"
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    dials = scene.dials
    scene.wait(60.0)
    await settle()
    assert scene.dials == dials
    with pytest.raises(InterfaceChanged):
        await writer.wait_closed()


async def test_a_hook_that_raises_ends_the_connection_with_that_cause(scene: ReplacingScene) -> None:
    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        raise PermissionError("the session is over")

    reader, _ = await scene.streams(hook)
    scene.change(reading("eth0"))
    with pytest.raises(InterfaceChanged) as caught:
        await line(reader)
    assert isinstance(caught.value.__cause__, PermissionError)
    await until(lambda: all(session.finished.is_set() for session in scene.sessions))


async def test_kept_while_nothing_else_is_usable(scene: ReplacingScene) -> None:
    reader, writer = await scene.streams(Log())
    scene.change(reading())
    scene.wait(10.0)
    await settle()
    writer.write(b"x\n")
    assert await line(reader) == b"wifi0:x\n"
    scene.change(reading("eth0"))
    writer.write(b"y\n")
    assert await line(reader) == b"eth0:y\n"


async def test_a_second_change_while_the_hook_runs_starts_over(scene: ReplacingScene) -> None:
    calls: list[bytes] = []

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        calls.append(unread)
        if len(calls) == 1:
            await asyncio.Event().wait()
        writer.write(b"again\n")
        await reader.readline()

    reader, writer = await scene.streams(hook)
    scene.sessions[0].say(b"half")
    await arrived(reader, 4)
    scene.change(reading("eth0", "wwan0"))
    await until(lambda: len(calls) == 1)
    writer.write(b"held\n")
    scene.change(reading("wwan0"))
    assert await line(reader) == b"wwan0:held\n"
    assert calls == [b"half", b"half"], "the second hook is told what the first was"
    await until(lambda: scene.sessions[1].finished.is_set())


async def test_a_server_that_fails_while_the_hook_runs_is_dialled_again(scene: ReplacingScene) -> None:
    async def rude(session: Session, request: bytes) -> None:
        if len(scene.sessions) == 2:
            session.writer.transport.abort()
        else:
            await echo(session, request)

    scene.answer = rude
    hook = Log()
    reader, writer = await scene.streams(hook)
    scene.change(reading("eth0"))
    writer.write(b"x\n")
    pending = asyncio.ensure_future(line(reader))
    await scene.pass_until(lambda: len(scene.sessions) >= 3)
    assert await pending == b"eth0:x\n"


async def test_the_end_of_the_stream_is_the_applications_affair(scene: ReplacingScene) -> None:
    reader, _writer = await scene.streams(Log())
    scene.sessions[0].say(b"bye\n")
    scene.sessions[0].writer.close()
    assert await line(reader) == b"bye\n"
    assert await line(reader) == b""
    scene.change(reading("eth0"))
    scene.wait(10.0)
    await settle()
    assert scene.dials == 1


async def test_a_reset_is_the_applications_affair(plain: ReplacingScene) -> None:
    reader, _ = await plain.streams(Log())
    sock = plain.sessions[0].writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.sessions[0].writer.transport.abort()
    with pytest.raises(ConnectionResetError):
        await line(reader)
    assert plain.dials == 1


async def test_a_silent_death_is_a_loss_of_the_path(plain: ReplacingScene) -> None:
    """TCP_USER_TIMEOUT ends the connection with ETIMEDOUT, without any network event."""
    reader, writer = await plain.streams(Log())
    transport = cast(Any, writer.transport)
    connection = transport._connection
    connection.transport.abort()
    connection.connection_lost(TimeoutError(110, "timed out"))
    writer.write(b"x\n")
    assert await line(reader) == b"wifi0:x\n"
    assert plain.dials == 2


async def test_close_while_it_is_replaced_ends_it_at_once(scene: ReplacingScene) -> None:
    _, writer = await scene.streams(Log())
    scene.refuse_dials = 1000
    scene.change(reading("eth0"))
    await until(lambda: scene.dials > 1)
    writer.close()
    async with asyncio.timeout(60):
        await writer.wait_closed()
    await until(lambda: scene.watcher.statistics.tracked == 0)
    assert not scene.watcher.running


async def test_close_with_something_held_delivers_it_first(scene: ReplacingScene) -> None:
    async def answer(session: Session, request: bytes) -> None:
        if request == b"again\n":
            await echo(session, request)

    scene.answer = answer
    _reader, writer = await scene.streams(Log())
    scene.change(reading("eth0"))
    writer.write(b"last words\n")
    writer.close()
    async with asyncio.timeout(60):
        await writer.wait_closed()
    await until(lambda: len(scene.sessions) == 2 and scene.sessions[1].finished.is_set())
    assert scene.sessions[1].lines == [b"again\n", b"last words\n"]


async def test_half_closed_by_the_application_it_is_half_closed_again(plain: ReplacingScene) -> None:
    reader, writer = await plain.streams(Log())
    plain.change(reading("eth0"))
    writer.write(b"request\n")
    writer.write_eof()
    assert await line(reader) == b"eth0:request\n"
    assert await line(reader) == b""


class Lines(asyncio.Protocol):
    """Collects the received data, and repeats the given lines on a new connection."""

    def __init__(self, hook: str = "sync") -> None:
        self.hook = hook
        self.received = b""
        self.events: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self.stable: Any = None
        self.unread: bytes | None = None
        self.arrived = asyncio.Event()
        if hook == "coroutine":
            self.connection_replaced = self.replaced_slowly  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.stable = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrived.set()

    def connection_replaced(self, transport: asyncio.Transport, unread: bytes) -> Any:
        self.events.append("replaced")
        self.transport, self.unread = transport, unread
        transport.write(b"login\n")

    async def replaced_slowly(self, transport: asyncio.Transport, unread: bytes) -> None:
        self.events.append("replaced")
        self.transport, self.unread = transport, unread
        self.received = b""
        self.arrived.clear()
        transport.write(b"login\n")
        await self.arrived.wait()
        self.events.append("logged in")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.mark.parametrize("hook", ["sync", "coroutine"])
async def test_a_protocol_goes_on_with_its_stable_transport(scene: ReplacingScene, hook: str) -> None:
    transport, protocol = await scene.protocol(lambda: Lines(hook))
    transport.write(b"one\n")
    await until(lambda: protocol.received == b"wifi0:one\n")
    scene.change(reading("eth0"))
    transport.write(b"held\n")
    await until(lambda: b"held" in protocol.received)
    assert scene.sessions[1].lines == [b"login\n", b"held\n"]
    assert protocol.unread == b""
    # The transport passed to the hook is the stable one.
    scene.change(reading("wwan0"))
    await until(lambda: len(scene.sessions) == 3)
    protocol.transport.write(b"to the third\n")
    await until(lambda: scene.sessions[2].lines == [b"login\n", b"to the third\n"])
    assert protocol.events.count("made") == 1
    assert not protocol.lost.done()


async def test_a_protocol_is_paused_by_what_is_held_and_resumed(scene: ReplacingScene) -> None:
    transport, protocol = await scene.protocol(lambda: Lines())
    transport.set_write_buffer_limits(100, 50)
    scene.refuse_dials = 1
    scene.change(reading("eth0"))
    transport.write(bytes(100))
    assert "pause" not in protocol.events
    transport.write(b"\n")
    assert protocol.events[-1] == "pause"
    await scene.pass_until(lambda: "resume" in protocol.events)
    await until(lambda: len(scene.sessions) == 2 and len(scene.sessions[1].lines) == 2)
    # The new connection's transport also pauses the protocol, when the kept data is written to it.
    await until(lambda: protocol.events.count("pause") == protocol.events.count("resume"))


async def test_a_buffered_protocol_goes_on(scene: ReplacingScene) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(3)
            self.received = b""

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]

        def connection_replaced(self, transport: asyncio.Transport, unread: bytes) -> None:
            transport.write(b"again\n")

    transport, protocol = await scene.protocol(Buffered)
    transport.write(b"one\n")
    await until(lambda: protocol.received == b"wifi0:one\n")
    scene.change(reading("eth0"))
    await until(lambda: protocol.received == b"wifi0:one\neth0:again\n")


async def test_what_a_paused_protocol_has_not_read_is_told(plain: ReplacingScene) -> None:
    transport, protocol = await plain.protocol(lambda: Lines())
    transport.pause_reading()
    plain.sessions[0].say(b"nobody reads this\n")
    sock = transport.get_extra_info("socket").fileno()
    await until(lambda: select.select([sock], [], [], 0)[0])
    plain.change(reading("eth0"))
    await until(lambda: protocol.unread is not None)
    assert protocol.unread == b"nobody reads this\n"
    await until(lambda: plain.sessions[1].lines == [b"login\n"])
    await settle()
    assert protocol.received == b"", "it is still paused"
    transport.resume_reading()
    await until(lambda: protocol.received == b"eth0:login\n")


async def test_a_protocol_that_raises_ends_its_connection(scene: ReplacingScene) -> None:
    class Broken(Lines):
        def data_received(self, data: bytes) -> None:
            raise LookupError

    errors: list[dict[str, Any]] = []
    scene.loop.set_exception_handler(lambda loop, context: errors.append(context))
    _transport, protocol = await scene.protocol(Broken)
    scene.change(reading("eth0"))
    async with asyncio.timeout(60):
        assert isinstance(await protocol.lost, LookupError)
    assert errors
    await until(lambda: scene.watcher.statistics.tracked == 0)


async def test_abort_in_every_state_leaves_nothing_open(scene: ReplacingScene, descriptors: None) -> None:
    blocked = asyncio.Event()
    entered: list[State] = []

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        await blocked.wait()

    for wanted in (state for state in State if state is not State.CLOSED):
        scene.wait(1.0)  # many changes at once are read only after a quiet period
        scene.change(reading("wifi0", "eth0"))
        scene.refuse_dials = 0
        _, writer = await scene.streams(hook)
        session = scene.sessions[-1]
        session.may_close.clear()
        scene.refuse_dials = 1000 if wanted in (State.DIALLING, State.STALLED, State.RECONNECTING) else 0
        if wanted in (State.DIALLING, State.DRAINING):
            scene.change(reading("eth0", "wifi0"))
        elif wanted in (State.STALLED, State.WAITING):
            scene.change(reading("wifi0", "eth0", routeless="wifi0"))
        elif wanted in (State.RECONNECTING, State.RESUMING):
            scene.change(reading("eth0"))
        elif wanted is State.FINISHING:
            writer.write(bytes(1 << 20))
            writer.close()
        await until(lambda writer=writer, wanted=wanted: state_of(writer) is wanted)  # type: ignore[misc]
        entered.append(state_of(writer))
        writer.transport.abort()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(60):
                await writer.wait_closed()
        session.may_close.set()
    assert len(entered) == len(State) - 1
    await until(lambda: scene.watcher.statistics.tracked == 0)
    for session in scene.sessions:
        async with asyncio.timeout(60):
            await session.finished.wait()
        session.writer.close()
        with contextlib.suppress(OSError):
            await session.writer.wait_closed()
    scene.watcher.stop()
    own = asyncio.current_task()
    await until(lambda: not [t for t in asyncio.all_tasks() if t is not own and t.get_name().startswith("bindsock")])
    scene.sessions.clear()
    scene.open.clear()


def task_names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("bindsock")}


async def test_a_task_is_named_for_what_it_does_and_for_the_peer(plain: ReplacingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m asyncio ps`` shows it (Python 3.14)."""
    dialled, spoken = asyncio.Event(), asyncio.Event()
    dial = plain.dial

    async def slow() -> Dialled:
        await dialled.wait()
        return await dial()

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        await spoken.wait()

    dialled.set()
    monkeypatch.setattr(plain, "dial", slow)
    _, writer = await plain.streams(hook)
    assert task_names() == set()
    dialled.clear()
    plain.change(reading("eth0"))
    await until(lambda: task_names() == {"bindsock dial 198.51.100.7"})
    dialled.set()
    await until(lambda: task_names() == {"bindsock hook 198.51.100.7 eth0"})
    spoken.set()
    await until(lambda: task_names() == set())
    assert state_of(writer) is State.LIVE


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks come with Python 3.12")
async def test_eager_tasks_change_nothing(plain: ReplacingScene) -> None:
    """A dial may fail before ``create_task()`` returns, and a cancelled hook is still waited for."""
    running, most = 0, 0
    blocked = asyncio.Event()

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await blocked.wait()
        except asyncio.CancelledError:
            await settle()
            raise
        finally:
            running -= 1

    def eager(loop: asyncio.AbstractEventLoop, coroutine: Any, *, eager_start: bool = True, **options: Any) -> asyncio.Task[Any]:
        """uvloop passes ``eager_start=`` to every factory, but asyncio's own factory accepts it only since Python 3.13.3."""
        return asyncio.eager_task_factory(loop, coroutine, **options)  # type: ignore[attr-defined,no-any-return]

    plain.loop.set_task_factory(eager)
    plain.refuse_dials = 0
    _, writer = await plain.streams(hook)
    plain.refuse_dials = 2
    plain.change(reading("eth0"))
    await plain.pass_until(lambda: running == 1)
    plain.change(reading("wwan0"))
    await plain.pass_until(lambda: len(plain.sessions) == 3 and running == 1)
    blocked.set()
    await plain.pass_until(lambda: state_of(writer) is State.LIVE)
    assert most == 1


async def test_many_are_replaced_a_few_at_a_time(plain: ReplacingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "MAX_CONCURRENT_REDIALS", 4)
    now, most = 0, 0
    dial = plain.dial

    async def counted() -> Dialled:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await settle()
            return await dial()
        finally:
            now -= 1

    monkeypatch.setattr(plain, "dial", counted)
    connections = [await plain.streams(Log()) for _ in range(40)]
    most = 0
    plain.change(reading("eth0"))
    # Followers are called in turns of some milliseconds. One that was not called yet would still send by the old path.
    await plain.pass_until(
        lambda: all(w.get_extra_info("interface") == "eth0" or state_of(w) is not State.LIVE for _, w in connections)
    )
    for number, (_, writer) in enumerate(connections):
        writer.write(b"%d\n" % number)
    for number, (reader, _) in enumerate(connections):
        assert await line(reader) == b"eth0:%d\n" % number
    assert most == 4
    for _, writer in connections:
        writer.close()


async def test_a_forgotten_connection_is_not_kept_by_the_watcher(plain: ReplacingScene) -> None:
    transport, protocol = await plain.protocol(lambda: Lines())
    gone = weakref.ref(transport)
    transport.abort()
    await protocol.lost
    plain.open.clear()
    protocol.transport = protocol.stable = None
    del transport, protocol
    await settle()
    gc.collect()
    assert gone() is None


async def test_the_application_starts_tls_itself(plain: ReplacingScene) -> None:
    """STARTTLS: the hook starts TLS on each new connection, by asyncio's own functions."""
    tls = tls_client_context()

    async def upgrade(session: Session, request: bytes) -> None:
        if request == b"starttls\n":
            session.say(b"go ahead\n")
            await session.writer.start_tls(tls_server_context())
        else:
            await echo(session, request)

    plain.answer = upgrade

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        writer.write(b"starttls\n")
        assert await reader.readline() == b"go ahead\n"
        await settle()  # asyncio loses data that arrives before the server has called start_tls()
        await writer.start_tls(tls, server_hostname="localhost")
        writer.write(b"again\n")
        assert await reader.readline() == b"eth0:again\n"

    reader, writer = await plain.streams(hook)
    writer.write(b"starttls\n")
    assert await line(reader) == b"go ahead\n"
    await settle()
    await cast(Any, writer).start_tls(tls, server_hostname="localhost", ssl_shutdown_timeout=1.0)
    writer.write(b"secret\n")
    assert await line(reader) == b"wifi0:secret\n"
    assert writer.get_extra_info("ssl_object") is not None
    plain.change(reading("eth0"))
    writer.write(b"more\n")
    assert await line(reader) == b"eth0:more\n"
    assert writer.get_extra_info("ssl_object") is not None


async def test_a_hooks_reader_that_is_full_pauses_the_tls_that_the_hook_started(plain: ReplacingScene) -> None:
    tls = tls_client_context()
    paused = asyncio.Event()

    async def upgrade(session: Session, request: bytes) -> None:
        if request == b"starttls\n":
            session.say(b"go ahead\n")
            await session.writer.start_tls(tls_server_context())
        else:
            session.say(bytes(1 << 20) + b"\n")

    plain.answer = upgrade

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        writer.write(b"starttls\n")
        assert await reader.readline() == b"go ahead\n"
        await settle()  # asyncio loses data that arrives before the server has called start_tls()
        await writer.start_tls(tls, server_hostname="localhost")
        writer.write(b"more\n")
        await until(lambda: not cast(asyncio.Transport, writer.transport).is_reading())
        paused.set()
        assert await reader.readexactly((1 << 20) + 1) == bytes(1 << 20) + b"\n"

    _, writer = await plain.streams(hook)
    plain.change(reading("eth0"))
    async with asyncio.timeout(60):
        await paused.wait()
    await until(lambda: state_of(writer) is State.LIVE)


async def test_tls_that_is_ready_after_the_cut_lets_nothing_go_to_the_old_connection(plain: ReplacingScene) -> None:
    ready = asyncio.Event()

    async def start_tls(transport: asyncio.Transport, protocol: asyncio.Protocol, *_: Any) -> asyncio.Transport:
        await ready.wait()
        return transport

    hook = Log()
    reader, writer = await plain.streams(hook)
    transport = cast(ReplaceableTransport, writer.transport)
    starting = asyncio.ensure_future(transport.start_tls(start_tls, tls_client_context()))
    await asyncio.sleep(0)
    plain.refuse_dials = 1
    plain.change(reading("eth0"))
    writer.write(b"held\n")
    ready.set()
    with pytest.raises(InterfaceChanged, match="TLS"):
        await starting
    await plain.pass_until(lambda: plain.dials == 3)
    assert await line(reader) == b"eth0:held\n"
    assert plain.sessions[0].lines == []
    assert plain.sessions[1].lines == [b"again\n", b"held\n"]


@pytest.mark.parametrize("end", ["abort", "close"])
async def test_nothing_is_sent_on_a_new_connection_that_was_given_up_in_the_hook(scene: ReplacingScene, end: str) -> None:
    class GivingUp(Lines):
        def connection_replaced(self, transport: asyncio.Transport, unread: bytes) -> None:
            getattr(transport, end)()
            transport.write(b"after the end\n")

    _, protocol = await scene.protocol(GivingUp)
    scene.change(reading("eth0"))
    assert await protocol.lost is None
    # The new connection may have ended during its handshake, so that the server never saw it begin.
    await until(lambda: all(session.finished.is_set() for session in scene.sessions))
    await settle()
    assert not any(session.lines for session in scene.sessions)


async def test_a_hook_that_will_not_end_keeps_the_next_one_waiting(plain: ReplacingScene) -> None:
    let_go = asyncio.Event()
    running = most = 0

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()
        running -= 1

    reader, writer = await plain.streams(hook)
    for sessions, name in ((2, "eth0"), (3, "wwan0"), (4, "wifi0")):
        plain.change(reading(name))
        await until(lambda sessions=sessions: len(plain.sessions) == sessions)  # type: ignore[misc]
        await settle()
    let_go.set()
    await until(lambda: state_of(writer) is State.LIVE)
    writer.write(b"one\n")
    assert await line(reader) == b"wifi0:one\n"
    assert most == 1


async def test_a_connection_that_cannot_be_followed_is_replaced(plain: ReplacingScene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def refusing(*args: Any) -> PathFollower:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.ENOMEM, "refused by the test")
        return PathFollower(*args)

    reader, writer = await plain.streams(Log())
    monkeypatch.setattr("bindsock.reconnect.controller.PathFollower", refusing)
    plain.change(reading("eth0", "wwan0"))
    await plain.pass_until(lambda: plain.watcher.statistics.reconnected == 1)
    writer.write(b"one\n")
    assert await line(reader) == b"eth0:one\n"
    assert len(plain.sessions) == 3
    plain.change(reading("wwan0"))
    writer.write(b"two\n")
    assert await line(reader) == b"wwan0:two\n"


async def test_sendfile(scene: ReplacingScene, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"".join(b"%06d\n" % n for n in range(50000)))

    async def swallow(session: Session, request: bytes) -> None:
        pass

    scene.answer = swallow
    _reader, writer = await scene.streams(Log())
    transport = cast(ReplaceableTransport, writer.transport)
    with path.open("rb") as file:
        assert await transport.sendfile(scene.loop.sendfile, file, 7, 7 * 40000) == 7 * 40000
    await until(lambda: len(scene.sessions[0].lines) == 40000)
    assert scene.sessions[0].lines[0] == b"000001\n"
    assert scene.sessions[0].lines[-1] == b"040000\n"


async def test_sendfile_that_is_under_way_puts_a_better_path_off_and_ends_with_the_path(
    plain: ReplacingScene, tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 << 20))
    reader, writer = await plain.streams(Log())
    plain.sessions[0].writer.transport.pause_reading()  # type: ignore[attr-defined]
    transport = cast(ReplaceableTransport, writer.transport)
    with path.open("rb") as file:
        sending = asyncio.ensure_future(transport.sendfile(plain.loop.sendfile, file))
        await settle()
        plain.change(reading("eth0", "wifi0"))
        plain.wait(1.0)
        await settle()
        assert plain.dials == 1
        plain.change(reading("eth0"))
        done, _ = await asyncio.wait([sending], timeout=20)
        assert done
        assert isinstance(sending.exception(), OSError)
    writer.write(b"x\n")
    assert await line(reader) == b"eth0:x\n"


async def test_nothing_is_left_of_a_first_dial_that_fails(scene: ReplacingScene) -> None:
    gc.collect()  # of other tests
    before = len(os.listdir("/dev/fd"))
    scene.refuse_dials = 1
    with pytest.raises(ConnectionRefusedError):
        await scene.streams(Log())
    assert len(os.listdir("/dev/fd")) == before
    assert scene.watcher.statistics.tracked == 0
