"""How long a program needs after a change of the network until it sends again, compared with one that does it by hand.

The clock starts right before the netlink request that changes the network, so the figures include the kernel's own work. The
program that it is compared with waits for the kernel's first message, decides nothing, and uses the interface that it knows to
be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import bindsock
from bindsock.kernel.linux import LinuxKernel, netlink
from bindsock.testing.lab import Lab

from .acting import Actor, other
from .figures import Row, alone, compared
from .rounds import in_turn
from .setting import FEW_ROUTES, Size, laboratory, loop_factories

GROUPS = 0x551
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_SO_BINDTOIFINDEX = 62
_PATIENCE = 10.0
_WORDS = {"down": "the link goes down", "default": "the default is switched"}

Measure = Callable[[Lab, Actor, str], Coroutine[Any, Any, float]]


class _Ignore(asyncio.DatagramProtocol):
    """A protocol that ignores everything."""


async def _datagram(lab: Lab, actor: Actor, what: str) -> float:
    """Seconds from the change to the first packet on the new interface, of an endpoint that sends all the time."""
    transport, _ = await bindsock.create_datagram_endpoint(_Ignore, remote_addr=(lab.server.ipv4, lab.server.udp_port))

    async def send() -> None:
        while True:
            transport.sendto(b"bench")
            await asyncio.sleep(0)

    sending = asyncio.ensure_future(send())
    try:
        await asyncio.sleep(0.4)
        old = bindsock.interface_of(transport)
        assert old is not None
        with lab.tap(interface=other(old), protocol="udp", port=lab.server.udp_port) as tap:
            changed = await actor.switch(what, old)
            await asyncio.sleep(0.1)
            first = tap.packets[0].time
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        transport.abort()
    await actor.restore(what, old)
    return first - changed


async def _datagram_by_hand(lab: Lab, actor: Actor, what: str) -> float:
    kernel = LinuxKernel()
    network = kernel.network()
    with (
        contextlib.closing(kernel),
        socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as events,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        events.bind((0, GROUPS))
        events.setblocking(False)
        old, new = network.named("wifi0"), network.named("eth0")
        assert old is not None
        assert new is not None
        kernel.bind(sock, old)
        sock.connect((lab.server.ipv4, lab.server.udp_port))
        with lab.tap(interface=new.name, protocol="udp", port=lab.server.udp_port) as tap:
            await actor.order_switch(what, old.name)
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    sock.send(b"bench")
                with contextlib.suppress(BlockingIOError):
                    events.recv(1 << 16)
                    break
            kernel.rebind(sock, new)
            sock.send(b"bench")
            changed = await actor.carried_out()
            await asyncio.sleep(0.1)
            first = tap.packets[0].time
    await actor.restore(what, "wifi0")
    return first - changed


async def _reader_woken(lab: Lab, actor: Actor, what: str, *, tls: bool = False) -> float:
    """Seconds from the loss of the interface to InterfaceChanged in a reader that was waiting."""
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
        await asyncio.wait_for(pending, _PATIENCE)
    except bindsock.InterfaceChanged:
        taken = time.monotonic() - changed
    else:
        raise RuntimeError("the reader did not notice the lost interface")
    writer.close()
    if what == "address":
        await actor.act("add_addresses", old)
    await actor.restore(what, old)
    return taken


async def _replaced(lab: Lab, actor: Actor, what: str) -> float:
    """Seconds from the change to the hook on the new connection."""
    called: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def on_reconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        if not called.done():
            called.set_result(time.monotonic())

    _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port, on_reconnect=on_reconnect)
    old = bindsock.interface_of(writer)
    assert old is not None
    await asyncio.sleep(0.3)
    await actor.order_switch(what, old)
    async with asyncio.timeout(_PATIENCE):
        at = await called
    taken = at - await actor.carried_out()
    writer.transport.abort()
    await actor.restore(what, old)
    return taken


async def _connected_by_hand(lab: Lab, actor: Actor, what: str) -> float:
    """Seconds from the change until asyncio has connected a socket that is bound to the other uplink."""
    loop = asyncio.get_running_loop()
    address = (lab.server.ipv4, lab.server.tcp_port)
    with (
        socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as events,
        socket.socket() as sock,
    ):
        events.bind((0, GROUPS))
        events.setblocking(False)
        await actor.order_switch(what, "wifi0")
        await loop.sock_recv(events, 1 << 16)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, socket.if_nametoindex("eth0"))
        await loop.sock_connect(sock, address)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock.dup())
        connected = time.monotonic()
        transport.abort()
    taken = connected - await actor.carried_out()
    await actor.restore(what, "wifi0")
    return taken


def measure(size: Size) -> Iterator[Row]:
    """With a VPN up."""
    with laboratory(FEW_ROUTES) as lab, lab.inside():
        lab.vpn_up("metric")
        lab.client_ssl_context()
        with Actor(lab) as actor:
            for name, factory in loop_factories().items():
                if name == "uvloop" and size.quick:
                    continue
                with asyncio.Runner(loop_factory=factory) as runner, asyncio.Runner() as by_hand:
                    yield from _recoveries(name, lab, actor, runner, by_hand, size)


def _recoveries(name: str, lab: Lab, actor: Actor, runner: asyncio.Runner, by_hand: asyncio.Runner, size: Size) -> Iterator[Row]:
    def side(on: asyncio.Runner, measure: Measure, what: str) -> Callable[[], float]:
        return lambda: on.run(measure(lab, actor, what))

    for what, words in list(_WORDS.items())[: 1 if size.quick else None]:
        sides = {"ours": side(runner, _datagram, what), "theirs": side(by_hand, _datagram_by_hand, what)}
        costs = in_turn(sides, size.slow_rounds)
        title = f"{words}: the first datagram on the new interface, {name}"
        yield compared(title, "ms", costs["ours"], "by hand", costs["theirs"], scale=1e3, limit=1.0)
    sides = {"ours": side(runner, _replaced, "down"), "theirs": side(by_hand, _connected_by_hand, "down")}
    costs = in_turn(sides, size.slow_rounds)
    title = f"the link goes down: a connection is replaced, {name}"
    yield compared(title, "ms", costs["ours"], "by hand", costs["theirs"], scale=1e3)
    if size.quick:
        return
    drained = in_turn({"ours": side(runner, _replaced, "default")}, size.slow_rounds)["ours"]
    yield alone(f"the default is switched: a connection is drained and replaced, {name}", "ms", drained, scale=1e3)
    readers: dict[str, Measure] = {
        "the link goes down: a TCP reader is told": _reader_woken,
        "the link goes down: a TLS reader is told": functools.partial(_reader_woken, tls=True),
    }
    for title, measure_reader in readers.items():
        woken = in_turn({"ours": side(runner, measure_reader, "down")}, size.slow_rounds)["ours"]
        yield alone(f"{title}, {name}", "ms", woken, scale=1e3)
    woken = in_turn({"ours": side(runner, _reader_woken, "address")}, size.slow_rounds)["ours"]
    yield alone(f"an address is removed: a TCP reader is told, {name}", "ms", woken, scale=1e3)
