"""Where the microseconds of a connect, an endpoint, a datagram and a move go: ``python -m benchmarks.profile connect``.

The functions with which a step begins are replaced by ones that measure them, each without the steps that it calls. What that
takes by itself is measured first, and subtracted. Bindsock as a whole, and what stands beside it, are measured in turn without
it. Each figure is the median of several rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import importlib
import inspect
import os
import socket
import statistics
import sys
import time
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindsock import TransportFactory, interface_of
from bindsock.kernel.linux.mptcp.sockets import protocol
from bindsock.testing.lab import Lab, LabUnavailable, enter_user_namespace

from .datapath import ROUND_TRIPS, Answers, echo, exchange, repeat_nothing
from .endpoints import abort, made
from .figures import number
from .isolated import go_first
from .moving import bare_in_place, bare_overlapping
from .multipath import connected, echoing, use_path_manager
from .report import this_machine
from .setting import FEW_ROUTES, Unavailable, laboratory, loop_factories

_BATCH = 50
_ROUNDS = 15
_MOVED = 1_000
"""Endpoints that are moved."""
_SETTLED = 0.5
_PATIENCE = 20.0
_MULTIPATH_ROUNDS = 5
_OVERLAP = 2.5
"""Seconds until the first of two overlapping sockets is closed, and more."""


@dataclass(frozen=True, slots=True)
class Step:
    """Functions that together do one thing.

    :param what: the thing
    :param why: why it cannot go
    :param functions: ``module:Class.function``
    """

    what: str
    why: str
    functions: tuple[str, ...]

    def resolved(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Each function with the class or module that has it, and its name there."""
        for name in self.functions:
            module, _, path = name.partition(":")
            *owners, last = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            yield owner, last, getattr(owner, last)


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found of one subject, in microseconds."""

    subject: Subject
    whole: float
    beside: float
    steps: dict[str, float]


class Stopwatch:
    """Measures steps that call each other, each without the others.

    :param clock: returns nanoseconds
    """

    def __init__(self, steps: Sequence[Step], clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._steps = steps
        self._clock = clock
        self._stack: list[str] = []
        self._last = 0
        self._spent: dict[str, int] = {step.what: 0 for step in steps}
        self._entered: dict[str, int] = dict(self._spent)
        """How often a step begins or goes on."""
        self._left: dict[str, int] = dict(self._spent)
        """How often it calls another one."""

    def _enter(self, what: str) -> None:
        now = self._clock()
        if self._stack:
            self._spent[self._stack[-1]] += now - self._last
            self._left[self._stack[-1]] += 1
        self._stack.append(what)
        self._entered[what] += 1
        self._last = self._clock()

    def _leave(self) -> None:
        now = self._clock()
        self._spent[self._stack.pop()] += now - self._last
        self._last = self._clock()

    def _function(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._enter(what)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return measured

    def _coroutine(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @types.coroutine
        def drive(coroutine: Any) -> Generator[Any, Any, Any]:
            sent = None
            while True:
                self._enter(what)
                try:
                    waits_for = coroutine.send(sent)
                except StopIteration as end:
                    return end.value
                finally:
                    self._leave()
                sent = yield waits_for

        async def measured(*args: Any, **kwargs: Any) -> Any:
            return await drive(function(*args, **kwargs))

        return measured

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure what is done in the block."""
        undo: list[Callable[[], None]] = []
        for step in self._steps:
            for owner, name, function in step.resolved():
                own = name in vars(owner)
                undo.append(functools.partial(setattr, owner, name, function) if own else functools.partial(delattr, owner, name))
                measured = self._coroutine if inspect.iscoroutinefunction(function) else self._function
                setattr(owner, name, measured(step.what, function))
        try:
            yield
        finally:
            for restore in undo:
                restore()

    def forget(self) -> None:
        """Begin anew."""
        for counts in (self._spent, self._entered, self._left):
            counts.update(dict.fromkeys(counts, 0))

    def spent(self) -> dict[str, float]:
        """Nanoseconds of each step, without what measuring it took."""
        inside, outside = _cost_of_measuring(self._clock)
        return {
            what: max(0.0, spent - inside * self._entered[what] - outside * self._left[what])
            for what, spent in self._spent.items()
        }

    def each(self) -> tuple[float, float]:
        """Nanoseconds of the only two steps for each time that they were entered, with the measuring."""
        first, second = (self._spent[what] / self._entered[what] for what in self._spent)
        return first, second


