"""The setting of a benchmark: its size, its event loops, and a laboratory with a given number of routes."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bindsock.testing.lab import Lab

FEW_ROUTES = 10
MANY_ROUTES = 100_000
_UPLINKS = ("wifi0", "eth0", "usb0")
_PORTS = {"ip_local_port_range": "1024 65535", "tcp_tw_reuse": "1", "tcp_fin_timeout": "1"}
"""With these, tens of thousands of connections to one port, one after the other, find free local ports."""
_FEW_DESCRIPTORS = 400
"""The descriptors that a process needs in addition to the counted sockets."""


class Unavailable(Exception):
    """A benchmark cannot run here. The message tells why."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    :param quick: only the main rows
    :param rounds: the rounds of a measurement that takes milliseconds; those that take seconds have a fifth of it
    :param many: the large number of endpoints or streams
    """

    quick: bool
    rounds: int
    many: int

    @property
    def slow_rounds(self) -> int:
        return max(3, self.rounds // 5)

    def at_most(self, descriptors: int) -> int:
        """How many things with that many descriptors each fit in a process. It raises the process's limit as far as possible."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return self.many if hard == resource.RLIM_INFINITY else min(self.many, (hard - _FEW_DESCRIPTORS) // descriptors)


def loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The installed event loops, by name."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    with contextlib.suppress(ImportError):
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    return loops


@contextlib.contextmanager
def runners() -> Iterator[dict[str, asyncio.Runner]]:
    """One runner for each event loop, all open at once, so that their loops can run in turn."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(asyncio.Runner(loop_factory=factory)) for name, factory in loop_factories().items()}


@contextlib.contextmanager
def laboratory(routes: int = 0) -> Iterator[Lab]:
    """A laboratory whose host has that many additional routes, all by an uplink that is never the best one.

    :raises Unavailable: the ``ip`` command, which makes the routes, is not installed
    """
    with Lab(uplinks=_UPLINKS) as lab:
        with lab.inside():
            for name, value in _PORTS.items():
                Path(f"/proc/sys/net/ipv4/{name}").write_text(value, encoding="ascii")
        if routes:
            add_routes(lab, routes)
        yield lab


def add_routes(lab: Lab, count: int) -> None:
    """Add ``count`` routes to single addresses to the host."""
    command = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if command is None:
        raise Unavailable("many routes need the ip command (iproute2), which is not installed")
    gateway = lab.gateway(_UPLINKS[-1])
    lines = (f"route add 11.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 via {gateway} dev {_UPLINKS[-1]}\n" for n in range(count))
    with lab.inside():
        subprocess.run([command, "-batch", "-"], input="".join(lines), text=True, check=True, capture_output=True)
