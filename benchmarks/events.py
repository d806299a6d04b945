"""How long the event loop is blocked while the network changes, with few routes and with many.

bindsock is compared with a loop that reads the same messages of the kernel and ignores them. The figure is the processor time
that the loop's thread took in its longest turn; wall-clock time would measure how busy the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import bindsock
from bindsock.kernel.linux import netlink
from bindsock.testing.lab import Lab

from .acting import Actor
from .figures import Row, alone, compared
from .rounds import in_turn
from .setting import FEW_ROUTES, MANY_ROUTES, Size, laboratory
from .standstill import Standstill, standstill

_GROUPS = 0x551
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_SETTLED = 0.5
"""Seconds until all effects of earlier changes are over."""
_AFTERWARDS = 0.6
"""Seconds after a change in which the complete reading and the prefetched decisions are made."""
_BURST = 1_000

Order = tuple[str, ...]
"""A method of the laboratory and its arguments."""


@dataclass(frozen=True, slots=True)
class _Change:
    name: str
    do: Order
    undo: Order
    quick: bool = False


def _changes(lab: Lab, directory: str) -> list[_Change]:
    def route(verb: str, destination: str, uplink: str) -> Order:
        return ("ip", "route", verb, destination, "via", lab.gateway(uplink), "dev", uplink)

    def burst(verb: str) -> Order:
        with open(f"{directory}/{verb}", "w", encoding="ascii") as file:
            file.writelines(" ".join(route(verb, f"12.0.{n >> 8}.{n & 255}/32", "usb0")[1:]) + "\n" for n in range(_BURST))
        return ("ip", "-batch", file.name)

    server = f"{lab.server.ipv4}/32"
    return [
        _Change("a route beside comes", route("add", "13.0.0.0/8", "usb0"), route("del", "13.0.0.0/8", "usb0")),
        _Change("a route to the destination comes", route("add", server, "wifi0"), route("del", server, "wifi0")),
        _Change(f"{_BURST:,} routes come", burst("add"), burst("del")),
        _Change("the default is switched", ("default", "eth0"), ("default", "wifi0"), quick=True),
        _Change("the interface goes down", ("down", "wifi0"), ("up", "wifi0")),
    ]


Following = Callable[[Lab], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def _bindsock(lab: Lab) -> AsyncIterator[None]:
    """Follow a connection and an endpoint."""
    _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)
    remote = (lab.server.ipv4, lab.server.udp_port)
    transport, _ = await bindsock.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)
    transport.sendto(b"x")
    yield
    transport.abort()
    writer.transport.abort()


@contextlib.asynccontextmanager
async def _reading_only(lab: Lab) -> AsyncIterator[None]:
    """Only read the kernel's messages."""
    with socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as events:
        events.bind((0, _GROUPS))
        events.setblocking(False)
        loop = asyncio.get_running_loop()

        def read() -> None:
            with contextlib.suppress(OSError):  # ENOBUFS: the buffer overran
                events.recv(1 << 16)

        loop.add_reader(events, read)
        yield
        loop.remove_reader(events)


async def _during(change: _Change, following: Following, lab: Lab, actor: Actor) -> Standstill:
    """The longest turn of the loop while something changes and is undone again."""
    async with following(lab):
        await asyncio.sleep(_SETTLED)
        async with standstill() as longest:
            await asyncio.sleep(0.01)
            longest.forget()
            await actor.act(*change.do)
            await asyncio.sleep(_AFTERWARDS)
    await actor.act(*change.undo)
    if change.undo[0] == "up":
        await actor.act("wait_until_running", change.undo[1])
    return longest


def measure(size: Size) -> Iterator[Row]:
    for routes in (MANY_ROUTES,) if size.quick else (FEW_ROUTES, MANY_ROUTES):
        with (
            tempfile.TemporaryDirectory() as directory,
            laboratory(routes) as lab,
            lab.inside(),
            Actor(lab) as actor,
            asyncio.Runner() as here,
            asyncio.Runner() as there,
        ):
            for change in _changes(lab, directory):
                if change.quick or not size.quick:
                    yield from _standstills(change, routes, lab, actor, here, there, size)


def _standstills(
    change: _Change, routes: int, lab: Lab, actor: Actor, here: asyncio.Runner, there: asyncio.Runner, size: Size
) -> Iterator[Row]:
    by_the_clock: list[float] = []

    def side(runner: asyncio.Runner, following: Following) -> float:
        longest = runner.run(_during(change, following, lab, actor))
        if following is _bindsock:
            by_the_clock.append(longest.seconds)
        return longest.computing

    sides = {
        "ours": functools.partial(side, here, _bindsock),
        "theirs": functools.partial(side, there, _reading_only),
    }
    costs = in_turn(sides, size.slow_rounds)
    title = f"the loop's longest turn as {change.name}, {routes:,} routes"
    yield compared(title, "ms", costs["ours"], "the messages are only read", costs["theirs"], scale=1e3, limit=2.0)
    if routes == MANY_ROUTES:
        yield alone(f"{title}, by the clock", "ms", by_the_clock[1:], scale=1e3)
