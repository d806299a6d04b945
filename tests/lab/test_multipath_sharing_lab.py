"""Multipath connections share endpoints and routes, within one program and with other programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

import bindsock
from bindsock import kernel as kernels
from bindsock.kernel.linux import sockets as kernel_sockets
from bindsock.kernel.linux.mptcp import path_manager as path_manager_module
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.linux.mptcp.commands import Commands
from bindsock.kernel.linux.mptcp.path_manager import PathManager
from bindsock.kernel.linux.netlink import Channel, Message
from bindsock.model.network import Interface, IPAddress
from bindsock.testing.lab import Lab
from tests.lab.bridging import into_a_bridge
from tests.lab.multipath import (
    MOVING,
    Serve,
    Source,
    closing,
    counted_by_peer,
    endpoints,
    interfaces,
    lossless,
    path_manager,
    ping,
    program,
    serve,
    several,
    source,
)
from tests.waiting import until

__all__ = ["lossless", "path_manager", "serve", "source"]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP"),
]


async def test_the_end_of_one_connection_leaves_the_others_their_subflows(lab: Lab, path_manager: str, source: Source) -> None:
    async with several(source, 3) as connections:
        for uplink in ("eth0", "wifi0"):
            lab.default(uplink)
            await until(lambda uplink=uplink: all(interfaces(writer) == [uplink] for _, writer in connections))  # type: ignore[misc]
            for connected in connections:
                await ping(connected, b"y\n")
        for number in range(2):
            connections[number][1].transport.abort()
            await asyncio.sleep(0.2)
            for connected in connections[number + 1 :]:
                await ping(connected, b"z\n")
    await until(lambda: endpoints(lab) == "")


@pytest.mark.parametrize("change", [lambda lab: lab.down("wifi0"), lambda lab: lab.default("eth0")], ids=["down", "default"])
async def test_connections_move_without_listing_interfaces_or_guessing_them(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch, change: Callable[[Lab], None]
) -> None:
    """The kernel delays a list of the interfaces until a change of any of them is over, and Python keeps all threads waiting."""
    listed: list[str] = []
    wrong: list[OSError] = []
    ask, list_interfaces = Channel.ask, socket.if_nameindex

    def counted() -> list[tuple[int, str]]:
        listed.extend(frame.name for frame in traceback.extract_stack() if "/bindsock/kernel/" in frame.filename)
        return list_interfaces()

    def asked(channel: Channel, kind: int, body: bytes) -> Message:
        try:
            return ask(channel, kind, body)
        except OSError as error:
            wrong.append(error)
            raise

    async with several(source, 3) as connections:
        monkeypatch.setattr(socket, "if_nameindex", counted)
        monkeypatch.setattr(Channel, "ask", asked)
        change(lab)
        await until(lambda: all(interfaces(writer) == ["eth0"] for _, writer in connections))
        for connected in connections:
            await ping(connected, b"y\n")
    await until(lambda: endpoints(lab) == "")
    assert (listed, wrong) == ([], [])


async def test_what_was_written_before_the_end_arrives(lab: Lab, path_manager: str) -> None:
    """The kernel sends it after close(), over a subflow that must not be removed."""
    lab.vpn_up("metric")
    size = 1 << 20
    with lab.inside("server"):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.bind((lab.server.ipv4, 0))
        listener.listen()
    received = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await asyncio.sleep(0.5)
        received.set_result(len(await reader.read()))
        writer.close()

    server = await asyncio.start_server(serve, sock=listener, limit=4096)
    connected = await bindsock.open_connection(*listener.getsockname(), multipath=True)
    await ping(connected, b"x\n")
    lab.down("wifi0")
    await until(lambda: interfaces(connected[1]) == ["eth0"])
    connected[1].write(bytes(size))
    connected[1].close()
    await connected[1].wait_closed()
    assert await asyncio.wait_for(received, 20) == size
    await until(lambda: endpoints(lab) == "")
    server.close()


async def test_a_pinned_connection_beside_one_that_moves(lab: Lab, path_manager: str, source: Source) -> None:
    free = await bindsock.open_connection(*source.address, multipath=True)
    pinned = await bindsock.open_connection(*source.address, multipath=True, interface="wifi0")
    with closing(free[1]), closing(pinned[1]):
        for connected in (free, pinned):
            await ping(connected, b"x\n")
        lab.default("eth0")
        await until(lambda: interfaces(free[1]) == ["eth0"])
        lab.metric("wifi0", 900)
        await until(lambda: (set(interfaces(free[1])), set(interfaces(pinned[1]))) == ({"eth0"}, {"wifi0"}))
        for connected in (free, pinned):
            await ping(connected, b"y\n")
        lab.default("wifi0")
        await until(lambda: (set(interfaces(free[1])), set(interfaces(pinned[1]))) == ({"wifi0"}, {"wifi0"}))
        for connected in (free, pinned):
            await ping(connected, b"z\n")
        assert len(source.writers) == 2


RIDER = """
import asyncio, sys
import bindsock
async def main():
    reader, writer = await bindsock.open_connection(sys.argv[1], int(sys.argv[2]), multipath=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        writer.write(line.encode())
        print((await asyncio.wait_for(reader.readline(), 20)).decode().strip(), flush=True)
    writer.close()
    await writer.wait_closed()
asyncio.run(main())
"""


async def test_the_end_of_one_program_leaves_another_its_subflow(lab: Lab, source: Source) -> None:
    async with program(RIDER, *source.address) as (first, one), program(RIDER, *source.address) as (second, other):
        for lines in (one, other):
            lines.tell("before")
            assert await lines.next() == "before"
        lab.down("wifi0")
        for lines in (one, other):
            lines.tell("after")
            assert await lines.next() == "after"
        assert first.stdin is not None
        first.stdin.close()
        assert await asyncio.wait_for(first.wait(), 20) == 0
        other.tell("alone")
        assert await other.next() == "alone"
        assert second.returncode is None


FORKER = f"""{MOVING}
def subflows(writer):
    return [subflow for subflow in bindsock.multipath_of(writer).subflows if subflow.interface == "eth0"]
async def still(reader, writer):
    writer.write(b"still\\n")
    print((await asyncio.wait_for(reader.readline(), 20)).decode().strip(), flush=True)
    writer.transport.abort()
    await asyncio.sleep(0)
runner = asyncio.Runner()
connected = runner.run(moved())
before = subflows(connected[1])
# Not within a coroutine: a fork of that cannot end as programs do, since its loop is not the running one (Python 3.14).
child = os.fork()
if not child:
    runner.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert subflows(connected[1]) == before != []
runner.run(still(*connected))
runner.close()
"""


async def test_the_end_of_a_fork_is_not_the_end_of_its_parent(lab: Lab, source: Source) -> None:
    async with program(FORKER, *source.address) as (process, lines):
        assert await lines.next() == "connected"
        lab.down("wifi0")
        assert await lines.next() == "still"
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_an_endpoint_without_an_interface_speaks_against_multipath(
    lab: Lab, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """Its subflows are unbound: they follow the routes into the tunnel."""
    lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "subflow")
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        connected = await bindsock.open_connection(*source.address, multipath=True)
        with closing(connected[1]):
            await ping(connected, b"x\n")
            assert not bindsock.multipath_of(connected[1])
    assert tap.packets == []
    assert "endpoint without an interface" in caplog.text


async def test_an_address_that_moves_into_a_bridge_ends_the_connection(lab: Lab, path_manager: str, source: Source) -> None:
    """Its subflow is bound to the old interface. Unlike a plain TCP socket, it cannot be bound again."""
    lab.vpn_down()
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        into_a_bridge(lab)
        with pytest.raises(bindsock.InterfaceChanged):
            async with asyncio.timeout(20):
                await connected[0].readline()


async def _connected(source: Source, interface: Interface) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP)
    sock.setblocking(False)
    kernels.current().bind(sock, interface)
    with contextlib.suppress(BlockingIOError):
        sock.connect(source.address)
    await until(lambda: bool(select.select([], [sock], [], 0)[1]))
    return sock


def _uplinks() -> tuple[Interface, Interface]:
    """wifi0 and eth0."""
    wifi, ethernet = (kernels.current().network().named(name) for name in ("wifi0", "eth0"))
    assert wifi is not None
    assert ethernet is not None
    return wifi, ethernet


def _fail(error: OSError) -> None:
    raise error


def _removed(paths: PathManager, sock: socket.socket, address: IPAddress) -> bool | OSError:
    """Remove a lost subflow."""
    found: list[bool | OSError] = []
    known = paths.remove(sock, address, "lost", found.append)
    return found[0] if known is None else known


def _waiting(paths: PathManager) -> bool:
    """Sweep; whether something is left."""
    found: list[bool] = []
    paths.sweep(found.append)
    return found[0]


def _held(monkeypatch: pytest.MonkeyPatch, command: str) -> tuple[threading.Event, threading.Event]:
    """Let a command to a path manager wait: an event that it has begun in a thread, and one that lets it go on."""
    begun, release = threading.Event(), threading.Event()
    original = getattr(Commands, command)

    def held(self: Commands, *arguments: Any, **keywords: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert release.wait(20)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Commands, command, held)
    return begun, release


def _netlink_sockets() -> int:
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()
    inodes = {line.split()[9] for line in lines[1:]}
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(f"socket:[{inode}]" in opened for inode in inodes)


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_no_socket_stays_open_while_another_program_needs_the_endpoint(lab: Lab, path_manager: str, serve: Serve) -> None:
    """It may need it for hours."""
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    sock, others = await _connected(source, wifi), await _connected(source, wifi)
    streams = [await asyncio.open_connection(sock=connected) for connected in (sock, others)]
    before = _netlink_sockets()
    paths, second = PathManager(), None
    with closing(streams[1][1]):
        with closing(streams[0][1]):
            for each in streams:
                await ping(each, b"x\n")
            paths.register(sock)
            second = paths.add(sock, ethernet, _fail)
            for opened in (sock, others):
                await until(lambda s=opened: second in [subflow.local for subflow in paths.subflows(s) or ()])  # type: ignore[misc]
            assert _netlink_sockets() > before
        assert paths.release(sock)
        assert _waiting(paths)
        assert _netlink_sockets() == before
    await until(lambda: not _waiting(paths))
    paths.close()


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_no_socket_stays_open_after_a_dial_that_failed(lab: Lab, path_manager: str) -> None:
    """It has asked for the endpoints."""
    async with bindsock.TransportFactory() as factory:
        with pytest.raises(ConnectionRefusedError):
            await factory.open_connection(lab.server.ipv4, 1)
        before = _netlink_sockets()
        with pytest.raises(ConnectionRefusedError):
            await factory.open_connection(lab.server.ipv4, 1, multipath=True)
        await until(lambda: _netlink_sockets() == before)


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_a_connection_ends_while_its_endpoint_is_being_added(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = _held(monkeypatch, "add_endpoint")
    added: list[int] = []
    add = Commands.add_endpoint

    def counted(self: Commands, address: IPAddress, index: int) -> None:
        add(self, address, index)
        added.append(index)

    monkeypatch.setattr(Commands, "add_endpoint", counted)
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.default("eth0")
        await until(begun.is_set)
    await asyncio.sleep(0)  # the transport closes its socket
    release.set()
    await until(lambda: added == [lab.index("eth0")])
    await until(lambda: endpoints(lab) == "")


@pytest.mark.parametrize("path_manager", ["userspace"], indirect=True)
async def test_the_loop_goes_on_while_the_userspace_path_manager_waits(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for tens of milliseconds while any program removes an endpoint from the in-kernel one."""
    begun, release = _held(monkeypatch, "tell")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.default("eth0")
        await until(begun.is_set)
        await ping(connected, b"y\n")
        assert interfaces(connected[1]) == ["wifi0"]
        release.set()
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"z\n")


