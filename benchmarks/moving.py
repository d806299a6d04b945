"""Moving few and thousands of datagram endpoints, compared with the bare system calls for as many sockets.

It compares the processor time of the thread that moves them.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field

from bindsock import TransportFactory
from bindsock.kernel.linux import LinuxKernel
from bindsock.testing.lab import Lab

from .acting import Actor
from .endpoints import abort, made
from .figures import Row, alone, compared
from .setting import FEW_ROUTES, Size, laboratory
from .standstill import standstill

_SO_BINDTOIFINDEX = 62
_FEW = 10
_PATIENCE = 60.0
_QUIET = 0.5
"""Seconds after a change until all its effects are over."""
_OVERLAP = 2.5
"""Seconds until the first of two overlapping sockets is closed, and more."""


def measure(size: Size) -> Iterator[Row]:
    for count in [size.at_most(2)] if size.quick else [_FEW, size.at_most(2)]:
        # The bare sockets have a host and a process of their own, so that their ports are free and there are enough descriptors.
        with laboratory(FEW_ROUTES) as beside, ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as bare:
            with beside.inside():
                bare.submit(os.getpid).result()  # starts it, in the namespace in which this thread is
            with laboratory(FEW_ROUTES) as lab, lab.inside(), Actor(lab) as actor, asyncio.Runner() as runner:
                yield from runner.run(_moves(lab, bare, actor, count, size.slow_rounds))


@dataclass(slots=True)
class _Found:
    """The times of the rounds of one kind of move, in seconds; bare, busy and computing are processor time."""

    moved: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)
    collecting: list[float] = field(default_factory=list)
    still: list[float] = field(default_factory=list)
    sender: list[float] = field(default_factory=list)


async def _moves(lab: Lab, bare: Executor, actor: Actor, count: int, rounds: int) -> list[Row]:
    remote = (lab.server.ipv4, lab.server.udp_port)
    in_place, overlapping = _Found(), _Found()
    async with TransportFactory() as factory:
        transports = await made(factory.create_datagram_endpoint, remote, count)
        for number in range(rounds + 1):
            if number == 1:  # the first round includes what is only made once
                in_place, overlapping = _Found(), _Found()
            await _move(factory, transports, actor, ("down", "wifi0"), in_place)
            await actor.act("default", "eth0")
            await actor.act("up", "wifi0")
            await actor.act("wait_until_running", "wifi0")
            await asyncio.sleep(_QUIET)
            in_place.bare.append(bare.submit(bare_in_place, remote, count).result())
            await _move(factory, transports, actor, ("default", "wifi0"), overlapping)
            overlapping.bare.append(bare.submit(bare_overlapping, remote, count).result())
            await asyncio.sleep(_OVERLAP)
        await abort(transports)
    return [
        *_rows(f"{count:,} endpoints move in place (link down)", in_place, 3.0 if count > _FEW else None),
        *_rows(f"{count:,} endpoints move with an overlap (default switched)", overlapping, 5.0 if count > _FEW else None),
    ]


def _rows(title: str, found: _Found, ratio_limit: float | None) -> list[Row]:
    return [
        compared(title, "ms", found.busy, "the bare calls", found.bare, scale=1e3, ratio_limit=ratio_limit),
        alone("  all have moved after, by the clock", "ms", found.moved, scale=1e3),
        alone("  the loop's longest turn", "ms", found.computing, scale=1e3, limit=10.0),
        alone("  Python's longest garbage collection meanwhile", "ms", found.collecting, scale=1e3),
        alone("  the longest turn with it, by the clock", "ms", found.still, scale=1e3),
        alone("  the program sees one that sends on its new interface after", "ms", found.sender, scale=1e3, limit=1.0),
    ]


async def _move(
    factory: TransportFactory, transports: list[asyncio.DatagramTransport], actor: Actor, order: tuple[str, str], taken: _Found
) -> None:
    """Change the network, and wait until all endpoints have moved."""
    count, busy = len(transports), transports[len(transports) // 2]
    old = str(busy.get_extra_info("interface"))
    busy.sendto(b"x")
    moved = factory.statistics().rebinds + count
    async with standstill() as longest:
        await asyncio.sleep(0.01)
        longest.forget()
        await actor.order(*order)
        deadline = time.monotonic() + _PATIENCE
        at_once = 0.0
        while factory.statistics().rebinds < moved and time.monotonic() < deadline:
            if not at_once and busy.get_extra_info("interface") != old:
                at_once = time.monotonic()
            await asyncio.sleep(0)
        ended = time.monotonic()
    begun = await actor.carried_out()
    if factory.statistics().rebinds < moved:
        raise RuntimeError(f"{moved - factory.statistics().rebinds} of {count} endpoints have not moved within {_PATIENCE:g} s")
    taken.moved.append(ended - begun)
    taken.busy.append(longest.busy)
    taken.sender.append((at_once or ended) - begun)
    taken.computing.append(longest.computing)
    taken.collecting.append(longest.collecting)
    taken.still.append(longest.seconds)


def _bound(remote: tuple[str, int], uplink: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, uplink)
    sock.connect(remote)
    return sock


def bare_in_place(remote: tuple[str, int], count: int) -> float:
    """The processor time of the calls that move ``count`` sockets without privilege, in seconds.

    They disconnect each socket, bind it and connect it again.
    """
    old = socket.if_nametoindex("wifi0")
    kernel = LinuxKernel()
    new = kernel.network().named("eth0")
    assert new is not None
    with contextlib.closing(kernel), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(_bound(remote, old)) for _ in range(count)]
        begun = time.thread_time()
        for sock in socks:
            kernel.rebind(sock, new)
        return time.thread_time() - begun


def bare_overlapping(remote: tuple[str, int], count: int) -> float:
    """The processor time of the calls that make ``count`` new sockets and close the old ones, in seconds."""
    old, new = (socket.if_nametoindex(name) for name in ("wifi0", "eth0"))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(_bound(remote, old)) for _ in range(count)]
        begun = time.thread_time()
        for sock in socks:
            stack.enter_context(_bound(remote, new))
            sock.close()
        return time.thread_time() - begun