class _Nothing:
    def outer(self) -> None:
        self.inner()

    def inner(self) -> None:
        pass


@functools.cache
def _cost_of_measuring(clock: Callable[[], int]) -> tuple[float, float]:
    """Nanoseconds that measuring adds to a step each time it is entered, and each time it calls another."""
    calls = 50_000
    names = (f"{__name__}:_Nothing.outer", f"{__name__}:_Nothing.inner")
    stopwatch = Stopwatch([Step(name, "", (name,)) for name in names], clock)
    nothing = _Nothing()
    begun = clock()
    for _ in range(calls):
        nothing.outer()
    bare = (clock() - begun) / calls / 2
    with stopwatch.running():
        for _ in range(calls):
            nothing.outer()
    outer, inner = stopwatch.each()
    return inner - bare, outer - inner


_CONNECT = (
    Step(
        "the keywords are checked and handed on",
        "a misspelled keyword is refused and a wrong value named",
        (
            "bindsock.factory:TransportFactory.create_connection",
            "bindsock.connector:Connector.create_connection",
            "bindsock.connector:Connector._dialer",
        ),
    ),
    Step(
        "the host is found to be numeric",
        "remembered by its text; asyncio and uvloop parse it each time",
        ("bindsock.dial.dialer:Dialer._resolved",),
    ),
    Step(
        "the kernel is asked whether the network has changed",
        "one poll(); without it a dial could take the path of a moment ago",
        ("bindsock.netmon.watcher:Watcher.refresh",),
    ),
    Step(
        "the interface is looked up, the attempt made",
        "the decision is kept, the objects of an attempt cannot be",
        (
            "bindsock.dial.dialer:Dialer.complete",
            "bindsock.dial.dialer:Dialer._destinations",
            "bindsock.dial.dialer:Dialer._winner",
        ),
    ),
    Step("the socket is made", "socket(), as in asyncio and uvloop", ("bindsock.dial.attempt:Attempt._make",)),
    Step(
        "it is bound to the interface",
        "SO_BINDTOIFINDEX, and SIOCGIFNAME, since the kernel accepts any number; a look at the route",
        ("bindsock.dial.attempt:bind_or_close",),
    ),
    Step(
        "it is connected",
        "connect(), as in asyncio and uvloop; getpeername() instead of a turn of the loop",
        ("bindsock.dial.attempt:Attempt.begin",),
    ),
    Step(
        "its local address is checked",
        "getsockname(): the system may have chosen a tunnel's",
        ("bindsock.dial.attempt:Attempt.verified",),
    ),
    Step(
        "it is followed from now on",
        "two objects and three weak references: nothing keeps a connection alive",
        ("bindsock.connector:Connector._follow_dialled",),
    ),
    Step(
        "the loop makes its transport",
        "the loop's own create_connection(sock=), which is a part of what stands beside",
        (
            "bindsock.connector:Connector._attach_dialled",
            "bindsock.connector:Connector._attach",
            "bindsock.stream.guard:StreamGuard.attach",
        ),
    ),
)
_RESTED = (
    *_CONNECT,
    Step(
        "what has happened since the last connect is looked for",
        "poll(), and the clocks that tell of a sleep: nobody has listened meanwhile",
        ("bindsock.netmon.watcher:Watcher._catch_up",),
    ),
)
_ENDPOINT = (
    Step(
        "the keywords are checked and handed on, the watcher is held",
        "a misspelled keyword is refused; no event may be missed between the look and the binding",
        (
            "bindsock.factory:TransportFactory.create_datagram_endpoint",
            "bindsock.connector:Connector.create_datagram_endpoint",
            "bindsock.datagram.open:open_datagram",
        ),
    ),
    Step(
        "the host is found to be numeric",
        "remembered by its text; asyncio parses it each time",
        ("bindsock.datagram.open:_address_pairs",),
    ),
    Step(
        "the kernel is asked whether the network has changed",
        "one poll(); without it an endpoint could take the path of a moment ago",
        ("bindsock.netmon.watcher:Watcher.refresh",),
    ),
    Step(
        "it is decided where the socket belongs",
        "the decision is kept; loopback, broadcast, a local address and a pin are asked for each time",
        (
            "bindsock.datagram.open:_Opening.open",
            "bindsock.datagram.open:_Opening._make",
            "bindsock.datagram.open:_Opening._requirement",
            "bindsock.datagram.open:_Opening._first_placement",
        ),
    ),
    Step("the socket is made", "socket(), as in asyncio", ("bindsock.datagram.socket_spec:SocketSpec.make",)),
    Step(
        "it is bound and connected",
        "SIOCGIFNAME and SO_BINDTOIFINDEX; connect(), as in asyncio",
        ("bindsock.datagram.socket_spec:SocketSpec.bind_and_connect",),
    ),
    Step(
        "what moves it is made",
        "where it is, and what a dying device may drop of it; getpeername()",
        ("bindsock.datagram.open:_Opening._mover",),
    ),
    Step(
        "the transport is made",
        "with what holds datagrams while there is no path",
        ("bindsock.datagram.transport:DatagramTransport.__init__",),
    ),
    Step("it is followed from now on", "a place among the followers", ("bindsock.datagram.mover:DatagramMover.start",)),
    Step(
        "the protocol is told, and reading begins, in a turn of the loop",
        "the loop's add_reader(), as in asyncio",
        ("bindsock.datagram.transport:DatagramTransport._begin",),
    ),
)
_SEND = (
    Step(
        "data and destination are checked",
        "as in asyncio",
        ("bindsock.datagram.transport:DatagramTransport.sendto",),
    ),
    Step(
        "the clock is read, and it is seen that the socket is where it belongs",
        "what was sent last moves first; nothing leaves by the old path once another is known",
        ("bindsock.datagram.sender:Sender.send",),
    ),
    Step("the system sends", "send(), as in asyncio", ("socket:socket.send",)),
    Step(
        "the datagram is counted",
        "for the statistics, and for what a dying device drops",
        ("bindsock.datagram.drop_counter:DropCounter.sent",),
    ),
)
_EXCHANGE = (
    *_SEND,
    Step(
        "the loop reports that there is something to read",
        "the clock is read: what has received last moves first",
        ("bindsock.datagram.transport:DatagramTransport.readable",),
    ),
    Step("the system receives", "recvfrom(), as in asyncio", ("socket:socket.recvfrom",)),
    Step(
        "the datagram is handed to the program",
        "as in asyncio; who sent it is checked, since a socket that moves accepts strangers for a moment",
        ("bindsock.datagram.transport:DatagramTransport._read",),
    ),
)
_LINE = (
    Step(
        "what the program writes is passed on",
        "while the connection is replaced, it is held for the next one",
        ("bindsock.reconnect.transport:ReplaceableTransport.write",),
    ),
    Step("the loop's transport sends it", "send(), as in asyncio", ("asyncio.selector_events:_SelectorSocketTransport.write",)),
    Step(
        "what has been received is passed on",
        "connections come and go, the program's protocol stays",
        (
            "bindsock.reconnect.connection:Connection.data_received",
            "bindsock.reconnect.transport:ReplaceableTransport.deliver",
        ),
    ),
    Step(
        "it is added to what is unread",
        "as in asyncio",
        (
            "asyncio.streams:StreamReaderProtocol.data_received",
            "bindsock.reconnect.streams:ReplaceableReader.feed_data",
            "bindsock.reconnect.streams:ReplaceableReader._wake",
        ),
    ),
    Step(
        "the line is waited for and found",
        "as in asyncio, but the hook may take what is unread meanwhile: then the search starts over",
        (
            "bindsock.reconnect.streams:ReplaceableReader.readline",
            "bindsock.reconnect.streams:ReplaceableReader.readuntil",
            "bindsock.reconnect.streams:ReplaceableReader._more",
        ),
    ),
    Step(
        "the line is taken",
        "as in asyncio",
        ("bindsock.reconnect.streams:ReplaceableReader._consume",),
    ),
)
_IN_TURNS = Step(
    "the endpoints have their turns",
    "those used last first, no turn longer than 3 ms",
    (
        "bindsock.datagram.followers:DatagramFollowers.network_changed",
        "bindsock.datagram.followers:DatagramFollowers._move_some",
        "bindsock.datagram.followers:DatagramFollowers._notify",
    ),
)
_COMPARED = (
    _IN_TURNS,
    Step(
        "where it is is compared with where it belongs",
        "each endpoint has its own destination and its own socket",
        (
            "bindsock.datagram.mover:DatagramMover.network_changed",
            "bindsock.datagram.mover:DatagramMover._update_placement",
            "bindsock.datagram.plan:Requirement.placement",
        ),
    ),
    Step(
        "its own address is asked for",
        "getsockname(): an endpoint whose address is still there can stay",
        ("bindsock.datagram.in_place:InPlace.source",),
    ),
    Step("what leads there is planned", "pure: facts to orders", ("bindsock.datagram.mover:plan",)),
    Step(
        "the first hop and the route are looked up",
        "what is asked of the kernel once serves all endpoints of a turn",
        ("bindsock.datagram.in_place:InPlace.hop_silent", "bindsock.datagram.in_place:InPlace.check_route"),
    ),
    Step(
        "what may be lost is counted",
        "the statistics account for every datagram",
        (
            "bindsock.datagram.in_place:InPlace.count_drops",
            "bindsock.datagram.in_place:InPlace.count_stuck",
            "bindsock.datagram.in_place:InPlace.moved",
        ),
    ),
    Step(
        "the move is carried out",
        "a move that fails is tried again, and what is sent is held meanwhile",
        (
            "bindsock.datagram.mover:DatagramMover._move",
            "bindsock.datagram.mover:DatagramMover._carry_out",
            "bindsock.datagram.in_place:InPlace.move",
        ),
    ),
    Step(
        "what waits is sent",
        "whatever was held goes out now",
        ("bindsock.datagram.mover:DatagramMover._resume",),
    ),
)
_IN_PLACE = (
    *_COMPARED,
    Step("the kernel moves the socket", "the bare calls", ("bindsock.kernel.linux.kernel:LinuxKernel.rebind",)),
)
_OVERLAPPING = (
    *_COMPARED,
    Step("another socket is made", "the bare calls", ("bindsock.datagram.mover:DatagramMover._duplicate",)),
    Step(
        "it takes over, and the old one is kept for two seconds",
        "what is on its way by the old path is still received",
        ("bindsock.datagram.mover:DatagramMover._swap", "bindsock.datagram.held_sockets:HeldSockets.keep"),
    ),
    Step(
        "the loop reads by it, too",
        "the loop's add_reader()",
        ("bindsock.netmon.runtime:Runtime.add_reader",),
    ),
)
_EVENT = (
    Step(
        "the kernel's message is read",
        "recv(), and a look at what it is about",
        ("bindsock.netmon.watcher:Watcher._drain",),
    ),
    Step(
        "the network is read",
        "the default route by each interface, and the way to the destination; 0.1 ms where it was done a moment ago",
        ("bindsock.netmon.reading:NetworkReader.read",),
    ),
    Step("it is decided", "pure; kept until the next event", ("bindsock.routing.effective:Decider._decide",)),
    Step(
        "the first hop is asked",
        "a path that passes nothing yet is not taken",
        ("bindsock.datagram.in_place:InPlace.hop_silent",),
    ),
    Step(
        "the endpoint is moved",
        "as above, with nothing in the processor's caches",
        ("bindsock.datagram.mover:DatagramMover.network_changed",),
    ),
    Step(
        "the followers are told",
        "and the next readings are scheduled",
        ("bindsock.netmon.watcher:Watcher._read",),
    ),
)


