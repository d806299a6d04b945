"""What a stream experiences when its interface goes: how long until it goes on, and what it costs the others on the loop.

The clock of a replacement starts right before the netlink request that changes the network is sent. What of that is the kernel's
work and a round trip, a program shows that does nothing but connect again. The stall of a multipath download is the longest time
without a byte, from the change on; the server sends a megabyte every ten milliseconds, so that ten are no stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import bindsock
from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.testing.lab import Lab

from .acting import Actor
from .figures import Figure, figure

_SO_BINDTOIFINDEX = 62
_GROUPS = 0x551
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_PAUSE = 0.01
_BLOCK = 1 << 20
_BLOCKS = 30


Connect: TypeAlias = Callable[[socket.socket, socket.socket, tuple[str, int]], Awaitable[float]]


class _Client:
    """A connection whose hook does nothing but note when it was called."""

    def __init__(self) -> None:
        self.replaced = asyncio.Event()
        self.at = 0.0
        self.writer: asyncio.StreamWriter

    async def on_reconnect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        self.at = time.monotonic()
        self.replaced.set()

    async def open(self, lab: Lab) -> None:
        _, self.writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port, on_reconnect=self.on_reconnect)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def replaced(lab: Lab, actor: Actor, runs: int, what: str) -> list[float]:
    """Seconds from the change to the hook on the new connection."""
    client = _Client()
    await client.open(lab)
    taken = []
    for _ in range(runs):
        old = client.writer.get_extra_info("interface")
        await actor.restore(what, old)
        client.replaced.clear()
        await actor.order_switch(what, old)
        async with asyncio.timeout(10):
            await client.replaced.wait()
        taken.append(client.at - await actor.carried_out())
        await actor.restore(what, old)
    await client.close()
    return taken


async def connected_again(lab: Lab, actor: Actor, runs: int, connect: Connect) -> list[float]:
    """Seconds from a link that goes down until a program that knows what to do then has connected again.

    :param connect: waits for an event on the netlink socket, connects the other one, and says when that was
    """
    taken = []
    for _ in range(runs):
        with (
            socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as events,
            socket.socket() as sock,
        ):
            events.bind((0, _GROUPS))
            await actor.order_switch("down", "wifi0")
            connected = await connect(events, sock, (lab.server.ipv4, lab.server.tcp_port))
        taken.append(connected - await actor.carried_out())
        await actor.restore("down", "wifi0")
    return taken


async def blocking(events: socket.socket, sock: socket.socket, address: tuple[str, int]) -> float:
    """What it takes is the kernel's own work, and one round trip on a path that was idle."""
    events.recv(1 << 16)
    _bind(sock)
    sock.connect(address)
    return time.monotonic()


async def by_asyncio(events: socket.socket, sock: socket.socket, address: tuple[str, int]) -> float:
    """The same with asyncio, until ``connection_made()``."""
    loop = asyncio.get_running_loop()
    events.setblocking(False)
    await loop.sock_recv(events, 1 << 16)
    sock.setblocking(False)
    _bind(sock)
    await loop.sock_connect(sock, address)
    made: asyncio.Future[float] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: _Noting(made), sock=sock.dup())
    transport.close()
    return await made


def _bind(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, socket.if_nametoindex("eth0"))


class _Noting(asyncio.Protocol):
    def __init__(self, made: asyncio.Future[float]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.set_result(time.monotonic())


async def together(lab: Lab, actor: Actor, count: int) -> tuple[float, float]:
    """Seconds until so many streams are back after one switch, and the longest that the loop was kept busy at a time."""
    clients = [_Client() for _ in range(count)]
    for client in clients:
        await client.open(lab)
    await asyncio.sleep(1.0)
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.1)
    longest = 0.0
    old = clients[0].writer.get_extra_info("interface")
    changed = await actor.switch("down", old)
    async with asyncio.timeout(60):
        for client in clients:
            await client.replaced.wait()
    taken = max(client.at for client in clients) - changed
    over = True
    await ticking
    for client in clients:
        await client.close()
    await actor.restore("down", old)
    return taken, longest


@contextlib.asynccontextmanager
async def _sender(lab: Lab) -> AsyncIterator[tuple[str, int]]:
    block = os.urandom(_BLOCK)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readline()
            for _ in range(_BLOCKS):
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(_PAUSE)
        writer.close()

    with lab.inside("server"):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP)
        listener.bind((lab.server.ipv4, 0))
        listener.listen()
    server = await asyncio.start_server(send, sock=listener)
    try:
        yield listener.getsockname()
    finally:
        server.close()


async def stalls(lab: Lab, actor: Actor, runs: int, what: str) -> list[float]:
    """Seconds of the longest stall of each download across a switch."""
    taken = []
    async with _sender(lab) as address:
        for _ in range(runs):
            reader, writer = await bindsock.open_connection(*address, multipath=True)
            if not bindsock.multipath_of(writer):
                raise RuntimeError("the connection is plain TCP")
            writer.write(b"send\n")
            received, longest, last, old = 0, 0.0, time.perf_counter(), ""
            while received < _BLOCK * _BLOCKS:
                received += len(await reader.read(1 << 16))
                now = time.perf_counter()
                longest, last = max(longest, now - last) if old else 0.0, now
                if not old and received > _BLOCK * _BLOCKS // 2:
                    old = bindsock.interface_of(writer) or ""
                    await actor.order_switch(what, old)
            taken.append(longest)
            await actor.carried_out()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await actor.restore(what, old)
    return taken


async def measure(lab: Lab, actor: Actor, runs: int) -> list[Figure]:
    bare = await connected_again(lab, actor, runs, blocking)
    by_hand = await connected_again(lab, actor, runs, by_asyncio)
    figures = [
        figure("link down: connected again by hand, blocking", bare, "ms", scale=1e3),
        figure("link down: connected again by hand, asyncio", by_hand, "ms", scale=1e3),
    ]
    beyond = [taken - statistics.median(bare) for taken in await replaced(lab, actor, runs, "down")]
    figures.append(figure("link down: connection replaced, beyond the first of these", beyond, "ms", scale=1e3))
    taken = await replaced(lab, actor, runs, "default")
    figures.append(figure("default route switched: connection drained and replaced", taken, "ms", scale=1e3))
    many = [await together(lab, actor, 1000) for _ in range(2)]
    figures.append(figure("1000 streams: until all are back", [taken for taken, _ in many], "ms", scale=1e3))
    figures.append(figure("1000 streams: longest that the loop was kept busy", [longest for _, longest in many], "ms", scale=1e3))
    if mptcp.protocol() is not None:
        for number, name in enumerate(("in-kernel", "userspace")):
            _choose_path_manager(number)
            for what, words in (("down", "link down"), ("default", "default route switched")):
                title = f"multipath download, {name}, {words}: stall"
                figures.append(figure(title, await stalls(lab, actor, runs, what), "ms", scale=1e3))
        _choose_path_manager(0)
    return figures


def _choose_path_manager(number: int) -> None:
    """In the host's namespace, which is the laboratory's own."""
    Path("/proc/sys/net/mptcp/pm_type").write_text(str(number))
