"""Closes IPv6 connections so that their last acknowledgement leaves by the device that they were bound to.

Theory of operation. When this side closes a connection first, the peer's FIN is acknowledged by what is left of the socket, and
that does not keep to the device: in TIME_WAIT, and in FIN_WAIT2 once the program has closed the socket, Linux answers by the
routes, which lead into the VPN (linux net/ipv6/tcp_ipv6.c, tcp_v6_send_response: the flow has a source address and belongs to
the kernel's own socket, so the device is only a wish). The answer is lost there, and the peer repeats its FIN for minutes. A
FIN that meets a whole socket in FIN_WAIT2 is acknowledged by that socket, by the right device.

So a duplicate of the descriptor outlives the program's ``close()``: it is shut down for sending, read until the peer's end, and
closed then. The program notices nothing. A peer that does not end within :data:`DEADLINE`, or goes on sending, is reset, as the
kernel does it to sockets that nobody has any more; the reset of a whole socket leaves by its device as well.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import select
import socket
import struct
import termios
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.kernel import Kernel
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

DEADLINE = 30.0
"""Seconds within which the peer must end a connection that the program has closed."""
AT_END = 0.2
"""Seconds for which the end of an event loop waits for peers that have not ended yet."""
MOST = 1024
"""How many connections wait for their peer's end at once; a quarter of the process's descriptors, if that is fewer."""
UNREAD = 1 << 18
"""Bytes that a peer may still send after the program's end."""

_RESET = struct.pack("=ii", 1, 0)


class _Leaving(NamedTuple):
    sock: socket.socket
    due: float


