"""Multipath connections in the laboratory: the byte stream itself moves, by either path manager or the system's endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import bindsock
from bindsock.kernel.linux import mptcp
from bindsock.testing.lab import Lab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP"),
]

SIZE = 50 << 20


class Source:
    """A server in the laboratory that sends a long stream whose digest is known, or echoes lines."""

    def __init__(self, lab: Lab, *, multipath: bool = True, family: socket.AddressFamily = socket.AF_INET) -> None:
        with lab.inside("server"):
            self.listener = socket.socket(family, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP if multipath else 0)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((lab.server.address(family), 0))
            self.listener.listen()
        self.address = self.listener.getsockname()[:2]
        self.block = os.urandom(1 << 20)
        self.digest = hashlib.sha256(self.block * (SIZE >> 20)).hexdigest()
        self.server: asyncio.Server | None = None
        self.rate = 0.0
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, sock=self.listener)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line == b"send\n":
                    for _ in range(SIZE >> 20):
                        writer.write(self.block)
                        await writer.drain()
                        await asyncio.sleep(self.rate)
                else:
                    writer.write(line)
        writer.close()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def source(lab: Lab) -> AsyncIterator[Source]:
    lab.vpn_up("metric")
    made = Source(lab)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(params=["kernel", "userspace"])
def path_manager(request: pytest.FixtureRequest, lab: Lab) -> str:
    """Which path manager the host has; it is a setting of its namespace."""
    Path("/proc/sys/net/mptcp/pm_type").write_text("1" if request.param == "userspace" else "0", encoding="ascii")
    return str(request.param)


@contextlib.contextmanager
def closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()


def endpoints(lab: Lab) -> str:
    return lab.ip("mptcp", "endpoint", "show").strip()


def interfaces(writer: asyncio.StreamWriter) -> list[str | None]:
    return [subflow.interface for subflow in bindsock.multipath_of(writer).subflows]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def ping(connected: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> None:
    reader, writer = connected
    writer.write(text)
    async with asyncio.timeout(10):
        assert await reader.readline() == text


async def test_50_mb_arrive_whole_across_switches(lab: Lab, path_manager: str, source: Source) -> None:
    source.rate = 0.01
    reader, writer = await bindsock.open_connection(*source.address, multipath=True)
    with closing(writer):
        assert bindsock.multipath_of(writer).real
        writer.write(b"send\n")
        digest, received, longest = hashlib.sha256(), 0, 0.0
        switches = [
            lambda: lab.down("wifi0"),
            lambda: lab.up("wifi0"),
            lambda: lab.default("eth0"),
            lambda: lab.carrier("eth0", False),
        ]
        last = time.perf_counter()
        async with asyncio.timeout(60):
            while received < SIZE:
                data = await reader.read(1 << 16)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
                assert data
                received += len(data)
                digest.update(data)
                if switches and received > (5 - len(switches)) * SIZE // 6:
                    switches.pop(0)()
        assert digest.hexdigest() == source.digest
        assert bindsock.statistics().ended == 0
        await until(lambda: interfaces(writer) == ["wifi0"])
        print(f"{path_manager}: longest stall {longest * 1000:.0f} ms")


async def test_it_follows_each_change_and_is_connected_once(lab: Lab, path_manager: str, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True)
    writer = connected[1]
    with closing(writer):
        await ping(connected, b"0\n")
        here, there = "wifi0", "eth0"
        for number in range(8):
            if number % 2:
                lab.default(there)
            else:
                lab.down(here)
            await until(lambda there=there: interfaces(writer) == [there])
            await ping(connected, b"%d\n" % number)
            assert bindsock.interface_of(writer) == there
            if not number % 2:
                lab.up(here)
                lab.default(there)
            await ping(connected, b"more\n")
            here, there = there, here
        assert len(source.writers) == 1
        assert bindsock.statistics().ended == 0
        peers = mptcp.states(source.writers[0].get_extra_info("socket")) or ()
        assert len(peers) <= 2, "the server still counts subflows that are no more"


async def test_kept_while_there_is_nothing_and_resumed_when_there_is(lab: Lab, path_manager: str, source: Source) -> None:
    lab.down("eth0")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        lab.down("wifi0")
        pending = asyncio.create_task(ping(connected, b"meanwhile\n"))
        await asyncio.sleep(0.2)
        assert not pending.done()
        lab.up("eth0")
        await pending


async def test_ipv6(lab: Lab, path_manager: str) -> None:
    lab.vpn_up("policy")
    source = Source(lab, family=socket.AF_INET6)
    await source.start()
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        lab.remove_addresses("wifi0")
        await ping(connected, b"after\n")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
    await source.close()


async def test_what_was_added_to_the_system_is_removed(lab: Lab, source: Source) -> None:
    connections = [await bindsock.open_connection(*source.address, multipath=True) for _ in range(2)]
    for connected in connections:
        await ping(connected, b"x\n")
    lab.down("wifi0")
    for _, writer in connections:
        await until(lambda writer=writer: interfaces(writer) == ["eth0"])
    assert lab.address("eth0") in endpoints(lab)
    assert lab.address("wifi0") not in endpoints(lab)
    connections[0][1].close()
    await connections[0][1].wait_closed()
    assert lab.address("eth0") in endpoints(lab)
    await ping(connections[1], b"still\n")
    connections[1][1].close()
    await connections[1][1].wait_closed()
    await until(lambda: endpoints(lab) == "")


async def test_the_systems_own_endpoints_are_left_alone(lab: Lab, source: Source) -> None:
    lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", "subflow")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        await until(lambda: sorted(map(str, interfaces(connected[1]))) == ["eth0", "wifi0"])
        before = endpoints(lab)
        lab.down("wifi0")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"y\n")
        assert endpoints(lab) == before


async def test_a_peer_without_multipath_gets_plain_tcp(lab: Lab) -> None:
    source = Source(lab, multipath=False)
    await source.start()
    reader, writer = await bindsock.open_connection(*source.address, multipath=True)
    with closing(writer):
        await ping((reader, writer), b"x\n")
        assert not bindsock.multipath_of(writer).real
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            async with asyncio.timeout(5):
                await reader.readline()
    await source.close()


async def test_a_system_without_multipath_gets_plain_tcp_and_says_so(
    lab: Lab, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    Path("/proc/sys/net/mptcp/enabled").write_text("0", encoding="ascii")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        assert not bindsock.multipath_of(connected[1]).real
        assert "no multipath TCP" in caplog.text


async def test_a_socket_for_other_libraries(lab: Lab, path_manager: str, source: Source) -> None:
    sock = await bindsock.connect(*source.address, multipath=True)
    assert bindsock.multipath_of(sock).real
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connected = await asyncio.open_connection(sock=sock)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.down("wifi0")
        await ping(connected, b"y\n")


async def test_a_multipath_connection_with_a_hook_never_needs_it(lab: Lab, path_manager: str, source: Source) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        pytest.fail("the hook ran")

    connected = await bindsock.open_connection(*source.address, multipath=True, on_reconnect=never)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.down("wifi0")
        await ping(connected, b"y\n")
        lab.up("wifi0")
        await until(lambda: interfaces(connected[1]) == ["wifi0"])
        await ping(connected, b"z\n")
        assert connected[1].get_extra_info("interface") == "wifi0"


UNPRIVILEGED = """
import asyncio, os, sys, concurrent.futures.thread, encodings.idna
import bindsock, bindsock.kernel.linux
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    reader, writer = await bindsock.open_connection(sys.argv[1], int(sys.argv[2]), multipath=True)
    writer.write(b"one\\n")
    await reader.readline()
    print(bindsock.multipath_of(writer).real, flush=True)
    sys.stdin.readline()
    writer.write(b"two\\n")
    try:
        print((await asyncio.wait_for(reader.readline(), 20)).decode().strip(), flush=True)
    except bindsock.InterfaceChanged as error:
        print("ended:", error.new_interface, flush=True)
    writer.transport.abort()
    await asyncio.sleep(0)
asyncio.run(main())
"""


@pytest.mark.parametrize("endpoint", [True, False])
async def test_without_privilege_the_systems_endpoints_serve_or_it_is_ended(lab: Lab, source: Source, endpoint: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("already unprivileged")
    if endpoint:
        lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", "subflow")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UNPRIVILEGED, source.address[0], str(source.address[1]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(bindsock.__file__).parents[1],
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    async with asyncio.timeout(30):
        assert await program.stdout.readline() == b"True\n"
        lab.down("wifi0")
        await asyncio.sleep(0.1)
        program.stdin.write(b"\n")
        assert (await program.stdout.readline()).decode().strip() == ("two" if endpoint else "ended: eth0")
        await program.wait()


async def test_bound_beneath_the_vpn_no_subflow_goes_into_it(lab: Lab, path_manager: str, source: Source) -> None:
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        connected = await bindsock.open_connection(*source.address, multipath=True)
        with closing(connected[1]):
            await ping(connected, b"x\n")
            lab.default("eth0")
            await until(lambda: interfaces(connected[1]) == ["eth0"])
            await ping(connected, b"y\n")
    assert [packet for packet in tap.packets if packet.payload] == []
