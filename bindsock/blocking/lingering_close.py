"""Closes blocking IPv6 connections, without an event loop: see :mod:`bindsock.dial.lingering_close`.

An open duplicate of the descriptor is enough: when the peer ends the connection, the kernel answers by that socket. The
duplicates are only closed when the next blocking connection is made or closed.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bindsock.dial.lingering_close import DEADLINE, WAIT_AT_END, LingerQueue

if TYPE_CHECKING:
    import socket

    from bindsock.kernel import Kernel

# Blocking sockets belong to threads without an event loop, so times are those of the system's clock.
_queue = LingerQueue()
_lock = threading.Lock()


def close_lingering(sock: socket.socket, kernel: Kernel) -> None:
    """Finish a connection that the program has closed, by a duplicate of its socket."""
    with _lock:
        _queue.add(sock, kernel, time.monotonic() + DEADLINE)
        _close_ended()


def close_ended() -> None:
    """Close the connections that the peer has ended, and those whose deadline has passed."""
    with _lock:
        _close_ended()


def _close_ended() -> None:
    _queue.reap()
    for descriptor in {*_queue.surplus(), *_queue.overdue(time.monotonic())}:
        _queue.cut(descriptor)


def wait_for_peers() -> None:
    """Wait a moment for the peers when the process ends. The kernel handles the connections that are left."""
    with _lock:
        _queue.reap(WAIT_AT_END)