class Leaving:
    """Connections that the program has closed and the peer has not, the oldest first. It needs no event loop."""

    def __init__(self) -> None:
        self._sockets: OrderedDict[int, _Leaving] = OrderedDict()
        self._unread: dict[int, int] = {}
        self._most = min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def __len__(self) -> int:
        return len(self._sockets)

    def __iter__(self) -> Iterator[int]:
        """The descriptors."""
        return iter(list(self._sockets))

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._sockets

    @property
    def due(self) -> float | None:
        """When the oldest must have ended, in seconds of the caller's clock."""
        return next(iter(self._sockets.values())).due if self._sockets else None

    def add(self, sock: socket.socket, due: float) -> int | None:
        """Shut a connection down for sending, and keep it.

        :param sock: nobody else's; its other descriptors are closed already
        :return: its descriptor, ``None`` if it has ended meanwhile: then it is closed
        """
        try:
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return None
        self._sockets[sock.fileno()] = _Leaving(sock, due)
        return sock.fileno()

    def surplus(self) -> list[int]:
        """The oldest of those that are too many."""
        return list(self._sockets)[: max(0, len(self._sockets) - self._most)]

    def overdue(self, now: float) -> list[int]:
        """Those that should have ended by now."""
        return [descriptor for descriptor, leaving in self._sockets.items() if leaving.due <= now]

    def has_ended(self, descriptor: int) -> bool:
        """Read and drop what has come; whether that was the last. A peer that sends too much is reset."""
        sock = self._sockets[descriptor].sock
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not data:
            return True
        unread = self._unread[descriptor] = self._unread.get(descriptor, 0) + len(data)
        if unread > UNREAD:
            _reset_at_close(sock)
            return True
        return False

    def cut(self, descriptor: int) -> None:
        """Wait no longer for a peer. What it has not acknowledged yet is left to the kernel, all else is reset."""
        sock = self._sockets[descriptor].sock
        if not _unacknowledged(sock):
            _reset_at_close(sock)
        self.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close one that has ended."""
        self._unread.pop(descriptor, None)
        self._sockets.pop(descriptor).sock.close()

    def reap(self, patience: float = 0.0) -> None:
        """Close those that have ended.

        :param patience: seconds to wait for the others
        """
        poll = select.poll()
        for descriptor in self._sockets:
            poll.register(descriptor, select.POLLIN)
        # The system's clock: the event loop has ended, and one that a test sets would stand still while poll() waits.
        due = time.monotonic() + patience
        while self._sockets:
            left = max(0.0, due - time.monotonic())
            for descriptor, _ in poll.poll(left * 1000):
                if self.has_ended(descriptor):
                    poll.unregister(descriptor)
                    self.close(descriptor)
            if not left:
                return


class Farewells:
    """The connections of one event loop that wait for their peer's end.

    :param runtime: the event loop
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._leaving = Leaving()
        self._timer: Timer | None = None
        runtime.at_end(self.end)

    def __len__(self) -> int:
        return len(self._leaving)

    def say(self, sock: socket.socket) -> None:
        """Take a duplicate of a connection that the program has closed: end it in order, and close it.

        :param sock: nobody else's; its other descriptors are closed already
        """
        if self._runtime.closed:
            sock.close()
            return
        descriptor = self._leaving.add(sock, self._runtime.time() + DEADLINE)
        if descriptor is None:
            return
        self._runtime.add_reader(descriptor, self._readable, descriptor)
        for surplus in self._leaving.surplus():
            self._cut(surplus)
        if self._timer is None:
            self._timer = self._runtime.call_later(DEADLINE, self._expire)

    def end(self) -> None:
        """The event loop ends: wait a moment for the peers, then close what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for descriptor in self._leaving:
            self._runtime.remove_reader(descriptor)
        self._leaving.reap(AT_END)
        for descriptor in self._leaving:
            self._leaving.close(descriptor)

    def _readable(self, descriptor: int) -> None:
        if descriptor in self._leaving and self._leaving.has_ended(descriptor):
            self._runtime.remove_reader(descriptor)
            self._leaving.close(descriptor)

    def _cut(self, descriptor: int) -> None:
        self._runtime.remove_reader(descriptor)
        self._leaving.cut(descriptor)

    def _expire(self) -> None:
        now = self._runtime.time()
        for descriptor in self._leaving.overdue(now):
            self._cut(descriptor)
        due = self._leaving.due
        self._timer = self._runtime.call_later(due - now, self._expire) if due is not None else None


class Farewell:
    """What a followed socket does when it is closed.

    :param farewells: of the socket's event loop
    :param kernel: says whether the connection needs it
    """

    __slots__ = ("_farewells", "_kernel")

    def __init__(self, farewells: Farewells, kernel: Kernel) -> None:
        self._farewells = farewells
        self._kernel = kernel

    def duplicate(self, sock: socket.socket) -> socket.socket | None:
        """A duplicate that is to outlive the socket; ``None`` if the connection needs none, or no descriptor is left."""
        return duplicate_if_needed(self._kernel, sock)

    def say(self, duplicate: socket.socket) -> None:
        """The socket itself is closed now."""
        if self._kernel.needs_farewell(duplicate):
            self._farewells.say(duplicate)
        else:
            duplicate.close()


def duplicate_if_needed(kernel: Kernel, sock: socket.socket) -> socket.socket | None:
    """A duplicate that is to outlive a connection; ``None`` if the connection needs none, or no descriptor is left."""
    return duplicate(sock) if kernel.needs_farewell(sock) else None


def duplicate(sock: socket.socket) -> socket.socket | None:
    """The same connection by another descriptor, ``None`` if there is none left."""
    try:
        return socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
    except OSError as error:
        _logger.debug("an IPv6 connection is closed without waiting for its peer: %s", error)
        return None


def _unacknowledged(sock: socket.socket) -> bool:
    """Whether the peer has not acknowledged all data yet. The end itself counts as one byte (linux net/ipv4/tcp.c, tcp_ioctl)."""
    try:
        answer: bytes = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return False
    return int(struct.unpack("=i", answer)[0]) > 1


def _reset_at_close(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError as error:
        _logger.debug("a connection that its peer does not end cannot be reset: %s", error)
