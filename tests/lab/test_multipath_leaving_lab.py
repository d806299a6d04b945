"""Busy multipath connections that move between interfaces that both work, which have queues and losses, as real ones have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from typing import TypeAlias

import pytest

import bindsock
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.model.subflows import Traffic
from bindsock.testing.lab import Lab
from tests.lab.multipath import Serve, counted_by_peer, endpoints, interfaces, path_manager, serve, several
from tests.waiting import until

__all__ = ["path_manager", "serve"]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP"),
]

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
Connections: TypeAlias = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
SLOW = ("tbf", "rate", "10mbit", "burst", "10kb", "latency", "20ms")
"""A queue of 20 ms, which overflows: so data are under way, and some are lost, at every moment."""


def slow_down(lab: Lab) -> None:
    """Limit the rate of both uplinks, in both directions."""
    for namespace in ("host", "router"):
        for uplink in lab.uplinks:
            with lab.inside(namespace):
                limited = subprocess.run(["tc", "qdisc", "replace", "dev", uplink, "root", *SLOW], capture_output=True, text=True)
            if limited.returncode:
                pytest.skip(f"this kernel cannot limit the rate of an interface: {limited.stderr.strip()}")


async def move(lab: Lab, connections: Connections, uplink: str) -> None:
    """Make another uplink the better one, and wait until the connections are there and have left the other."""
    lab.default(uplink)
    await until(lambda: all(interfaces(writer) == [uplink] for _, writer in connections))


async def prepare(lab: Lab, connections: Connections) -> None:
    """Let the connections move and come back, so that no subflow is a first one, and slow the uplinks down."""
    for uplink in ("eth0", "wifi0"):
        await move(lab, connections, uplink)
    slow_down(lab)


class Stream:
    """Sends numbered lines as fast as it can, and reads their echoes, which must be in order."""

    def __init__(self, connected: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = connected
        self.sent = self.echoed = 0
        self._sending = asyncio.create_task(self._send())
        self._reading = asyncio.create_task(self._read())

    async def _send(self) -> None:
        while True:
            self.writer.write(b"%09d %s\n" % (self.sent, b"x" * 8000))
            self.sent += 1
            await self.writer.drain()
            await asyncio.sleep(0)

    async def _read(self) -> None:
        while True:
            line = await self.reader.readline()
            assert line == b"%09d %s\n" % (self.echoed, b"x" * 8000)
            self.echoed += 1

    async def end(self) -> None:
        """Send no more, and wait for the rest."""
        self._sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sending
        await until(lambda: self.echoed == self.sent or self._reading.done(), seconds=20)
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading


@FAMILIES
async def test_nothing_is_left_behind_and_nothing_enters_the_tunnel(
    lab: Lab, path_manager: str, serve: Serve, family: socket.AddressFamily
) -> None:
    """What arrives for a subflow that has ended is answered by the routing table. A peer that still counts it refuses others."""
    lab.vpn_up("metric")
    source = await serve(family=family)
    async with several(source, 2) as connections:
        await prepare(lab, connections)
        streams = [Stream(connected) for connected in connections]
        with lab.tap(interface="tun0", protocol="tcp") as tap:
            for uplink in ["eth0", "wifi0", "eth0"]:
                await move(lab, connections, uplink)
                await until(lambda: counted_by_peer(source) == [1, 1])
        assert [packet for packet in tap.packets if packet.outgoing] == []
        for stream in streams:
            await stream.end()
            assert stream.echoed > 50
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 2)
    await until(lambda: endpoints(lab) == "")


@FAMILIES
async def test_a_connection_comes_back_while_its_subflow_is_being_left(
    lab: Lab, path_manager: str, serve: Serve, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.vpn_up("metric")
    source = await serve(family=family)
    async with several(source, 1) as connections:
        await prepare(lab, connections)
        ((_, writer),) = connections
        stream = Stream(connections[0])
        monkeypatch.setattr(mptcp, "traffic", lambda sock, address: Traffic(True, 0.0, 0.0, 0.1))
        with lab.tap(interface="tun0", protocol="tcp") as tap:
            for _ in range(2):
                lab.default("eth0")
                await until(lambda: bindsock.interface_of(writer) == "eth0")
                assert set(interfaces(writer)) == {"wifi0", "eth0"}
                lab.default("wifi0")
                await until(lambda: bindsock.interface_of(writer) == "wifi0")
            monkeypatch.undo()
            await until(lambda: interfaces(writer) == ["wifi0"])
            await until(lambda: counted_by_peer(source) == [1])
        assert [packet for packet in tap.packets if packet.outgoing] == []
        await stream.end()
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)
    await until(lambda: endpoints(lab) == "")


@pytest.mark.parametrize("path_manager", ["kernel"], indirect=True)
async def test_the_subflow_of_a_connection_that_stays_is_no_backup_afterwards(lab: Lab, path_manager: str, serve: Serve) -> None:
    """The in-kernel path manager only knows endpoints, which connections share."""
    source = await serve()
    async with several(source, 1) as connections:
        slow_down(lab)
        await move(lab, connections, "eth0")
        stays = await bindsock.open_connection(*source.address, multipath=True, interface="eth0")
        stream = Stream(connections[0])
        await until(lambda: stream.echoed > 10)
        await move(lab, connections, "wifi0")
        await until(lambda: "backup" not in endpoints(lab))
        assert interfaces(stays[1]) == ["eth0"]
        await stream.end()
        stays[1].transport.abort()
    await until(lambda: endpoints(lab) == "")
