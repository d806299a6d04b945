"""The cost of a connect, compared with the loop's own."""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator

import bindsock
from bindsock import TransportFactory
from bindsock.testing.lab import Lab

from .figures import Row, compared
from .rounds import in_turn
from .setting import FEW_ROUTES, MANY_ROUTES, Size, laboratory, runners

_BATCH = 20
_RESTS_AFTER = 1.2
"""Seconds after the last connection until a factory rests."""

Connect = Callable[[], Awaitable[object]]


async def _made(connect: Callable[..., Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]], lab: Lab) -> asyncio.Transport:
    transport, _ = await connect(asyncio.Protocol, lab.server.ipv4, lab.server.tcp_port)
    return transport


async def _opened(connect: Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], lab: Lab) -> object:
    _, writer = await connect(lab.server.ipv4, lab.server.tcp_port)
    return writer.transport


async def _seconds(connect: Connect) -> float:
    begun = time.perf_counter()
    transport = await connect()
    taken = time.perf_counter() - begun
    assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return taken


async def _each(*connects: Connect) -> list[float]:
    """The median seconds of each, connected in turn."""
    times: list[list[float]] = [[] for _ in connects]
    for _ in range(_BATCH):
        for connect, taken in zip(connects, times, strict=True):
            taken.append(await _seconds(connect))
    return [statistics.median(taken) for taken in times]


def measure(size: Size) -> Iterator[Row]:
    """Connect while another connection is followed, and after a while without any."""
    with laboratory(FEW_ROUTES) as lab, lab.inside(), runners() as loops:
        for name, runner in loops.items():
            own = functools.partial(_made, runner.get_loop().create_connection, lab)
            ours = functools.partial(_made, bindsock.create_connection, lab)
            followed = runner.run(_follow(lab))
            runner.run(_each(ours, own))
            pairs = [runner.run(_each(ours, own)) for _ in range(size.rounds)]
            followed.close()
            rested = [runner.run(_after_a_rest(lab, own)) for _ in range(size.slow_rounds)]
            for when, measured in (("numeric host, others are followed", pairs), ("nothing is followed any more", rested)):
                yield compared(
                    f"create_connection on {name}, {when}",
                    "µs",
                    [a for a, _ in measured],
                    f"{name}'s own",
                    [b for _, b in measured],
                    scale=1e6,
                    ratio_limit=1.3 if name == "asyncio" else 2.0,
                )


async def _follow(lab: Lab) -> asyncio.StreamWriter:
    _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)
    return writer


async def _after_a_rest(lab: Lab, own: Connect) -> tuple[float, float]:
    """The median seconds of connects by factories that all rest, and of the loop's own in between."""
    factories = [TransportFactory() for _ in range(_BATCH)]
    for factory in factories:
        await _seconds(functools.partial(_made, factory.create_connection, lab))
    await asyncio.sleep(_RESTS_AFTER)
    ours, theirs = [], []
    for factory in factories:
        ours.append(await _seconds(functools.partial(_made, factory.create_connection, lab)))
        theirs.append(await _seconds(own))
    return statistics.median(ours), statistics.median(theirs)


def measure_routes(size: Size) -> Iterator[Row]:
    """``open_connection`` in a host with few routes and in one with many, in turn."""
    with laboratory(FEW_ROUTES) as few, laboratory(MANY_ROUTES) as many, asyncio.Runner() as here, asyncio.Runner() as there:
        places = ((few, here), (many, there))
        factories = [TransportFactory(), TransportFactory()]

        def seconds(place: int, ours: bool) -> float:
            lab, runner = places[place]
            connect = factories[place].open_connection if ours else asyncio.open_connection
            with lab.inside():
                return runner.run(_each(functools.partial(_opened, connect, lab)))[0]

        names = {"few": (0, True), "many": (1, True), "few, own": (0, False), "many, own": (1, False)}
        sides = {name: functools.partial(seconds, place, ours) for name, (place, ours) in names.items()}
        costs = in_turn(sides, size.rounds)
    title = f"open_connection with {MANY_ROUTES:,} routes"
    beside = f"with {FEW_ROUTES} routes"
    yield compared(title, "µs", costs["many"], beside, costs["few"], scale=1e6, ratio_limit=1.3)
    yield compared(title, "µs", costs["many"], "asyncio's own", costs["many, own"], scale=1e6)
    yield compared(f"asyncio's own with {MANY_ROUTES:,} routes", "µs", costs["many, own"], beside, costs["few, own"], scale=1e6)
