"""What beneath-the-tunnel costs a connect: bindsock's create_connection against the loop's own, in turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import bindsock
from bindsock.testing.lab import Lab

from .figures import Figure, figure, paired


async def _seconds(connect: Callable[..., Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]], lab: Lab) -> float:
    begun = time.perf_counter()
    transport, _ = await connect(asyncio.Protocol, lab.server.ipv4, lab.server.tcp_port)
    taken = time.perf_counter() - begun
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return taken


async def _pairs(lab: Lab, runs: int) -> tuple[list[float], list[float]]:
    loop = asyncio.get_running_loop()
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(await _seconds(bindsock.create_connection, lab))
        theirs.append(await _seconds(loop.create_connection, lab))
    return ours, theirs


async def measure(lab: Lab, runs: int) -> list[Figure]:
    await _pairs(lab, 20)
    ours, theirs = await _pairs(lab, runs)
    figures = [
        figure("connect, the loop's own", theirs, "us", scale=1e6),
        paired("connect, nothing else followed", ours, theirs),
    ]
    _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)
    ours, theirs = await _pairs(lab, runs)
    writer.close()
    figures.append(paired("connect, while another connection is followed", ours, theirs))
    return figures
