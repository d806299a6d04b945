"""The checks for the end of the last subflow: one timer for all multipath connections of an event loop."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from bindsock.model.subflows import Subflow
from bindsock.netmon.turns import CallbackBudget
from bindsock.stream.multipath.last_subflow import PERIOD, LastSubflow
from bindsock.testing import SimulatedPathManager
from tests.virtual_loop import VirtualLoop

SUBFLOW = Subflow(ip_address("192.0.2.1"), 40000, ip_address("198.51.100.7"), 443)


class Connection:
    """A multipath connection with one subflow, which counts the losses that it is told of."""

    def __init__(self, loop: VirtualLoop, paths: SimulatedPathManager) -> None:
        self.sock = socket.socket()
        self.paths = paths
        self.losses = 0
        self.on_loss: Callable[[], object] = lambda: None
        self.carry()
        self.last = LastSubflow(loop.runtime, paths, self.sock, self.update)

    def update(self) -> None:
        self.losses += 1
        self.on_loss()

    def carry(self, *subflows: Subflow) -> None:
        self.paths.connections[self.sock] = list(subflows or [SUBFLOW])

    def lose(self) -> None:
        self.paths.connections[self.sock] = []

    def close(self) -> None:
        self.last.close()
        self.sock.close()


@pytest.fixture
def loop() -> VirtualLoop:
    return VirtualLoop()


@pytest.fixture
def connections(loop: VirtualLoop) -> Iterator[list[Connection]]:
    paths = SimulatedPathManager()
    made = [Connection(loop, paths) for _ in range(3)]
    yield made
    for each in made:
        each.close()


def losses(connections: list[Connection]) -> list[int]:
    return [each.losses for each in connections]


def test_the_loss_of_the_last_subflow_is_told_once(loop: VirtualLoop, connections: list[Connection]) -> None:
    first, second, _ = connections
    loop.advance(10.0)
    assert losses(connections) == [0, 0, 0]
    first.carry(SUBFLOW, SUBFLOW)
    second.lose()
    loop.advance(10.0)
    assert losses(connections) == [0, 1, 0]
    second.carry()
    loop.advance(PERIOD)
    second.lose()
    loop.advance(10.0)
    assert losses(connections) == [0, 2, 0]


def test_a_loss_that_a_plan_has_seen_is_not_told(loop: VirtualLoop, connections: list[Connection]) -> None:
    first, *_ = connections
    first.lose()
    first.last.note(carried=False)
    loop.advance(10.0)
    assert losses(connections) == [0, 0, 0]


def test_the_loss_of_a_subflow_that_only_a_plan_has_seen_is_told(loop: VirtualLoop, connections: list[Connection]) -> None:
    first, *_ = connections
    first.lose()
    loop.advance(PERIOD)
    first.last.note(carried=True)
    loop.advance(PERIOD)
    assert losses(connections) == [2, 0, 0]


def test_a_connection_that_has_fallen_back_is_told_of_once(loop: VirtualLoop, connections: list[Connection]) -> None:
    first, *_ = connections
    del first.paths.connections[first.sock]
    loop.advance(10.0)
    assert losses(connections) == [1, 0, 0]


def test_all_connections_share_one_timer_which_ends_with_the_last(loop: VirtualLoop, connections: list[Connection]) -> None:
    assert len(loop.timers) == 1
    loop.advance(10.5)
    assert len(loop.timers) == 1
    for each in connections[1:]:
        each.close()
    assert len(loop.timers) == 1
    connections[0].close()
    assert loop.timers == []


def test_the_timer_begins_again_with_the_next_connection(loop: VirtualLoop, connections: list[Connection]) -> None:
    for each in connections:
        each.close()
    another = Connection(loop, connections[0].paths)
    another.lose()
    loop.advance(10.0)
    assert another.losses == 1
    another.close()
    loop.turn()
    assert loop.timers == []


def test_connections_that_are_closed_by_others_are_not_checked(loop: VirtualLoop, connections: list[Connection]) -> None:
    """The first check may close all other connections, which wait for their turn."""

    def close_all() -> None:
        for each in connections:
            each.last.close()

    for each in connections:
        each.lose()
        each.on_loss = close_all
    loop.advance(10.0)
    assert sum(losses(connections)) == 1
    assert loop.timers == []


def test_connections_are_held_weakly(loop: VirtualLoop) -> None:
    connection = Connection(loop, SimulatedPathManager())
    last = weakref.ref(connection.last)
    connection.sock.close()
    del connection
    gc.collect()
    assert last() is None
    loop.advance(PERIOD)
    loop.turn()
    assert loop.timers == []


def test_the_checks_are_made_in_turns(loop: VirtualLoop, connections: list[Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the turns of many connections take, the next round begins after them."""
    waiting: list[Callable[[], object]] = []
    monkeypatch.setattr(CallbackBudget, "do", lambda budget, work: waiting.append(work))
    for each in connections:
        each.lose()
    loop.advance(10.0)
    for done in range(len(connections)):
        assert (sum(losses(connections)), loop.timers) == (done, [])
        waiting.pop(0)()
    (again,) = waiting
    again()
    assert loop.timers == [loop.now + PERIOD]
