"""The cost of a reading of the network in processor time, compared with pyroute2, and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import bindsock
from bindsock.kernel.linux import LinuxKernel
from bindsock.model.network import FAMILIES
from bindsock.routing.effective import Decider
from bindsock.testing.lab import Lab

from .figures import Row, alone, compared, skipped
from .memory import in_a_fork, resident
from .rounds import in_turn
from .setting import FEW_ROUTES, MANY_ROUTES, Size, laboratory

_SETTLED = 0.5
"""Seconds until the prefetched decisions have been made."""


def _seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def measure(size: Size) -> Iterator[Row]:
    with laboratory(FEW_ROUTES) as few, laboratory(MANY_ROUTES) as many:
        yield from _readings(few, many, size)
        yield from _beside_pyroute2(few, FEW_ROUTES, size.rounds)
        if not size.quick:  # seconds each
            yield from _beside_pyroute2(many, MANY_ROUTES, 2)
        sides = {
            "few": lambda: in_a_fork(functools.partial(_memory, few)),
            "many": lambda: in_a_fork(functools.partial(_memory, many)),
        }
        costs = in_turn(sides, 2 if size.quick else size.slow_rounds, warm_up=0)
    more = [a - b for a, b in zip(costs["many"], costs["few"], strict=True)]
    yield alone(f"memory with {MANY_ROUTES:,} routes more than with {FEW_ROUTES}", "MB", more, scale=1e-6, limit=2.0)


def _readings(few: Lab, many: Lab, size: Size) -> Iterator[Row]:
    """Readings with many routes, compared with those with few, and the cost of a decision."""
    with few.inside(), contextlib.closing(LinuxKernel()) as kernel, contextlib.ExitStack() as stack:
        with many.inside():
            there = stack.enter_context(contextlib.closing(LinuxKernel()))
            there.network()
        sides = {"few": lambda: _seconds(kernel.network), "many": lambda: _seconds(there.network)}
        costs = in_turn(sides, size.rounds * 10)
        title = f"one reading of the network, {MANY_ROUTES:,} routes"
        yield compared(title, "µs", costs["many"], f"with {FEW_ROUTES} routes", costs["few"], scale=1e6)
        network = kernel.network()
        interface = next(i for i in network.interfaces.values() if (i.index, FAMILIES[0]) in network.reachable)
        address = ip_address(few.server.ipv4)
        asked = in_turn({"": lambda: _seconds(lambda: kernel.has_route(interface, address))}, size.rounds * 10)[""]
        yield alone("the kernel is asked for a route", "µs", asked, scale=1e6)
        decided = in_turn({"": lambda: _seconds(lambda: [Decider(network).decide(f) for f in FAMILIES])}, size.rounds * 10)[""]
        yield alone("decide for both families", "µs", decided, scale=1e6)


def _beside_pyroute2(lab: Lab, routes: int, rounds: int) -> Iterator[Row]:
    title = f"one reading of the network, {routes:,} routes"
    try:
        import pyroute2
    except ImportError:
        yield skipped(title, "pyroute2 is not installed")
        return
    with lab.inside(), contextlib.closing(LinuxKernel()) as kernel, pyroute2.IPRoute() as ipr:

        def theirs() -> None:
            list(ipr.get_links())
            list(ipr.get_addr())
            for family in FAMILIES:
                list(ipr.get_routes(family=family))
                list(ipr.get_rules(family=family))

        sides = {"ours": lambda: _seconds(kernel.network), "theirs": lambda: _seconds(theirs)}
        costs = in_turn(sides, rounds, warm_up=1 if routes == FEW_ROUTES else 0)
    yield compared(title, "µs", costs["ours"], "the same by pyroute2", costs["theirs"], scale=1e6)


def _memory(lab: Lab) -> float:
    """The growth of a process when it opens its first connection, in bytes."""

    async def grown() -> float:
        before = resident()
        _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)
        await asyncio.sleep(_SETTLED)
        after = resident()
        writer.close()
        return float(after - before)

    with lab.inside():
        return asyncio.run(grown())
