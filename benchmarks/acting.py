"""A separate process that changes the laboratory's network.

A thread would hold the interpreter lock while the event loop needs it, and would count as bindsock's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from bindsock.testing.lab import Lab

_SETTLED = 0.3
"""Seconds until all effects of a change are over."""


_PAUSE = 0.02
"""Seconds before an order is carried out, so that the caller is already waiting for its effect."""


def other(uplink: str) -> str:
    """The other uplink of the two."""
    return "eth0" if uplink == "wifi0" else "wifi0"


class Actor:
    """Calls the laboratory's methods in another process. The laboratory's state is there, so nothing else may call them then."""

    def __init__(self, lab: Lab) -> None:
        self._here, there = socket.socketpair()
        apart = _apart()
        self._process = os.fork()
        if self._process == 0:
            _run_on(0, apart)
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

    async def order(self, method: str, *arguments: object) -> None:
        """Let a method be called a moment later, while the caller waits for its effect."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._here, json.dumps([method, *arguments]).encode() + b"\n")

    async def carried_out(self) -> float:
        """Wait until the ordered method has returned.

        :return: the method's result: the time right before the change of the network, in monotonic seconds
        """
        return float(json.loads(await asyncio.get_running_loop().sock_recv(self._here, 100)) or 0.0)

    async def act(self, method: str, *arguments: object) -> float:
        """Call a method and wait until it has returned.

        :return: as for :meth:`carried_out`
        """
        await self.order(method, *arguments)
        return await self.carried_out()

    async def order_switch(self, what: str, old: str) -> None:
        """Order that an uplink is set down, or that the other one becomes the default."""
        await self.order(what, old if what == "down" else other(old))

    async def switch(self, what: str, old: str) -> float:
        """Set an uplink down, or make the other one the default."""
        await self.order_switch(what, old)
        return await self.carried_out()

    async def restore(self, what: str, old: str) -> None:
        """Undo :meth:`switch`, and wait until nothing moves any more."""
        if what == "down":
            await self.act("up", old)
            await self.act("wait_until_running", old)
        await asyncio.sleep(_SETTLED)


def _apart() -> set[int]:
    """Run this process on a processor of its own, and its child processes on the others, if there are several.

    The server, the VPN and the process that changes the network stand for other machines.

    :return: the other processors
    """
    processors: set[int] = set()
    if sys.platform == "linux":
        processors = os.sched_getaffinity(0)
    if len(processors) < 2:
        return processors
    first, *others = sorted(processors)
    with contextlib.suppress(FileNotFoundError):  # a kernel without CONFIG_PROC_CHILDREN
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            _run_on(int(child), set(others))
    _run_on(0, {first})
    return set(others)


def _run_on(process: int, processors: set[int]) -> None:
    if sys.platform == "linux" and processors:
        os.sched_setaffinity(process, processors)


def _obey(lab: Lab, orders: socket.socket) -> None:
    try:
        for line in orders.makefile():
            method, *arguments = json.loads(line)
            time.sleep(_PAUSE)
            orders.sendall(json.dumps(getattr(lab, method)(*arguments)).encode())
    except Exception:  # noqa: BLE001 - the caller only notices that this process has ended
        traceback.print_exc()
    finally:
        os._exit(0)
