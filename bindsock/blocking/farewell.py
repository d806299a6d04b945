"""The end of blocking IPv6 connections, without an event loop: see :mod:`bindsock.dial.farewell`.

It is enough that a duplicate of the descriptor is open when the peer ends: the kernel answers by that socket. The duplicates are
only looked after when the next blocking connection is made or closed.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bindsock.dial.farewell import AT_END, DEADLINE, Leaving

if TYPE_CHECKING:
    import socket

# Times are the system's clock's: blocking sockets belong to threads, in which no event loop runs.
_leaving = Leaving()
_lock = threading.Lock()


def say_farewell(sock: socket.socket) -> None:
    """Take the duplicate of a connection that the program has closed."""
    with _lock:
        _leaving.add(sock, time.monotonic() + DEADLINE)
        _look_after_the_others()


def look_after_farewells() -> None:
    """Close the connections that their peers have ended, or should have."""
    with _lock:
        _look_after_the_others()


def _look_after_the_others() -> None:
    _leaving.reap()
    for descriptor in {*_leaving.surplus(), *_leaving.overdue(time.monotonic())}:
        _leaving.cut(descriptor)


def wait_for_farewells() -> None:
    """Wait a moment for the peers, as the process ends: what is not answered by then is left to the kernel."""
    with _lock:
        _leaving.reap(AT_END)
