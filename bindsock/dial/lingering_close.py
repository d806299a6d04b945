"""Closes IPv6 connections so that the last acknowledgement leaves by the device to which the socket is bound.

Theory of operation. When this side closes a connection first, the kernel must still acknowledge the peer's FIN. In TIME_WAIT,
and in FIN_WAIT2 once the program has closed the socket, Linux does not use the device of the socket for that. It uses the
routes, which lead into the VPN (linux net/ipv6/tcp_ipv6.c, tcp_v6_send_response: the flow has a source address and belongs to
the kernel's own socket, so the device is only a preference). The acknowledgement is lost there, and the peer repeats its FIN for
minutes. If the socket is still open in FIN_WAIT2, it acknowledges the FIN itself, by the right device.

So a duplicate of the descriptor outlives the program's ``close()``. The duplicate is shut down for sending, read until the peer
ends the connection, and closed then (Apache and nginx call this a lingering close). The program notices nothing. If the peer does
not end the connection within :data:`DEADLINE`, or goes on sending, the connection is reset, as the kernel resets orphaned
sockets. The reset of an open socket leaves by its device, too.

The stream of a multipath connection ends before its subflows. The kernel does not report the end of the subflows, so they are
checked at intervals.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.sockets import RESET_ON_CLOSE, unacknowledged
from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.kernel import Kernel
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

DEADLINE = 30.0
"""Seconds within which the peer must end a connection that the program has closed."""
WAIT_AT_END = 0.2
"""Seconds to wait for the remaining peers when the event loop ends."""
MAX_SOCKETS = 1024
"""How many connections may wait for their peers at once; never more than a quarter of the process's descriptors."""
MAX_UNREAD = 1 << 18
"""Bytes that a peer may still send after the program has closed the connection."""

_FIRST_CHECK, _LAST_CHECK = 0.005, 1.0
"""Seconds between two checks of the subflows."""


class _Lingering(NamedTuple):
    sock: socket.socket
    kernel: Kernel
    due: float


