"""The stall of a multipath download when its network changes, and how long the event loop is blocked by a move.

The stall is the longest time without data after the change. The server sends a megabyte every ten milliseconds, so ten
milliseconds are no stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import bindsock
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.linux.mptcp.commands import Commands
from bindsock.testing.lab import Lab
from bindsock.testing.lab._namespaces import inside, new_namespace

from .acting import Actor
from .figures import Row, alone, skipped
from .setting import FEW_ROUTES, Size, laboratory

_PATH_MANAGERS = ("in-kernel", "userspace")
_PAUSE = 0.01
_BLOCK = 1 << 20
_BLOCKS = 30
_UNTIL_REMOVED = 0.2
"""Seconds until an endpoint that was left is removed."""


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


async def _stalls(lab: Lab, actor: Actor, rounds: int, what: str) -> list[float]:
    """Seconds of the longest stall of each download across a switch."""
    taken = []
    async with _sender(lab) as address:
        for _ in range(rounds):
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


@contextlib.asynccontextmanager
async def echoing(lab: Lab) -> AsyncIterator[tuple[str, int]]:
    """A server that speaks multipath TCP and sends each line back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(line)
        writer.close()

    with lab.inside("server"):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP)
        listener.bind((lab.server.ipv4, 0))
        listener.listen(100)
    server = await asyncio.start_server(echo, sock=listener)
    try:
        yield listener.getsockname()
    finally:
        server.close()


async def connected(address: tuple[str, int], factory: bindsock.TransportFactory | None = None) -> asyncio.StreamWriter:
    """A multipath connection over which something was sent in both directions: before that, Linux adds no subflow."""
    connect = bindsock.open_connection if factory is None else factory.open_connection
    reader, writer = await connect(*address, multipath=True)
    writer.write(b"hello\n")
    await reader.readline()
    return writer


def use_path_manager(name: str) -> None:
    """Let connections that are made from now on in this network namespace be controlled by a path manager."""
    Path("/proc/sys/net/mptcp/pm_type").write_text(str(_PATH_MANAGERS.index(name)), encoding="ascii")


def _waited() -> float:
    """How long this thread has waited for a processor, in seconds."""
    return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) / 1e9


async def _longest_turn(over: Callable[[], bool]) -> float:
    """Seconds of the longest turn of the loop until something is true and a moment longer, without waits for a processor.

    What this function does itself, which may also wait for a processor, is between the turns.
    """
    longest, end = 0.0, math.inf
    while time.perf_counter() < end:
        if math.isinf(end) and over():
            end = time.perf_counter() + _UNTIL_REMOVED
        waited, begun = _waited(), time.perf_counter()
        await asyncio.sleep(0)
        turn = time.perf_counter() - begun
        longest = max(longest, turn - (_waited() - waited))
    return longest


async def _blocked(lab: Lab, actor: Actor, rounds: int, what: str, connections: int) -> list[float]:
    """Seconds of the loop's longest turn while connections move and the endpoint that they have left is removed."""
    taken = []
    async with echoing(lab) as address:
        writers = [await connected(address) for _ in range(connections)]
        for _ in range(rounds):
            old = bindsock.interface_of(writers[0]) or ""
            gc.collect()
            gc.disable()
            try:
                await actor.order_switch(what, old)
                taken.append(await _longest_turn(lambda old=old: all(bindsock.interface_of(each) != old for each in writers)))  # type: ignore[misc]
            finally:
                gc.enable()
            await actor.carried_out()
            await actor.restore(what, old)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(_UNTIL_REMOVED)
    return taken


@contextlib.contextmanager
def _removing_endpoints() -> Iterator[None]:
    """Let another process remove endpoints all the time, in a network namespace of its own: the kernel has one lock for all."""
    process = os.fork()
    if process == 0:
        try:
            with inside(new_namespace()):
                commands, address = Commands(), ip_address("192.0.2.1")
                while True:
                    commands.add_endpoint(address, 0)
                    commands.remove_endpoint(address, commands.endpoints()[0].identifier)
        finally:
            os._exit(1)
    try:
        yield
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            raise RuntimeError("the process that removes endpoints has ended")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def measure(size: Size) -> Iterator[Row]:
    if mptcp.protocol() is None:
        yield skipped("a multipath download", "this kernel has no multipath TCP")
        return
    with laboratory(FEW_ROUTES) as lab, lab.inside(), Actor(lab) as actor, asyncio.Runner() as runner:
        for name in _PATH_MANAGERS:
            use_path_manager(name)
            for what, words in (("down", "link down"), ("default", "default switched")):
                stalls = runner.run(_stalls(lab, actor, size.slow_rounds, what))
                yield alone(f"a multipath download, {name} path manager: its stall ({words})", "ms", stalls, scale=1e3)
                for connections, limit in ((1, 2.0), (50, 10.0)):
                    blocked = runner.run(_blocked(lab, actor, 2 * size.slow_rounds, what, connections))
                    moving = f"{connections} multipath connections move" if connections > 1 else "a multipath connection moves"
                    row = f"{moving}, {name} path manager: the loop's longest turn ({words})"
                    yield alone(row, "ms", blocked, scale=1e3, limit=limit)
                with _removing_endpoints():
                    blocked = runner.run(_blocked(lab, actor, 2 * size.slow_rounds, what, 1))
                moving = "a multipath connection moves while another program removes endpoints"
                row = f"{moving}, {name} path manager: the loop's longest turn ({words})"
                yield alone(row, "ms", blocked, scale=1e3, limit=2.0)