_LINK_DOWN = (
    Step(
        "the kernel's messages are read",
        "recv(), and a look at what they are about: the link, its routes and its addresses",
        ("bindsock.netmon.watcher:Watcher._drain",),
    ),
    Step(
        "the network without the link is taken",
        "nothing is asked: it was worked out with the last complete reading",
        ("bindsock.netmon.reading:NetworkReader.read", "bindsock.netmon.watcher:Watcher._set_decider"),
    ),
    Step(
        "the first hop is asked",
        "a path that passes nothing yet is not sent by",
        ("bindsock.datagram.in_place:InPlace.hop_silent",),
    ),
    Step(
        "it is planned where the socket belongs",
        "decided ahead; pure",
        (
            "bindsock.datagram.mover:DatagramMover.network_changed",
            "bindsock.datagram.mover:DatagramMover._update_placement",
            "bindsock.datagram.mover:plan",
        ),
    ),
    Step(
        "it is noted what the dead device still had",
        "the device itself is asked afterwards",
        ("bindsock.datagram.in_place:InPlace.count_drops",),
    ),
    Step(
        "the kernel moves the socket",
        "the bare calls, with nothing in the processor's caches",
        ("bindsock.kernel.linux.kernel:LinuxKernel.rebind",),
    ),
    Step(
        "the move is carried out",
        "a move that fails is tried again; the route is looked up in what is known",
        ("bindsock.datagram.mover:DatagramMover._move", "bindsock.datagram.in_place:InPlace.move"),
    ),
    Step(
        "what waits is sent",
        "whatever was held goes out now",
        ("bindsock.datagram.mover:DatagramMover._resume",),
    ),
    Step(
        "the followers are told",
        "and the announcement is left for later",
        ("bindsock.netmon.watcher:Watcher._readable", "bindsock.netmon.watcher:Watcher._read"),
    ),
)


