"""The cost of sending and receiving, compared with the event loop's own transports.

It compares the processor time of the program's thread, without the other end and the network.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Iterator
from typing import Any

from bindsock import TransportFactory
from bindsock.testing.lab import Lab

from .figures import Row, compared
from .rounds import in_turn
from .setting import FEW_ROUTES, Size, laboratory, runners

_DATAGRAMS = 200
ROUND_TRIPS = 100
_PATIENCE = 10.0
_BLOCK = bytes(1 << 16)
_BLOCKS = 64


def measure(size: Size) -> Iterator[Row]:
    with laboratory(FEW_ROUTES) as lab, lab.inside(), runners() as loops:
        for name, runner in loops.items():
            if name == "uvloop" and size.quick:
                continue
            yield from _datagrams(name, runner, lab, size)
            yield from _streams(name, runner, lab, size)


class Answers(asyncio.DatagramProtocol):
    """Tells when a datagram has arrived."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[None] | None = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)


async def _send(transport: asyncio.DatagramTransport) -> float:
    """Seconds of the processor for one ``sendto()``."""
    data = bytes(200)
    begun = time.thread_time()
    for _ in range(_DATAGRAMS):
        transport.sendto(data)
    taken = time.thread_time() - begun
    await asyncio.sleep(0.01)
    return taken / _DATAGRAMS


async def exchange(transport: asyncio.DatagramTransport, answers: Answers) -> float:
    """Seconds of the processor for a datagram that is sent and its answer that is received."""
    loop = asyncio.get_running_loop()
    begun = time.thread_time()
    async with asyncio.timeout(_PATIENCE):
        for _ in range(ROUND_TRIPS):
            answers.waiting = loop.create_future()
            transport.sendto(b"ping")
            await answers.waiting
    return (time.thread_time() - begun) / ROUND_TRIPS


def _datagrams(name: str, runner: asyncio.Runner, lab: Lab, size: Size) -> Iterator[Row]:
    factory = TransportFactory()
    makes = {"ours": factory.create_datagram_endpoint, "theirs": runner.get_loop().create_datagram_endpoint}

    def endpoints(remote: tuple[str, int]) -> dict[str, tuple[asyncio.DatagramTransport, Answers]]:
        return {side: runner.run(_await(make(Answers, remote_addr=remote))) for side, make in makes.items()}  # type: ignore[operator]

    own = f"{name}'s own"
    with lab.inside("server"):
        nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # it sends no answers, which would be measured, too
        nobody.bind((lab.server.ipv4, 0))
    sending = endpoints(nobody.getsockname())
    sides = {side: functools.partial(lambda t: runner.run(_send(t)), transport) for side, (transport, _) in sending.items()}
    costs = in_turn(sides, size.rounds)
    title = f"sendto on {name}, connected"
    yield compared(title, "µs", costs["ours"], own, costs["theirs"], scale=1e6, ratio_limit=1.05)
    for transport, _ in sending.values():
        transport.abort()
    nobody.close()
    exchanging = endpoints((lab.server.ipv4, lab.server.udp_port))
    sides = {side: functools.partial(lambda e: runner.run(exchange(*e)), endpoint) for side, endpoint in exchanging.items()}
    costs = in_turn(sides, size.rounds)
    title = f"a datagram and its answer on {name}"
    yield compared(title, "µs", costs["ours"], own, costs["theirs"], scale=1e6, ratio_limit=1.05)
    for transport, _ in exchanging.values():
        transport.abort()


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Seconds of the processor for a line that is sent and comes back."""
    begun = time.thread_time()
    async with asyncio.timeout(_PATIENCE):
        for _ in range(ROUND_TRIPS):
            writer.write(b"ping\n")
            await reader.readline()
    return (time.thread_time() - begun) / ROUND_TRIPS


async def _bulk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Seconds of the processor for a megabyte that is sent and comes back."""
    begun = time.thread_time()
    async with asyncio.timeout(_PATIENCE):
        for _ in range(_BLOCKS):
            writer.write(_BLOCK)
            await reader.readexactly(len(_BLOCK))
    return (time.thread_time() - begun) / (_BLOCKS * len(_BLOCK)) * 1e6


async def repeat_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
    """There is nothing to repeat on the new connection."""


def _streams(name: str, runner: asyncio.Runner, lab: Lab, size: Size) -> Iterator[Row]:
    remote = (lab.server.ipv4, lab.server.tcp_port)
    factory = TransportFactory()
    streams = {
        "plain": runner.run(_await(factory.open_connection(*remote))),
        "replaceable": runner.run(_await(factory.open_connection(*remote, on_reconnect=repeat_nothing))),
        "own": runner.run(_await(asyncio.open_connection(*remote))),
    }
    for reader, _ in streams.values():
        runner.run(_await(reader.readline()))
    for what, unit, use in (("a line and its echo", "µs", echo), ("a megabyte and its echo", "ms", _bulk)):
        sides = {side: functools.partial(_run, runner, use, stream) for side, stream in streams.items()}
        costs = in_turn(sides, size.rounds)
        scale = 1e6 if unit == "µs" else 1e3
        for side, words in (("plain", "a stream"), ("replaceable", "a stream with on_reconnect")):
            title = f"{what} over {words} on {name}"
            own = f"{name}'s own"
            yield compared(title, unit, costs[side], own, costs["own"], scale=scale, ratio_limit=1.05)
    for _, writer in streams.values():
        writer.transport.abort()


def _run(runner: asyncio.Runner, use: Any, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> float:
    return float(runner.run(use(*stream)))
