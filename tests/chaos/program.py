"""A program under test, in the host's namespace: ``python -m tests.chaos.program SETTINGS``, where the settings are JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import faulthandler
import gc
import json
import logging
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import dns.resolver  # noqa: F401 - bindsock imports it when it first looks for a NAT64 prefix: 20 MB that do not grow
import uvloop

import bindsock
from bindsock.default import set_factory
from bindsock.dial.lingering_close import LingeringSockets
from bindsock.netmon.runtime import runtime_of
from bindsock.resolvers import InterfaceResolver, ServerLookup
from tests.chaos import server
from tests.chaos.commanding import obeying
from tests.chaos.flows import Churn, Datagrams, Flow, ReplacedProtocol, Sending, ShortDatagrams, Stream

_PATIENCE = 10.0


class Faults(logging.Handler):
    """Collects the warnings and errors of the event loop, the garbage collector and the library."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def take(self) -> list[str]:
        taken, self.texts = self.texts, []
        return taken


class Closed(asyncio.DatagramProtocol):
    """Waits until its transport is closed."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)


async def open_and_close(settings: dict[str, Any]) -> None:
    """Use the library once, to open what it keeps until the loop is closed: its event sources."""
    address = next(iter(settings["servers"].values())), settings["datagram_port"]
    transport, closed = await bindsock.create_datagram_endpoint(Closed, remote_addr=address)
    transport.close()
    await closed.done


class Program:
    """All conversations, over both families.

    :param settings: the settings that :class:`tests.chaos.session.Session` passes
    """

    def __init__(self, settings: dict[str, Any], faults: Faults) -> None:
        self._faults = faults
        self._before = descriptors()
        self._left: int | None = None
        """The descriptors that were left once everything was closed. Later ones may belong to a sweep of multipath endpoints."""
        self._opened: list[str] = []
        """What was opened later than those, if some were left: a number may have been used again."""
        name, interval = settings["name"], settings["interval"]
        context = ssl.create_default_context(cafile=settings["authority"])
        self.datagrams: list[Sending] = []
        self.flows: list[Flow] = []
        for family, host in settings["servers"].items():
            tls: dict[str, Any] = {"ssl": context, "server_hostname": "server.lab.test"}
            peer = (host, settings["datagram_port"])
            self.datagrams.append(ShortDatagrams(f"udp-churn-{family}", name, peer, interval=2 * interval))
            for connected in (True, False):
                label = f"{'udp' if connected else 'udp-open'}-{family}"
                self.datagrams.append(Datagrams(label, name, peer, connected=connected, interval=interval))

            streams: tuple[tuple[str, int, dict[str, Any]], ...] = (
                ("tcp", server.PLAIN, {}),
                ("tls", server.TLS, tls),
                ("tcp-abort", server.PLAIN, {"better_path": "abort"}),
                ("replaced", server.PLAIN, {"replaced": True}),
                ("replaced-tls", server.TLS, {"replaced": True, **tls}),
                ("multipath", server.MULTIPATH, {"multipath": True}),
            )
            for kind, port, keywords in streams:
                label = f"{kind}-{family}"
                self.flows.append(Stream(label, f"{name}.{label}", (host, port), interval=interval, **keywords))
            self.flows += [
                ReplacedProtocol(
                    f"protocol-{family}", f"{name}.protocol-{family}", (host, server.PLAIN), interval=interval
                ),
                Churn(f"churn-{family}", f"{name}.churn-{family}", (host, server.PLAIN), interval=2 * interval),
                Churn(f"churn-tls-{family}", f"{name}.churn-tls-{family}", (host, server.TLS), interval=2 * interval, **tls),
            ]  # fmt: skip
        self.flows += self.datagrams
        self.flows = [flow for flow in self.flows if flow.name.rpartition("-")[0] not in settings["without"]]

    def start(self) -> None:
        for flow in self.flows:
            flow.start()

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["command"]:
            case "mark":
                for flow in self.flows:
                    flow.mark()
                return {}
            case "end":
                await self._end()
        return self.report()

    def report(self) -> dict[str, Any]:
        """The counts and faults so far. They are all of the same moment, so that their sums are exact."""
        faults = self._faults.take()
        for flow in self.flows:
            faults += [f"{flow.name}: {text}" for text in flow.faults]
            flow.faults.clear()
        return {
            "accepted": sum(flow.accepted for flow in self.datagrams),
            "statistics": dataclasses.asdict(bindsock.statistics()),
            "faults": faults,
            "stuck": {flow.name: f"{flow.state}, in {flow.place}" for flow in self.flows if flow.stuck},
            "waiting_ports": {flow.name: ports for flow in self.flows if flow.stuck and (ports := flow.waiting_ports())},
            "progress": {flow.name: flow.progress for flow in self.flows},
            "errors": {flow.name: dict(flow.errors) for flow in self.flows if flow.errors},
            "descriptors": len(descriptors()) - self._lingering() if self._left is None else self._left,
            "resting": len(self._before),
            "opened": self._opened,
            "resident": resident(),
            "tasks": sorted(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()),
        }

    async def _end(self) -> None:
        """Close everything, and wait until it is closed."""
        await asyncio.gather(*(flow.stop() for flow in self.flows))
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        resting, now = len(self._before), asyncio.get_running_loop().time
        while (left := len(descriptors()) - self._lingering()) > resting and now() < deadline:
            await asyncio.sleep(0.05)
            gc.collect()
        if left > resting:
            self._opened = [opened for number in sorted(descriptors() - self._before) if (opened := described(number))]
        self._left = left

    def _lingering(self) -> int:
        """The number of closed connections that wait for the peer's end. They wait 30 seconds: some peers never hear of the
        close."""
        return len(runtime_of(asyncio.get_running_loop()).shared(LingeringSockets))


def descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def described(descriptor: int) -> str:
    """What a descriptor is, and of a socket its kind and addresses; empty if it has been closed."""
    try:
        link = os.readlink(f"/proc/self/fd/{descriptor}")
        if not link.startswith("socket:"):
            return link
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            try:
                peer = sock.getpeername()
            except OSError:
                peer = None
            kind = getattr(sock.type, "name", sock.type)
            return f"{getattr(sock.family, 'name', sock.family)} {kind} {sock.proto}, {sock.getsockname()} to {peer}"
    except OSError:
        return ""


def resident() -> int:
    """Kilobytes of memory in use."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


async def main(settings: dict[str, Any]) -> None:
    if settings["names"] is not None:
        resolver = InterfaceResolver(lookups=[ServerLookup([settings["names"]])])
        set_factory(asyncio.get_running_loop(), bindsock.TransportFactory(resolver=resolver))
    faults = Faults()
    logging.getLogger().addHandler(faults)
    sys.unraisablehook = lambda unraisable: faults.texts.append(f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}")
    running: Program | None = None

    async def obey(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal running
        if running is None:
            await open_and_close(settings)
            running = Program(settings, faults)
            running.start()
            return {}
        return await running.obey(command)

    await obeying(obey)


if __name__ == "__main__":
    faulthandler.enable()
    settings = json.loads(sys.argv[1])
    with asyncio.Runner(
        loop_factory=uvloop.new_event_loop if settings["loop"] == "uvloop" else asyncio.SelectorEventLoop
    ) as runner:
        runner.run(main(settings))
