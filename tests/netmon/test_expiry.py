"""Things that end by themselves share one timer of the event loop."""

from __future__ import annotations

import asyncio
import socket
import time

from bindsock.netmon.expiry import Expiry
from bindsock.netmon.runtime import runtime_of
from tests.virtual_loop import VirtualLoop


class Thing:
    """Writes down when it ended."""

    def __init__(self, loop: VirtualLoop, log: list[tuple[float, str]], name: str) -> None:
        self.until: float | None = None
        self._loop = loop
        self._log = log
        self._name = name

    def expire(self) -> None:
        self._log.append((round(self._loop.now - 1000.0, 6), self._name))
        if self._name == "broken":
            raise ZeroDivisionError


def test_each_ends_in_its_time_and_one_that_fails_or_is_kept_holds_up_nobody() -> None:
    loop = VirtualLoop()
    expiry = Expiry(loop.runtime)
    log: list[tuple[float, str]] = []
    things = {name: Thing(loop, log, name) for name in ("broken", "kept", "second", "short", "late")}
    expiry.add(things["broken"], 2.0)
    expiry.add(things["kept"], 2.0)
    expiry.add(things["second"], 2.0)
    expiry.add(things["short"], 0.5)
    loop.advance(1.0)
    expiry.add(things["late"], 2.0)
    things["kept"].until = None
    loop.advance(5.0)
    assert log == [(0.501, "short"), (2.001, "broken"), (2.001, "second"), (3.001, "late")]  # the loop has read before
    assert all(thing.until is None for thing in things.values())
    expiry.add(things["kept"], 2.0)
    loop.advance(2.001)
    assert log[-1] == (8.001, "kept")


def test_many_that_end_at_once_all_end() -> None:
    loop = VirtualLoop()
    expiry = Expiry(loop.runtime)
    log: list[tuple[float, str]] = []
    for number in range(1_000):
        expiry.add(Thing(loop, log, str(number)), 2.0)
    assert len(loop.timers) == 1
    loop.advance(2.001)
    assert [name for _, name in log] == [str(number) for number in range(1_000)]


async def test_what_arrived_while_the_loop_was_busy_is_read_before_a_socket_ends() -> None:
    runtime = runtime_of(asyncio.get_running_loop())
    read: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()

    class Ending:
        until: float | None = None

        def expire(self) -> None:
            ended.set_result(list(read))

    def busy() -> None:
        runtime.remove_reader(wakes)
        theirs.send(b"late")
        time.sleep(0.05)

    ours, theirs = socket.socketpair()
    wakes, wake = socket.socketpair()
    with ours, theirs, wakes, wake:
        runtime.add_reader(ours, lambda: read.append(ours.recv(100)))
        runtime.add_reader(wakes, busy)
        wake.send(b"x")
        ending = Ending()
        Expiry(runtime).add(ending, 0.02)
        assert await ended == [b"late"]
        runtime.remove_reader(ours)
