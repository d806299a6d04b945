"""How long after the kernel's event a datagram leaves by the new interface, and a dead reader is woken.

The clock starts right before the netlink request that changes the network is sent; so the kernel's own work is in the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import bindsock
from bindsock.testing.lab import Lab

from .acting import Actor, other
from .figures import Figure, figure


class _Ignore(asyncio.DatagramProtocol):
    """A protocol that wants nothing."""


async def _stream(transport: asyncio.DatagramTransport, until: Callable[[], bool]) -> None:
    """Datagrams without pause, until a condition holds."""
    while not until():
        transport.sendto(b"bench")
        await asyncio.sleep(0)


async def first_packet(lab: Lab, actor: Actor, runs: int, what: str) -> list[float]:
    """Seconds from the change to the first packet on the new interface, for a stream that sends all the time."""
    taken = []
    transport, _ = await bindsock.create_datagram_endpoint(_Ignore, remote_addr=(lab.server.ipv4, lab.server.udp_port))
    over = False
    stream = asyncio.ensure_future(_stream(transport, lambda: over))
    try:
        for _ in range(runs):
            await asyncio.sleep(0.5)
            old = bindsock.interface_of(transport)
            assert old is not None
            new = other(old)
            with lab.tap(interface=new, protocol="udp", port=lab.server.udp_port) as tap:
                changed = await actor.switch(what, old)
                await asyncio.sleep(0.1)
                packets = tap.packets
            if packets:
                taken.append(packets[0].time - changed)
            await actor.restore(what, old)
    finally:
        over = True
        await stream
        transport.close()
    return taken


async def reader_woken(lab: Lab, actor: Actor, runs: int, what: str, *, tls: bool) -> list[float]:
    """Seconds from the loss of the interface to InterfaceChanged in a reader that was waiting."""
    taken = []
    for _ in range(runs):
        port = lab.server.tls_port if tls else lab.server.tcp_port
        ssl = lab.client_ssl_context() if tls else None
        reader, writer = await bindsock.open_connection(lab.server.ipv4, port, ssl=ssl)
        await reader.readline()
        old = bindsock.interface_of(writer)
        assert old is not None
        pending = asyncio.ensure_future(reader.readline())
        await asyncio.sleep(0.3)
        changed = await actor.act("down" if what == "down" else "remove_addresses", old)
        try:
            await asyncio.wait_for(pending, 5.0)
        except bindsock.InterfaceChanged:
            taken.append(time.monotonic() - changed)
        writer.close()
        if what == "address":
            await actor.act("add_addresses", old)
        await actor.restore(what, old)
    return taken


async def measure(lab: Lab, actor: Actor, runs: int) -> list[Figure]:
    figures = []
    for what, words in (("down", "link down"), ("default", "default route switched")):
        figures.append(
            figure(f"{words}: first datagram on the new interface", await first_packet(lab, actor, runs, what), "ms", scale=1e3)
        )
    for what, words in (("down", "link down"), ("address", "address removed")):
        figures.append(
            figure(f"{words}: TCP reader woken", await reader_woken(lab, actor, runs, what, tls=False), "ms", scale=1e3)
        )
    figures.append(figure("link down: TLS reader woken", await reader_woken(lab, actor, runs, "down", tls=True), "ms", scale=1e3))
    return figures
