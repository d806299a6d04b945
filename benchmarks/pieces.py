"""How much memory each endpoint and each stream takes, as the growth of the resident set of a fresh process."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator

import bindsock
from bindsock.testing.lab import Lab

from .figures import Row, compared
from .memory import in_a_fork, resident
from .rounds import in_turn
from .setting import FEW_ROUTES, Size, laboratory

_FEW = 1_000

Make = Callable[[Lab], Awaitable[object]]


async def _endpoint(lab: Lab) -> object:
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(lab.server.ipv4, lab.server.udp_port))


async def _our_endpoint(lab: Lab) -> object:
    remote = (lab.server.ipv4, lab.server.udp_port)
    return await bindsock.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)


async def _stream(lab: Lab) -> object:
    return await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)


async def _our_stream(lab: Lab) -> object:
    return await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)


async def _replaceable(lab: Lab) -> object:
    return await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port, on_reconnect=_repeat_nothing)


async def _repeat_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
    """There is nothing to repeat on the new connection."""


def _bytes(make: Make, count: int) -> float:
    async def grown(lab: Lab) -> float:
        first = await make(lab)  # with whatever is made once
        before = resident()
        things = [await make(lab) for _ in range(count)]
        await asyncio.sleep(0.1)
        each = (resident() - before) / count
        del first, things
        return each

    with laboratory(FEW_ROUTES) as lab, lab.inside():
        return asyncio.run(grown(lab))


def measure(size: Size) -> Iterator[Row]:
    pairs = [
        ("a connected endpoint", _our_endpoint, "asyncio's own", _endpoint),
        ("a stream", _our_stream, "asyncio's own", _stream),
        ("a stream with on_reconnect", _replaceable, "asyncio's own", _stream),
    ]
    for count in (_FEW, size.at_most(1)):
        for name, ours, beside, theirs in pairs:
            sides = {
                side: functools.partial(in_a_fork, functools.partial(_bytes, make, count))
                for side, make in (("ours", ours), ("theirs", theirs))
            }
            # Sizes hardly differ from one round to the next.
            costs = in_turn(sides, 2, warm_up=0)
            yield compared(f"memory of {name}, of {count:,}", "KB", costs["ours"], beside, costs["theirs"], scale=1e-3)