@pytest.mark.parametrize("path_manager", ["userspace"], indirect=True)
async def test_a_connection_ends_while_its_subflow_is_being_ordered(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bindsock")
    begun, release = _held(monkeypatch, "tell")
    stays, ends = [await bindsock.open_connection(*source.address, multipath=True) for _ in range(2)]
    with closing(stays[1]), closing(ends[1]):
        for connected in (stays, ends):
            await ping(connected, b"x\n")
        lab.default("eth0")
        await until(begun.is_set)
        ends[1].transport.abort()
        await until(lambda: ends[1].get_extra_info("socket").fileno() == -1)
        release.set()
        await until(lambda: interfaces(stays[1]) == ["eth0"])
        await ping(stays, b"y\n")
    assert "cannot" not in caplog.text


async def test_a_lost_subflow_stays_while_nothing_can_tell_the_peer(lab: Lab, path_manager: str, serve: Serve) -> None:
    """Otherwise the peer would count it for minutes, and refuse another one."""
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    sock = await _connected(source, wifi)
    first = ip_address(sock.getsockname()[0])
    streams = await asyncio.open_connection(sock=sock)
    with closing(streams[1]):
        await ping(streams, b"x\n")
        paths = PathManager()
        paths.register(sock)
        second = paths.add(sock, ethernet, _fail)

        def addresses() -> list[IPAddress]:
            return [subflow.local for subflow in paths.subflows(sock) or ()]

        await until(lambda: addresses() == [first, second])
        paths.arrived(sock, second)
        lab.down("wifi0")
        lab.down("eth0")
        assert not _removed(paths, sock, first)
        assert addresses() == [first, second]
        lab.up("eth0")
        lab.wait_until_running("eth0")
        assert _removed(paths, sock, first)
        await until(lambda: addresses() == [second])
        await ping(streams, b"y\n")
    paths.release(sock)
    await until(lambda: not _waiting(paths))
    paths.close()


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_a_subflow_comes_back_when_the_peer_has_had_time_to_end_the_lost_one(
    lab: Lab, path_manager: str, serve: Serve
) -> None:
    """Both have the number 0 if their address is the first: the peer would end the new one, too."""
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    sock = await _connected(source, wifi)
    first = ip_address(sock.getsockname()[0])
    streams = await asyncio.open_connection(sock=sock)
    with closing(streams[1]):
        await ping(streams, b"x\n")
        now = 0.0
        paths = PathManager(clock=lambda: now)
        paths.register(sock)
        second = paths.add(sock, ethernet, _fail)

        def addresses() -> list[IPAddress]:
            return sorted(subflow.local for subflow in paths.subflows(sock) or ())

        await until(lambda: addresses() == [first, second])
        paths.arrived(sock, second)
        assert _removed(paths, sock, first)
        await until(lambda: addresses() == [second])
        assert paths.add(sock, wifi, _fail) == first
        assert str(first) not in endpoints(lab)
        now = 1.0
        assert paths.add(sock, wifi, _fail) == first
        await until(lambda: addresses() == [first, second])
        await ping(streams, b"y\n")
    paths.release(sock)
    await until(lambda: not _waiting(paths))
    paths.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_the_peer_is_not_told_that_an_address_is_gone_that_is_only_left(
    lab: Lab, path_manager: str, serve: Serve, family: socket.AddressFamily
) -> None:
    """A peer that is slow to act on that would also end the subflow that comes back, whose number is the same."""
    source = await serve(family=family)

    def told() -> int:
        with lab.inside("server"):
            names, values = (line.split() for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()[-2:])
        assert names[0] == "MPTcpExt:"
        return sum(int(value) for name, value in zip(names, values, strict=True) if name in ("RmAddr", "RmAddrDrop"))

    async with several(source, 3) as connections:
        for uplink, other in [("eth0", "wifi0"), ("wifi0", "eth0")] * 2:
            lab.default(uplink)
            for connected in connections:
                await until(lambda c=connected, u=uplink: interfaces(c[1]) == [u])  # type: ignore[misc]
                await ping(connected, b"y\n")
            await until(lambda other=other: lab.address(other, family) not in endpoints(lab))  # type: ignore[misc]
        assert told() == 0


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_the_loop_goes_on_while_an_endpoint_is_removed(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes some 10 ms for that, and lets every other order wait."""
    begun, release = _held(monkeypatch, "remove_endpoint")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        for uplink in ("eth0", "wifi0"):
            lab.default(uplink)
            await until(lambda uplink=uplink: interfaces(connected[1]) == [uplink])  # type: ignore[misc]
        await until(begun.is_set)
        await ping(connected, b"meanwhile\n")
        lab.default("eth0")
        await ping(connected, b"ordered\n")
        assert interfaces(connected[1]) == ["wifi0"]
        release.set()
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"moved\n")


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_a_connect_is_cancelled_while_the_endpoints_are_read(
    lab: Lab, path_manager: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = _held(monkeypatch, "endpoints")
    connecting = asyncio.create_task(bindsock.open_connection(*source.address, multipath=True))
    await until(begun.is_set)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    release.set()
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        assert bindsock.multipath_of(connected[1]).real


@pytest.mark.parametrize("late", [False, True], ids=["listed", "joined a moment later"])
@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_nothing_of_another_programs_subflow_enters_the_tunnel_as_its_endpoint_goes(
    lab: Lab, path_manager: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    lab.vpn_up("metric")
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    with lab.tap(interface="tun0", protocol="tcp") as tap, contextlib.ExitStack() as stack:
        connected = []
        for _ in range(2):
            sock = await _connected(source, wifi)
            streams = await asyncio.open_connection(sock=sock)
            stack.enter_context(closing(streams[1]))
            await ping(streams, b"x\n")
            connected.append((sock, streams))
        (ours, our_streams), (theirs, their_streams) = connected
        paths = PathManager()
        paths.register(ours)
        address = paths.add(ours, ethernet, _fail)

        def are_at(sock: socket.socket, present: bool) -> bool:
            return any(subflow.local == address for subflow in paths.subflows(sock) or ()) == present

        await until(lambda: are_at(ours, True) and are_at(theirs, True))
        if late:
            other = mptcp.token(theirs)
            listing = PathManager._list_subflows
            monkeypatch.setattr(
                PathManager, "_list_subflows", lambda self: [each for each in listing(self) if each.token != other]
            )
        assert _removed(paths, ours, address)
        await until(lambda: are_at(ours, False) and are_at(theirs, False) and endpoints(lab) == "")
        for streams in (our_streams, their_streams):
            await ping(streams, b"y\n")
    paths.close()
    assert [packet for packet in tap.packets if packet.outgoing and not packet.flags & 4] == []


async def test_nothing_enters_the_tunnel_if_an_interface_comes_up_as_its_subflow_is_removed(
    lab: Lab, path_manager: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would end the subflow in an orderly way, and answer the peer's FIN by the routing table."""
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    lab.vpn_up("metric")
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        sock = await _connected(source, wifi)
        streams = await asyncio.open_connection(sock=sock)
        with closing(streams[1]):
            await ping(streams, b"x\n")
            paths = PathManager()
            paths.register(sock)
            second = paths.add(sock, ethernet, _fail)

            def addresses() -> list[IPAddress]:
                return sorted(subflow.local for subflow in paths.subflows(sock) or ())

            await until(lambda: second in addresses() and len(addresses()) == 2)
            # It was down a moment ago.
            monkeypatch.setattr(kernel_sockets, "is_running", lambda index: index != ethernet.index)
            assert _removed(paths, sock, second)
            await until(lambda: second not in addresses())
            await until(lambda: not served(lab, second), seconds=20)
            await ping(streams, b"y\n")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
        paths.release(sock)
        await until(lambda: not _waiting(paths))
    paths.close()
    assert [packet for packet in tap.packets if packet.outgoing and not packet.flags & 4] == []


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_an_endpoint_is_not_removed_while_another_program_orders_a_subflow_from_it(
    lab: Lab, path_manager: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_manager_module, "_ALONE_WITHIN", 20.0)
    source = await serve(family=socket.AF_INET6)
    wifi, ethernet = _uplinks()
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            sock = await _connected(source, wifi)
            streams = await asyncio.open_connection(sock=sock)
            stack.enter_context(closing(streams[1]))
            await ping(streams, b"x\n")
            paths = PathManager()
            paths.register(sock)
            made.append((sock, streams, paths))
        (ours, _, our_paths), (theirs, their_streams, their_paths) = made
        address = our_paths.add(ours, ethernet, _fail)

        def have_subflows(number: int) -> bool:
            return sum(any(s.local == address for s in paths.subflows(sock) or ()) for sock, _, paths in made) == number

        await until(lambda: have_subflows(2))
        for sock, _, paths in made:
            paths._reset(sock, paths._remaining(sock, address))
        await until(lambda: have_subflows(0))
        # A peer that still counts the subflows would refuse the next ones, and nobody here orders them again.
        served = [writer.get_extra_info("socket") for writer in source.writers]
        await until(lambda: counted_by_peer(source) == [1, 1] and not any(map(mptcp.addresses_ending, served)))
        needing = PathManager._needing
        ordering = threading.Thread(target=their_paths.add, args=(theirs, ethernet, _fail))

        def asked_as_they_order(self: PathManager, *arguments: Any, **keywords: Any) -> set[int]:
            found = needing(self, *arguments, **keywords)
            if self is our_paths:
                ordering.start()
                ordering.join(0.05)
            return found

        monkeypatch.setattr(PathManager, "_needing", asked_as_they_order)
        our_paths.sweep(lambda waiting: None)
        monkeypatch.undo()
        await asyncio.to_thread(ordering.join)
        await until(lambda: have_subflows(2), seconds=20)
        await ping(their_streams, b"y\n")
        assert have_subflows(2)
    their_paths.release(theirs)
    await until(lambda: not _waiting(their_paths))
    assert endpoints(lab) == ""
    for _, _, paths in made:
        paths.close()


def served(lab: Lab, client: IPAddress) -> list[str]:
    """The server's TCP connections with a client's address, as lines of ``/proc/net/tcp6``."""
    words = struct.unpack("=4I", client.packed)
    remote = "".join(f"{word:08X}" for word in words)
    with lab.inside("server"):
        lines = Path("/proc/thread-self/net/tcp6").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[2].startswith(remote)]