class LingerQueue:
    """Connections that the program has closed and the peer has not, the oldest first. It needs no event loop."""

    def __init__(self) -> None:
        self._sockets: OrderedDict[int, _Lingering] = OrderedDict()
        self._unread: dict[int, int] = {}
        self._at_eof: set[int] = set()
        self._limit = min(MAX_SOCKETS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def __len__(self) -> int:
        return len(self._sockets)

    def __iter__(self) -> Iterator[int]:
        """The descriptors."""
        return iter(list(self._sockets))

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._sockets

    @property
    def due(self) -> float | None:
        """The deadline of the oldest connection, in seconds of the caller's clock."""
        return next(iter(self._sockets.values())).due if self._sockets else None

    @property
    def at_eof(self) -> list[int]:
        """Multipath connections whose stream has ended before their subflows. They stay readable."""
        return list(self._at_eof)

    def add(self, sock: socket.socket, kernel: Kernel, due: float) -> int | None:
        """Shut a connection down for sending, and keep it.

        :param sock: a duplicate that the queue owns; the other descriptors of the connection are closed already
        :param kernel: asked whether the connection has ended, after the end of its stream
        :param due: its deadline, in seconds of the caller's clock
        :return: its descriptor, or ``None`` if the connection has ended meanwhile; then it is closed
        """
        try:
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The stream of a multipath connection may have ended on both sides, and its subflows not yet (Linux: ENOTCONN).
            if not kernel.needs_lingering_close(sock):
                sock.close()
                return None
        self._sockets[sock.fileno()] = _Lingering(sock, kernel, due)
        return sock.fileno()

    def surplus(self) -> list[int]:
        """The oldest connections above the limit."""
        return list(self._sockets)[: max(0, len(self._sockets) - self._limit)]

    def overdue(self, now: float) -> list[int]:
        """The connections whose deadline has passed."""
        return [descriptor for descriptor, lingering in self._sockets.items() if lingering.due <= now]

    def has_ended(self, descriptor: int) -> bool:
        """Read and drop the data that has arrived. If the peer sends more than :data:`MAX_UNREAD`, reset the connection.

        :return: whether the connection has ended
        """
        lingering = self._sockets[descriptor]
        try:
            data = lingering.sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not data:
            self._at_eof.add(descriptor)
            return not lingering.kernel.needs_lingering_close(lingering.sock)
        unread = self._unread[descriptor] = self._unread.get(descriptor, 0) + len(data)
        if unread > MAX_UNREAD:
            _abort(lingering)
            return True
        return False

    def cut(self, descriptor: int) -> None:
        """Wait no longer for the peer: reset the connection, unless the peer has not acknowledged all data yet.

        In that case the kernel goes on sending the data.
        """
        lingering = self._sockets[descriptor]
        if not _unacknowledged(lingering.sock):
            _abort(lingering)
        self.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a connection that has ended."""
        self._unread.pop(descriptor, None)
        self._at_eof.discard(descriptor)
        self._sockets.pop(descriptor).sock.close()

    def reap(self, patience: float = 0.0) -> None:
        """Close the connections that have ended.

        :param patience: seconds to wait for the others
        """
        poll = select.poll()
        for descriptor in self._sockets.keys() - self._at_eof:
            poll.register(descriptor, select.POLLIN)
        # The system's clock, since the event loop has ended, and a test's virtual clock would stand still during poll().
        due = time.monotonic() + patience
        while self._sockets:
            left = max(0.0, due - time.monotonic())
            readable = [descriptor for descriptor, _ in poll.poll((min(left, _FIRST_CHECK) if self._at_eof else left) * 1000)]
            for descriptor in self._at_eof.union(readable):
                ended = self.has_ended(descriptor)
                if descriptor in readable and (ended or descriptor in self._at_eof):
                    poll.unregister(descriptor)
                if ended:
                    self.close(descriptor)
            if not left:
                return


class LingeringSockets:
    """The closed connections of one event loop that wait until the peer ends them, too.

    :param runtime: the event loop
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue = LingerQueue()
        self._timer: Timer | None = None
        self._checking = Retry(runtime, self._check, _FIRST_CHECK, _LAST_CHECK, jitter=0.0)
        runtime.at_end(self.end)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sock: socket.socket, kernel: Kernel) -> None:
        """Take a duplicate of a connection that the program has closed, wait for the peer, and close it.

        :param sock: a duplicate that this object owns; the other descriptors of the connection are closed already
        :param kernel: as for :meth:`LingerQueue.add`
        """
        if self._runtime.closed:
            sock.close()
            return
        descriptor = self._queue.add(sock, kernel, self._runtime.time() + DEADLINE)
        if descriptor is None:
            return
        self._runtime.add_reader(descriptor, self._readable, descriptor)
        for surplus in self._queue.surplus():
            self._cut(surplus)
        if self._timer is None:
            self._timer = self._runtime.call_later(DEADLINE, self._expire)

    def end(self) -> None:
        """Wait a moment for the peers, then close the rest. Called when the event loop ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._checking.cancel()
        for descriptor in self._queue:
            self._runtime.remove_reader(descriptor)
        self._queue.reap(WAIT_AT_END)
        for descriptor in self._queue:
            self._queue.close(descriptor)

    def _readable(self, descriptor: int) -> None:
        if descriptor not in self._queue:
            return
        if self._queue.has_ended(descriptor):
            self._runtime.remove_reader(descriptor)
            self._queue.close(descriptor)
        elif descriptor in self._queue.at_eof:
            self._runtime.remove_reader(descriptor)
            self._checking.reset()
            self._checking.schedule()

    def _check(self) -> None:
        for descriptor in self._queue.at_eof:
            if self._queue.has_ended(descriptor):
                self._queue.close(descriptor)
        if self._queue.at_eof:
            self._checking.schedule()

    def _cut(self, descriptor: int) -> None:
        self._runtime.remove_reader(descriptor)
        self._queue.cut(descriptor)

    def _expire(self) -> None:
        now = self._runtime.time()
        for descriptor in self._queue.overdue(now):
            self._cut(descriptor)
        due = self._queue.due
        self._timer = self._runtime.call_later(due - now, self._expire) if due is not None else None


class LingeringClose:
    """How a followed socket closes its connection.

    :param lingering_sockets: of the socket's event loop
    :param kernel: asked whether a connection needs a lingering close
    """

    __slots__ = ("_kernel", "_lingering_sockets")

    def __init__(self, lingering_sockets: LingeringSockets, kernel: Kernel) -> None:
        self._lingering_sockets = lingering_sockets
        self._kernel = kernel

    def duplicate(self, sock: socket.socket) -> socket.socket | None:
        """A duplicate to outlive the socket; ``None`` if the connection needs none, or no descriptor is left.

        The handshake of a socket that is still connecting may be over before the socket is closed. The connection is reset then.
        """
        found = duplicate_if_needed(self._kernel, sock)
        if found is None and self._may_be_connecting(sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        return found

    def _may_be_connecting(self, sock: socket.socket) -> bool:
        """Whether a bound IPv6 socket may be connecting.

        Other processes may share a socket that listens, or soon will, and its connections would inherit the option.
        """
        if sock.fileno() == -1 or sock.family != socket.AF_INET6 or sock.type != socket.SOCK_STREAM:
            return False
        if self._kernel.bound(sock) is None or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        return not _has_peer(sock)

    def finish(self, duplicate: socket.socket) -> None:
        """Close the connection by the duplicate, after the socket itself has been closed."""
        if self._kernel.needs_lingering_close(duplicate):
            self._lingering_sockets.add(duplicate, self._kernel)
        else:
            duplicate.close()


def duplicate_if_needed(kernel: Kernel, sock: socket.socket) -> socket.socket | None:
    """A duplicate to outlive the socket; ``None`` if the connection needs none, or no descriptor is left."""
    return duplicate(sock) if kernel.needs_lingering_close(sock) else None


def duplicate(sock: socket.socket) -> socket.socket | None:
    """A second descriptor of the same connection, ``None`` if no descriptor is left."""
    try:
        return socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
    except OSError as error:
        _logger.debug("an IPv6 connection is closed without waiting for its peer: %s", error)
        return None


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _unacknowledged(sock: socket.socket) -> bool:
    """Whether the peer has not acknowledged all data yet, besides the FIN."""
    try:
        return unacknowledged(sock) > 1
    except OSError:
        return False


def _abort(lingering: _Lingering) -> None:
    try:
        lingering.kernel.abort(lingering.sock)
    except OSError as error:
        _logger.debug("a connection that its peer does not end cannot be reset: %s", error)
