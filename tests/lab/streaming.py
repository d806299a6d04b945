"""A program that sends a stream of numbered datagrams until its standard input ends, and reports the result.

Arguments: host, port, datagrams per second, ``asyncio`` or ``uvloop``, and ``nobody`` to run without any privilege or ``-``.
If the input is ``all replies``, it waits for them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - the user nobody cannot import it later
import dataclasses
import encodings.idna  # noqa: F401
import json
import sys
from typing import Any

import uvloop

import bindsock
import bindsock.default
import bindsock.kernel.linux
from tests.unprivileged import drop_privileges

LONGEST_BURST = 0.05
"""For so many seconds at most it makes up what it has not sent in time, on a busy machine: more at once overflow a buffer."""
PATIENCE = 20.0


class Counting(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.replies: set[int] = set()
        self.errors: list[str] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.replies.add(int(data.split()[2]))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(repr(exc))


def overflows() -> int:
    """The number of datagrams that this namespace dropped because a program did not read them in time."""
    with open("/proc/thread-self/net/snmp", encoding="utf-8") as file:
        names, values = (line.split() for line in file if line.startswith("Udp:"))
    with open("/proc/thread-self/net/snmp6", encoding="utf-8") as file:
        ipv6 = dict(line.split() for line in file)
    return int(values[names.index("RcvbufErrors")]) + int(ipv6["Udp6RcvbufErrors"])


async def stream(host: str, port: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await bindsock.create_datagram_endpoint(Counting, remote_addr=(host, port))
    end = loop.run_in_executor(None, sys.stdin.read)
    print("ready", flush=True)
    sent, due = 0, loop.time()
    while not end.done():
        due = max(due, loop.time() - LONGEST_BURST)
        while due < loop.time():
            transport.sendto(b"%d" % sent)
            sent += 1
            due += 1 / rate
        await asyncio.sleep(0.5 / rate)
    patience = loop.time() + 10.0
    while bindsock.statistics().waiting and loop.time() < patience:
        await asyncio.sleep(0.01)
    patience = loop.time() + PATIENCE
    while end.result() and len(protocol.replies) + overflows() < sent and loop.time() < patience:
        await asyncio.sleep(0.01)
    statistics = dataclasses.asdict(bindsock.statistics())
    outcome = {"sent": sent, "replies": len(protocol.replies), "overflows": overflows(), "errors": protocol.errors}
    print(json.dumps(outcome | {"statistics": statistics}))
    transport.close()


if __name__ == "__main__":
    host, port, rate, loop_name, user = sys.argv[1:]
    if user == "nobody":
        drop_privileges()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop_name == "uvloop" else asyncio.SelectorEventLoop) as runner:
        runner.run(stream(host, int(port), float(rate)))
