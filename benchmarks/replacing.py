"""Replacing the connections of many streams at once, compared with as many connects of asyncio; and streams without a hook.

It compares the processor time of the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import bindsock
from bindsock.testing.lab import Lab

from .acting import Actor
from .figures import Row, alone, compared
from .setting import FEW_ROUTES, Size, laboratory
from .standstill import Standstill, standstill

_FEW = 10
_PATIENCE = 120.0
_TOLD_WITHIN = 2.0
"""Seconds in which streams without a hook have ended, or have seen that they stay."""
_AT_ONCE = 100
"""How many connections are opened at the same time at the beginning."""


class _Client:
    """A connection whose hook only records when it was called."""

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


async def _together(lab: Lab, actor: Actor, count: int) -> tuple[float, Standstill]:
    """Seconds until ``count`` streams are back after their link went down, and how long the loop was blocked meanwhile."""
    clients = [_Client() for _ in range(count)]
    for first in range(0, count, _AT_ONCE):
        await asyncio.gather(*(client.open(lab) for client in clients[first : first + _AT_ONCE]))
    await asyncio.sleep(1.0)
    old = clients[0].writer.get_extra_info("interface")
    async with standstill() as longest:
        await asyncio.sleep(0.1)
        longest.forget()
        changed = await actor.switch("down", old)
        async with asyncio.timeout(_PATIENCE):
            for client in clients:
                await client.replaced.wait()
    taken = max(client.at for client in clients) - changed
    for client in clients:
        await client.close()
    await actor.restore("down", old)
    await actor.act("abort_streams")  # their other ends went down with the link
    return taken, longest


async def _told(lab: Lab, actor: Actor, what: str, count: int) -> Standstill:
    """How long the loop is blocked by a change of the network, with ``count`` streams without a hook: they end, or stay."""
    writers: list[asyncio.StreamWriter] = []
    for first in range(0, count, _AT_ONCE):
        opening = [bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port) for _ in range(min(_AT_ONCE, count - first))]
        writers += [writer for _, writer in await asyncio.gather(*opening)]
    await asyncio.sleep(1.0)
    old = bindsock.interface_of(writers[0])
    assert old is not None
    async with standstill() as longest:
        await asyncio.sleep(0.1)
        longest.forget()
        await actor.switch(what, old)
        await asyncio.sleep(_TOLD_WITHIN)
    for writer in writers:
        writer.transport.abort()
    await actor.restore(what, old)
    await actor.act("abort_streams")
    return longest


async def _by_asyncio(lab: Lab, count: int) -> float:
    """The processor time to open ``count`` connections, as many at the same time as bindsock does, in seconds."""
    waiting = asyncio.Semaphore(_AT_ONCE)

    async def connect() -> asyncio.StreamWriter:
        async with waiting:
            _, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)
            return writer

    begun = time.thread_time()
    writers = await asyncio.gather(*(connect() for _ in range(count)))
    taken = time.thread_time() - begun
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(1.0)
    return taken


def measure(size: Size) -> Iterator[Row]:
    yield from _replaced(size)
    count, rounds = size.at_most(2), 2 if size.quick else 3
    for what, words in (("down", "end (link down)"), ("default", "stay (default switched)")):
        found = []
        for _ in range(rounds):
            with laboratory(FEW_ROUTES) as lab, lab.inside(), Actor(lab) as actor, asyncio.Runner() as runner:
                found.append(runner.run(_told(lab, actor, what, count)))
        turns = [still.computing for still in found]
        yield alone(f"{count:,} streams {words}: the loop's longest turn", "ms", turns, scale=1e3, limit=10.0)


def _replaced(size: Size) -> Iterator[Row]:
    for count in (_FEW, size.at_most(2)):
        ours, theirs = [], []
        for _ in range(2 if size.quick else 3):
            # A new laboratory for each round, since ten thousand connections leave much behind.
            with laboratory(FEW_ROUTES) as lab, lab.inside(), Actor(lab) as actor, asyncio.Runner() as runner:
                ours.append(runner.run(_together(lab, actor, count)))
                theirs.append(runner.run(_by_asyncio(lab, count)))
        title = f"{count:,} streams with on_reconnect are back (link down)"
        beside = "asyncio connects as many"
        yield compared(title, "ms", [still.busy for _, still in ours], beside, theirs, scale=1e3)
        yield alone("  all are back after, by the clock", "ms", [taken for taken, _ in ours], scale=1e3)
        yield alone("  the loop's longest turn", "ms", [still.computing for _, still in ours], scale=1e3, limit=10.0)
        collecting = [still.collecting for _, still in ours]
        yield alone("  Python's longest garbage collection meanwhile", "ms", collecting, scale=1e3)
        yield alone("  the longest turn with it, by the clock", "ms", [still.seconds for _, still in ours], scale=1e3)
