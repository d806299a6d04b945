"""A process of its own that changes the laboratory's network.

A thread would do that with the same interpreter lock that the event loop needs at that very moment, and count as bindsock's time.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from types import TracebackType
from typing import Self

from bindsock.testing.lab import Lab

_SETTLED = 0.3
"""Seconds until nothing that a change has caused is on its way any more."""


class Actor:
    """Calls the laboratory's methods in another process. Nobody else may from then on: the laboratory's memory is there."""

    def __init__(self, lab: Lab) -> None:
        self._here, there = socket.socketpair()
        self._process = os.fork()
        if self._process == 0:
            self._here.close()
            _obey(lab, there)
        there.close()
        self._here.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._here.close()
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    async def act(self, method: str, *arguments: object) -> float:
        """Call a method; return when it has been carried out.

        :return: monotonic seconds right before the network began to change, where the method returns that
        """
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._here, json.dumps([method, *arguments]).encode() + b"\n")
        return float(json.loads(await loop.sock_recv(self._here, 100)) or 0.0)

    async def switch(self, what: str, old: str) -> float:
        """Take an uplink down, or make the other one the default."""
        if what == "down":
            return await self.act("down", old)
        return await self.act("default", "eth0" if old == "wifi0" else "wifi0")

    async def restore(self, what: str, old: str) -> None:
        """Undo that, and wait until nothing moves any more."""
        if what == "down":
            await self.act("up", old)
            await self.act("wait_until_running", old)
        await asyncio.sleep(_SETTLED)


def _obey(lab: Lab, orders: socket.socket) -> None:
    try:
        for line in orders.makefile():
            method, *arguments = json.loads(line)
            orders.sendall(json.dumps(getattr(lab, method)(*arguments)).encode())
    finally:
        os._exit(0)
