"""The queue of connections that the program has closed and the peer has not."""

from __future__ import annotations

import socket

import pytest

from bindsock.dial.lingering_close import LingerQueue
from bindsock.testing import SimulatedKernel, network


class Subflows(SimulatedKernel):
    """A kernel in which connections have subflows until told otherwise."""

    alive = True

    def needs_lingering_close(self, sock: socket.socket) -> bool:
        return self.alive


@pytest.fixture
def kernel() -> Subflows:
    return Subflows(network())


@pytest.fixture
def ended() -> socket.socket:
    """A connection whose stream has ended on both sides: to shut it down fails with ENOTCONN."""
    return socket.socket(socket.AF_INET6)


def test_a_connection_whose_stream_has_ended_waits_for_its_subflows(kernel: Subflows, ended: socket.socket) -> None:
    queue = LingerQueue()
    descriptor = queue.add(ended, kernel, due=1.0)
    assert descriptor == ended.fileno() != -1
    assert list(queue) == [descriptor]
    queue.close(descriptor)
    assert ended.fileno() == -1


def test_a_connection_that_has_ended_with_its_subflows_is_closed_at_once(kernel: Subflows, ended: socket.socket) -> None:
    kernel.alive = False
    queue = LingerQueue()
    assert queue.add(ended, kernel, due=1.0) is None
    assert ended.fileno() == -1
    assert not len(queue)
