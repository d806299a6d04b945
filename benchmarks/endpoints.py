"""The cost of making and closing a datagram endpoint, compared with the event loop's own, in processor time."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import Iterator
from typing import Any

from bindsock import TransportFactory

from .figures import Row, compared
from .rounds import in_turn
from .setting import FEW_ROUTES, Size, laboratory, runners

_BATCH = 100


async def made(make: Any, remote: tuple[str, int], count: int) -> list[asyncio.DatagramTransport]:
    """Make ``count`` connected endpoints."""
    return [(await make(asyncio.DatagramProtocol, remote_addr=remote))[0] for _ in range(count)]


async def abort(transports: list[Any]) -> None:
    """Close them and wait until that is done."""
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0.01)


async def _life(make: Any, remote: tuple[str, int]) -> tuple[float, float]:
    """Seconds of the processor for making and for closing one of a batch."""
    gc.collect()
    begun = time.thread_time()
    transports = await made(make, remote, _BATCH)
    between = time.thread_time()
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)
    ended = time.thread_time()
    await asyncio.sleep(0.01)
    return (between - begun) / _BATCH, (ended - between) / _BATCH


def measure(size: Size) -> Iterator[Row]:
    with laboratory(FEW_ROUTES) as lab, lab.inside(), runners() as loops:
        remote = (lab.server.ipv4, lab.server.udp_port)
        for name, runner in loops.items():
            closing: dict[str, list[float]] = {"ours": [], "theirs": []}
            factory = TransportFactory()

            def batch(side: str, make: Any, runner: asyncio.Runner = runner, closing: Any = closing) -> float:
                making, ending = runner.run(_life(make, remote))
                closing[side].append(ending)
                return making

            sides = {
                "ours": functools.partial(batch, "ours", factory.create_datagram_endpoint),
                "theirs": functools.partial(batch, "theirs", runner.get_loop().create_datagram_endpoint),
            }
            costs = in_turn(sides, size.rounds)
            yield compared(
                f"create_datagram_endpoint on {name}, connected",
                "µs",
                costs["ours"],
                f"{name}'s own",
                costs["theirs"],
                scale=1e6,
                ratio_limit=1.6 if name == "asyncio" else None,
            )
            yield compared(f"closing it on {name}", "µs", closing["ours"][1:], f"{name}'s own", closing["theirs"][1:], scale=1e6)