_MULTIPATH = (
    Step(
        "the subflows are asked for",
        "three getsockopt(), at each reading, check and order: no event tells when a subflow has come or gone",
        ("bindsock.kernel.linux.mptcp.sockets:states",),
    ),
    Step(
        "it is asked what a new subflow is bound to",
        "sock_diag, once for each: a deleted interface has left its address to the one that replaces it",
        ("bindsock.kernel.linux.mptcp.sock_diag:bound",),
    ),
    Step(
        "it is planned which subflows there should be",
        "at each reading, when the new subflow has come, and when the other has gone",
        (
            "bindsock.stream.guard:StreamGuard.network_changed",
            "bindsock.stream.follower:PathFollower.update",
            "bindsock.stream.multipath.manager:SubflowManager.facts",
            "bindsock.stream.follower:plan",
        ),
    ),
    Step(
        "the address of the new subflow is asked for",
        "the one that the kernel would take: connect() of a datagram socket, which sends nothing",
        ("bindsock.kernel.linux.sockets:source",),
    ),
    Step(
        "the new subflow is ordered",
        "one endpoint for all connections; each finds out whether it has its subflow from it",
        (
            "bindsock.stream.multipath.manager:SubflowManager.move",
            "bindsock.stream.multipath.manager:SubflowManager._order_in_turn",
            "bindsock.kernel.linux.mptcp.path_manager:PathManager.add",
            "bindsock.kernel.linux.mptcp.operations:Operations._advance",
        ),
    ),
    Step(
        "it is looked whether the new subflow has come",
        "after 1 ms, then after a quarter of the time that has passed",
        (
            "bindsock.stream.multipath.manager:SubflowManager._check",
            "bindsock.stream.multipath.manager:SubflowManager._check_in_turn",
        ),
    ),
    Step(
        "its receive buffer is enlarged",
        "setsockopt(): the small one of a new subflow would stop a download for 200 ms",
        ("bindsock.stream.multipath.manager:SubflowManager.arrived",),
    ),
    Step(
        "the old subflow is reset",
        "SOCK_DESTROY by sock_diag: it must not carry anything any more, and the endpoint has to stay for a moment",
        ("bindsock.stream.multipath.manager:SubflowManager.remove", "bindsock.kernel.linux.mptcp.sock_diag:reset"),
    ),
    Step(
        "the other connections that need the endpoint are looked for",
        "in the list that the thread has made; its removal ends the subflows of all programs",
        (
            "bindsock.kernel.linux.mptcp.path_manager:PathManager._needing",
            "bindsock.kernel.linux.mptcp.path_manager:PathManager._is_ending",
            "bindsock.kernel.linux.mptcp.path_manager:PathManager._end_stale",
        ),
    ),
    Step(
        "the network is read",
        "once for all connections; twice in each move",
        ("bindsock.netmon.watcher:Watcher._read", "bindsock.netmon.watcher:Watcher._drain"),
    ),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is profiled."""

    title: str
    steps: tuple[Step, ...]
    beside: str
    """What stands beside it; empty if nothing does."""
    measure: Callable[[Subject], Profile]
    loop: str = "asyncio"
    count: int = 1
    """How many endpoints or connections move."""


Make = Callable[[], Awaitable[Any]]


async def _connection(connect: Callable[..., Awaitable[Any]], lab: Lab) -> Any:
    return (await connect(asyncio.Protocol, lab.server.ipv4, lab.server.tcp_port))[0]


async def _endpoint(make: Callable[..., Awaitable[Any]], lab: Lab) -> Any:
    return (await make(asyncio.DatagramProtocol, remote_addr=(lab.server.ipv4, lab.server.udp_port)))[0]


async def _nanoseconds(make: Make) -> float:
    begun = time.perf_counter_ns()
    transport = await make()
    taken = time.perf_counter_ns() - begun
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return taken


async def _profiled(
    subject: Subject, ours: Sequence[Make], measured: Sequence[Make], own: Make
) -> tuple[float, float, dict[str, float]]:
    """One round.

    :param ours: what is made without measuring its steps
    :param measured: what is made while they are measured
    """
    whole, beside = [], []
    for make in ours:
        whole.append(await _nanoseconds(make))
        beside.append(await _nanoseconds(own))
    stopwatch = Stopwatch(subject.steps)
    with stopwatch.running():
        for make in measured:
            await _nanoseconds(make)
    each = {what: spent / len(measured) for what, spent in stopwatch.spent().items()}
    return statistics.median(whole), statistics.median(beside), each


def _medians(subject: Subject, rounds: Sequence[tuple[float, float, dict[str, float]]]) -> Profile:
    rounds = rounds[1:]
    steps = {step.what: statistics.median(spent[step.what] for _, _, spent in rounds) / 1e3 for step in subject.steps}
    return Profile(
        subject, statistics.median(w for w, _, _ in rounds) / 1e3, statistics.median(b for _, b, _ in rounds) / 1e3, steps
    )


def _made(subject: Subject) -> Profile:
    """Profile what is made again and again while something else is followed."""
    connecting = subject.steps is _CONNECT

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        factory, loop = TransportFactory(), asyncio.get_running_loop()
        followed = await _connection(factory.create_connection, lab)
        if connecting:
            ours = functools.partial(_connection, factory.create_connection, lab)
            own = functools.partial(_connection, loop.create_connection, lab)
        else:
            ours = functools.partial(_endpoint, factory.create_datagram_endpoint, lab)
            own = functools.partial(_endpoint, loop.create_datagram_endpoint, lab)
        found = []
        for _ in range(_ROUNDS + 1):
            gc.collect()
            found.append(await _profiled(subject, [ours] * _BATCH, [ours] * _BATCH, own))
        followed.abort()
        return found

    return _in_laboratory(subject, rounds)


def _after_a_rest(subject: Subject) -> Profile:
    """Profile the first connects of factories that all rest."""

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        own = functools.partial(_connection, asyncio.get_running_loop().create_connection, lab)
        found = []
        for _ in range(5):
            makes = [functools.partial(_connection, TransportFactory().create_connection, lab) for _ in range(2 * _BATCH)]
            for make in makes:
                await _nanoseconds(make)
            await asyncio.sleep(1.2)
            gc.collect()
            found.append(await _profiled(subject, makes[:_BATCH], makes[_BATCH:], own))
        return found

    return _in_laboratory(subject, rounds)


def _sent(subject: Subject) -> Profile:
    """Profile ``sendto()``."""

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        factory, loop = TransportFactory(), asyncio.get_running_loop()
        with lab.inside("server"):
            nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            nobody.bind((lab.server.ipv4, 0))
        remote = nobody.getsockname()
        ours, own = [
            (await make(asyncio.DatagramProtocol, remote_addr=remote))[0]
            for make in (factory.create_datagram_endpoint, loop.create_datagram_endpoint)
        ]
        data, count, found = bytes(200), 4 * _BATCH, []

        def each(transport: asyncio.DatagramTransport) -> float:
            begun = time.perf_counter_ns()
            for _ in range(count):
                transport.sendto(data)
            return (time.perf_counter_ns() - begun) / count

        for turn in range(4 * _ROUNDS + 1):
            for transport in (ours, own):  # what is done the first time after a pause does not count
                transport.sendto(data)
            order = (ours, own) if turn % 2 else (own, ours)
            taken = {transport: each(transport) for transport in order}
            whole, beside = taken[ours], taken[own]
            stopwatch = Stopwatch(subject.steps)
            with stopwatch.running():
                each(ours)
            found.append((whole, beside, {what: spent / count for what, spent in stopwatch.spent().items()}))
            await asyncio.sleep(0.01)
        await abort([ours, own])
        nobody.close()
        return found

    return _in_laboratory(subject, rounds)


def _there_and_back(subject: Subject) -> Profile:
    """Profile what is sent to a server and comes back, as the processor's time of this thread."""
    datagrams = subject.steps is _EXCHANGE
    # asyncio receives into 256 KB. Until a larger block has been freed, glibc maps that memory for each read, which takes 15 µs.
    bytearray(1 << 20)

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        factory, loop, found = TransportFactory(), asyncio.get_running_loop(), []

        async def opened(*, ours: bool) -> tuple[asyncio.BaseTransport, Callable[[], Awaitable[float]]]:
            if datagrams:
                make = factory.create_datagram_endpoint if ours else loop.create_datagram_endpoint
                transport, answers = await make(Answers, remote_addr=(lab.server.ipv4, lab.server.udp_port))
                return transport, functools.partial(exchange, transport, answers)
            to = (lab.server.ipv4, lab.server.tcp_port)
            connecting = factory.open_connection(*to, on_reconnect=repeat_nothing) if ours else asyncio.open_connection(*to)
            reader, writer = await connecting
            await reader.readline()
            return writer.transport, functools.partial(echo, reader, writer)

        sides = {side: await opened(ours=side) for side in (True, False)}
        for turn in range(2 * _ROUNDS + 1):
            taken = {side: await sides[side][1]() * 1e9 for side in ((True, False) if turn % 2 else (False, True))}
            stopwatch = Stopwatch(subject.steps, time.thread_time_ns)
            with stopwatch.running():
                # Its callbacks, which the loop and other objects remember, are those that are measured.
                transport, use = await opened(ours=True)
                stopwatch.forget()
                await use()
                steps = {what: spent / ROUND_TRIPS for what, spent in stopwatch.spent().items()}
            found.append((taken[True], taken[False], steps))
            await abort([transport])
        await abort([transport for transport, _ in sides.values()])
        return found

    return _in_laboratory(subject, rounds)


async def _until_moved(factory: TransportFactory, moved: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while factory.statistics().rebinds < moved and time.monotonic() < deadline:  # noqa: ASYNC110 - the loop is to go round
        await asyncio.sleep(0)


def _moved(subject: Subject) -> Profile:
    """Profile moves of many endpoints."""
    in_place = subject.steps is _IN_PLACE or subject.steps is _LINK_DOWN
    if subject.steps is _EVENT or subject.steps is _LINK_DOWN:
        outermost = (*subject.steps[0].functions, *subject.steps[-1].functions)
    else:
        outermost = _IN_TURNS.functions
    everything = (Step("all", "", outermost),)
    count = subject.count

    async def move(factory: TransportFactory, lab: Lab, steps: Sequence[Step]) -> dict[str, float]:
        """Nanoseconds of the steps for each endpoint that moves from wifi0 to eth0."""
        await asyncio.sleep(_SETTLED)
        gc.collect()
        moved = factory.statistics().rebinds + count
        stopwatch = Stopwatch(steps)
        with stopwatch.running():
            lab.down("wifi0") if in_place else lab.default("eth0")
            await _until_moved(factory, moved)
            found = {what: spent / count for what, spent in stopwatch.spent().items()}
        if in_place:
            lab.default("eth0")
            lab.up("wifi0")
            lab.wait_until_running("wifi0")
        await asyncio.sleep(_OVERLAP)
        moved = factory.statistics().rebinds + count
        lab.default("wifi0")
        await _until_moved(factory, moved)
        await asyncio.sleep(_OVERLAP)
        return found

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        there = (elsewhere.server.ipv4, elsewhere.server.udp_port)
        found = []
        async with TransportFactory() as factory:
            transports = await made(factory.create_datagram_endpoint, (lab.server.ipv4, lab.server.udp_port), count)
            for _ in range(4 if count > 1 else 6):
                whole = (await move(factory, lab, everything))["all"]
                with elsewhere.inside():
                    bare = (bare_in_place if in_place else bare_overlapping)(there, count) / count * 1e9
                found.append((whole, bare, await move(factory, lab, subject.steps)))
            await abort(transports)
        return found

    # The bare sockets have a host of their own: there, no port that one of them moves with is taken.
    with laboratory(FEW_ROUTES) as elsewhere:
        return _in_laboratory(subject, rounds)


def _multipath_moved(subject: Subject) -> Profile:
    """Profile multipath connections that move there and back, with the in-kernel path manager."""
    outermost = ("bindsock.netmon.turns:CallbackBudget._work", *(name for step in subject.steps for name in step.functions))
    everything = (Step("all", "", outermost),)

    async def move(lab: Lab, writers: Sequence[asyncio.StreamWriter], steps: Sequence[Step]) -> dict[str, float]:
        """Nanoseconds of the steps for each connection and move."""
        stopwatch = Stopwatch(steps)
        for uplink in ("eth0", "wifi0"):
            gc.collect()
            with stopwatch.running():
                lab.default(uplink)
                while any(interface_of(writer) != uplink for writer in writers):  # noqa: ASYNC110 - the loop is to go round
                    await asyncio.sleep(0)
                await asyncio.sleep(_SETTLED)
        return {what: spent / (2 * len(writers)) for what, spent in stopwatch.spent().items()}

    async def rounds(lab: Lab) -> list[tuple[float, float, dict[str, float]]]:
        use_path_manager("in-kernel")
        async with echoing(lab) as address, TransportFactory() as factory:
            writers = [await connected(address, factory) for _ in range(subject.count)]
            found = []
            for _ in range(_MULTIPATH_ROUNDS):
                whole = (await move(lab, writers, everything))["all"]
                found.append((whole, 0.0, await move(lab, writers, subject.steps)))
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(_SETTLED)
        return found

    if protocol() is None:
        raise Unavailable("this kernel has no multipath TCP")
    return _in_laboratory(subject, rounds)


def _in_laboratory(subject: Subject, rounds: Callable[[Lab], Any]) -> Profile:
    loops = loop_factories()
    if subject.loop not in loops:
        raise Unavailable(f"{subject.loop} is not here")
    with laboratory(FEW_ROUTES) as lab, lab.inside(), asyncio.Runner(loop_factory=loops[subject.loop]) as runner:
        return _medians(subject, runner.run(rounds(lab)))


SUBJECTS = {
    "connect": Subject("A connect on asyncio", _CONNECT, "asyncio's own", _made),
    "connect-uvloop": Subject("A connect on uvloop", _CONNECT, "uvloop's own", _made, "uvloop"),
    "rested": Subject("A connect on asyncio after nothing was followed for a while", _RESTED, "asyncio's own", _after_a_rest),
    "rested-uvloop": Subject("The same on uvloop", _RESTED, "uvloop's own", _after_a_rest, "uvloop"),
    "endpoint": Subject("A connected datagram endpoint on asyncio", _ENDPOINT, "asyncio's own", _made),
    "send": Subject("A datagram that is sent on asyncio", _SEND, "asyncio's own", _sent),
    "send-uvloop": Subject("The same on uvloop", _SEND, "uvloop's own", _sent, "uvloop"),
    "exchange": Subject("A datagram and its answer on asyncio", _EXCHANGE, "asyncio's own", _there_and_back),
    "line": Subject("A line and its echo over a stream with on_reconnect on asyncio", _LINE, "asyncio's own", _there_and_back),
    "in-place": Subject(f"One of {_MOVED:,} endpoints that move in place", _IN_PLACE, "the bare calls", _moved, count=_MOVED),
    "overlapping": Subject(
        f"One of {_MOVED:,} endpoints that move with an overlap", _OVERLAPPING, "the bare calls", _moved, count=_MOVED
    ),
    "multipath": Subject(
        "One of 50 multipath connections that move, in-kernel path manager", _MULTIPATH, "", _multipath_moved, count=50
    ),
    "down": Subject("The first endpoint that moves when its link goes down", _LINK_DOWN, "the bare calls", _moved),
    "switch": Subject("The first endpoint that moves when the default is switched", _EVENT, "the bare calls", _moved),
}


def as_markdown(profile: Profile) -> str:
    """The table of one subject."""
    subject, whole, beside = profile.subject, profile.whole, profile.beside
    lines = [
        f"### {subject.title}",
        "",
        f"{number(whole)} µs, {number(whole / beside)} times {subject.beside} ({number(beside)} µs)."
        if subject.beside
        else f"{number(whole)} µs.",
        "",
        "| step | µs | share | why it is there |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {step.what} | {number(profile.steps[step.what])} | {profile.steps[step.what] / whole:.0%} | {step.why} |"
        for step in subject.steps
    ]
    rest = whole - sum(profile.steps.values())
    if rest > 0:
        lines.append(
            f"| the rest | {number(rest)} | {rest / whole:.0%} | turns of the loop in between, and what measuring cannot tell |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.split("\n", 1)[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"all, or some of {', '.join(SUBJECTS)}")
    parser.add_argument("--table", metavar="FILE", type=Path, help="save the tables, in Markdown")
    parser.add_argument("--urgent", action="store_true", help="go before all other processes (root)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no subject {unknown[0]!r}: there are {', '.join(SUBJECTS)}")
    if arguments.urgent:
        if os.geteuid() != 0:
            parser.error("only root may go before all other processes")
        os.setsid()
        go_first()
    machine = ", ".join(f"{key} {value}" for key, value in this_machine().items())
    tables = [f"Measured on: {machine}.\n"]
    try:
        enter_user_namespace()
        for name in arguments.subjects or SUBJECTS:
            subject = SUBJECTS[name]
            tables.append(as_markdown(subject.measure(subject)))
            print(tables[-1], flush=True)
    except (LabUnavailable, Unavailable) as exc:
        print(exc, file=sys.stderr)
        return 1
    if arguments.table is not None:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text("\n".join(tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
