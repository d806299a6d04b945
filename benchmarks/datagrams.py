"""What a datagram endpoint costs beside the event loop's own, and moving thousands beside the bare system calls."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import time
import tracemalloc
from typing import Any

from bindsock import TransportFactory
from bindsock.kernel.linux import LinuxKernel
from bindsock.testing.lab import Lab

from .acting import Actor, other
from .figures import Figure, figure, paired

_BATCH = 200
_MANY = 2_000
_PATIENCE = 60.0


async def measure(lab: Lab, actor: Actor, runs: int) -> list[Figure]:
    """Make, send by and move datagram endpoints."""
    remote = (lab.server.ipv4, lab.server.udp_port)
    async with TransportFactory() as factory:
        return [
            *await _making(factory, remote, runs),
            *await _sending(factory, remote, runs),
            *await _moving(factory, actor, remote, max(2, runs // 10)),
        ]


async def _making(factory: TransportFactory, remote: tuple[str, int], runs: int) -> list[Figure]:
    loop = asyncio.get_running_loop()
    times: dict[bool, list[float]] = {True: [], False: []}
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for run in range(runs + 1):
        for ours in (True, False):
            make = factory.create_datagram_endpoint if ours else loop.create_datagram_endpoint
            begun = time.perf_counter()
            made = [(await make(asyncio.DatagramProtocol, remote_addr=remote))[0] for _ in range(_BATCH)]
            if run:  # the first is for whatever is made once
                times[ours].append((time.perf_counter() - begun) / _BATCH)
            await _close(made)
            gc.collect()
            tracemalloc.start()
            made = [(await make(asyncio.DatagramProtocol, remote_addr=remote))[0] for _ in range(_BATCH)]
            if run:
                sizes[ours].append(tracemalloc.get_traced_memory()[0] / _BATCH)
            tracemalloc.stop()
            await _close(made)
    more = [ours - theirs for ours, theirs in zip(sizes[True], sizes[False], strict=True)]
    return [
        figure("create_datagram_endpoint", times[True], "us", scale=1e6),
        paired("  beside the loop's own", times[True], times[False]),
        figure("  memory more than the loop's own", more, "B"),
    ]


async def _sending(factory: TransportFactory, remote: tuple[str, int], runs: int) -> list[Figure]:
    loop = asyncio.get_running_loop()
    ours, _ = await factory.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)
    theirs, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)
    times: dict[bool, list[float]] = {True: [], False: []}
    data = bytes(200)
    for run in range(runs + 1):
        for mine, transport in ((True, ours), (False, theirs)):
            begun = time.perf_counter()
            for _ in range(_BATCH):
                transport.sendto(data)
            if run:
                times[mine].append((time.perf_counter() - begun) / _BATCH)
            await asyncio.sleep(0.005)
    await _close([ours, theirs])
    return [
        figure("sendto", times[True], "us", scale=1e6),
        paired("  beside the loop's own", times[True], times[False]),
    ]


async def _moving(factory: TransportFactory, actor: Actor, remote: tuple[str, int], runs: int) -> list[Figure]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(_MANY, hard // 3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * count + 200)), hard))
    loop = asyncio.get_running_loop()
    made = [(await factory.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote))[0] for _ in range(count)]
    busy = made[count // 2]
    bare = _bare(factory, remote, count)
    found: dict[str, list[float]] = {"down": [], "default": [], "still down": [], "still default": [], "busy down": []}
    for _ in range(runs):
        for what in ("down", "default"):
            old = str(busy.get_extra_info("interface"))
            busy.sendto(b"x")
            moved = factory.statistics().rebinds + count
            still = asyncio.ensure_future(_standstill(lambda moved=moved: factory.statistics().rebinds >= moved))
            begun = await actor.switch(what, old)
            deadline = loop.time() + _PATIENCE
            while busy.get_extra_info("interface") == old and loop.time() < deadline:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
            if what == "down":
                found["busy down"].append(time.monotonic() - begun)
            longest, ended = await still
            found[what].append((ended - begun) / count)
            found[f"still {what}"].append(longest)
            if what == "down":
                await actor.act("up", old)
            await asyncio.sleep(2.5)
            assert busy.get_extra_info("interface") == other(old) or what == "down"
    await _close(made)
    return [
        figure(f"{count} endpoints move in place, each", found["down"], "us", scale=1e6),
        paired("  beside the bare calls", found["down"], [bare] * runs),
        figure("  the loop's longest standstill", found["still down"], "ms", scale=1e3),
        figure("  one that sends, after the event", found["busy down"], "ms", scale=1e3),
        figure(f"{count} endpoints move with an overlap, each", found["default"], "us", scale=1e6),
        paired("  beside the bare calls", found["default"], [bare] * runs),
        figure("  the loop's longest standstill", found["still default"], "ms", scale=1e3),
    ]


def _bare(factory: TransportFactory, remote: tuple[str, int], count: int) -> float:
    """Seconds that the system calls of an in-place move take for one socket."""
    kernel = LinuxKernel()
    interfaces = kernel.network()
    uplinks = [i for i in (interfaces.named("wifi0"), interfaces.named("eth0")) if i is not None]
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for sock in socks:
        kernel.bind(sock, uplinks[0])
        sock.connect(remote)
    begun = time.perf_counter()
    for sock in socks:
        kernel.rebind(sock, uplinks[1])
    taken = (time.perf_counter() - begun) / count
    for sock in socks:
        sock.close()
    kernel.close()
    return taken


async def _standstill(done: Any) -> tuple[float, float]:
    """The longest time between two turns of the loop until something is done, and when that was."""
    longest, last = 0.0, time.monotonic()
    deadline = last + _PATIENCE
    while not done() and last < deadline:
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest, last


async def _close(transports: list[Any]) -> None:
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0.01)
