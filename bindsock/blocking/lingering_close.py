"""Closes blocking IPv6 connections, without an event loop: see :mod:`bindsock.dial.lingering_close`.

An open duplicate of the descriptor is enough: when the peer ends the connection, the kernel answers by that socket. While there
are duplicates, a daemon thread waits for the peers and closes them. An interpreter that exits does not wait for the thread.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from bindsock.dial import lingering_close
from bindsock.dial.lingering_close import WAIT_AT_END, LingerQueue

if TYPE_CHECKING:
    import socket

    from bindsock.kernel import Kernel

_CHECK = 1.0
"""Seconds after which the thread looks for new duplicates, and for multipath connections whose subflows have ended."""


class _Closer:
    """The duplicates of one process, and the thread that closes them."""

    def __init__(self) -> None:
        # Blocking sockets belong to threads without an event loop, so times are those of the system's clock.
        self._queue = LingerQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, sock: socket.socket, kernel: Kernel) -> None:
        with self._lock:
            self._queue.add(sock, kernel, time.monotonic() + lingering_close.DEADLINE)
            self._close_ended()
            if len(self._queue) and self._thread is None:
                thread = threading.Thread(target=self._run, name="bindsock lingering close", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter exits, or there are too many threads: the next call closes them
                    return
                self._thread = thread

    def wait(self, seconds: float) -> None:
        with self._lock:
            self._queue.reap(seconds)

    def forget(self) -> None:
        """Close the copies that a forked process has. Its parent goes on waiting, by its own."""
        for descriptor in self._queue:
            self._queue.close(descriptor)
        self._lock = threading.Lock()
        self._thread = None

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            poll, seconds = waiting
            poll.poll(seconds * 1000)

    def _next(self) -> tuple[select.poll, float] | None:
        """What to wait for, and how long; ``None`` if nothing is left, and the thread ends."""
        with self._lock:
            self._close_ended()
            if self._queue.due is None:
                self._thread = None
                return None
            poll = select.poll()
            for descriptor in set(self._queue).difference(self._queue.at_eof):
                poll.register(descriptor, select.POLLIN)
            return poll, min(_CHECK, max(0.0, self._queue.due - time.monotonic()))

    def _close_ended(self) -> None:
        self._queue.reap()
        for descriptor in {*self._queue.surplus(), *self._queue.overdue(time.monotonic())}:
            self._queue.cut(descriptor)


_closer = _Closer()
os.register_at_fork(after_in_child=_closer.forget)


def close_lingering(sock: socket.socket, kernel: Kernel) -> None:
    """Finish a connection that the program has closed, by a duplicate of its socket."""
    _closer.add(sock, kernel)


def wait_for_peers() -> None:
    """Wait a moment for the peers when the process ends. The kernel handles the connections that are left."""
    _closer.wait(WAIT_AT_END)
