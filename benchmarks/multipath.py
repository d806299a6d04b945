"""The stall of a multipath download when its network changes.

The stall is the longest time without data after the change. The server sends a megabyte every ten milliseconds, so ten
milliseconds are no stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import bindsock
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.testing.lab import Lab

from .acting import Actor
from .figures import Row, alone, skipped
from .setting import FEW_ROUTES, Size, laboratory

_PAUSE = 0.01
_BLOCK = 1 << 20
_BLOCKS = 30


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


def measure(size: Size) -> Iterator[Row]:
    if mptcp.protocol() is None:
        yield skipped("a multipath download", "this kernel has no multipath TCP")
        return
    with laboratory(FEW_ROUTES) as lab, lab.inside(), Actor(lab) as actor, asyncio.Runner() as runner:
        for number, name in enumerate(("in-kernel", "userspace")):
            # This only changes the laboratory's host namespace.
            Path("/proc/sys/net/mptcp/pm_type").write_text(str(number), encoding="ascii")
            for what, words in (("down", "link down"), ("default", "default switched")):
                stalls = runner.run(_stalls(lab, actor, size.slow_rounds, what))
                yield alone(f"a multipath download, {name} path manager: its stall ({words})", "ms", stalls, scale=1e3)
