"""Helpers for binding and moving sockets that all backends share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import math
import socket
import struct
import termios
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from bindsock.errors import BindFailed
from bindsock.model.network import unmapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bindsock.model.network import Interface

Sockaddr: TypeAlias = tuple[Any, ...]
_ALONE = contextlib.nullcontext()

RESET_ON_CLOSE: bytes = struct.pack("=ii", 1, 0)
"""The value of SO_LINGER with which ``close()`` ends a connection by a reset."""


def fail(error: OSError, call: str, interface: Interface | None, message: str | None = None) -> NoReturn:
    """Raise :class:`BindFailed` for a failed call.

    :param call: the system call or socket option that failed
    :param interface: the interface that the socket should have been bound to; ``None`` if it should have been unbound
    :param message: the message, if the usual one does not explain the failure
    :raises BindFailed: always, with the error's number
    """
    name = interface.name if interface is not None else None
    if message is None:
        message = f"the socket could not be bound to {name}" if name else "the socket could not be unbound"
    raise BindFailed(message, errno=error.errno, interface=name, call=call) from error


def bind_by_number(sock: socket.socket, address: Sockaddr, port: int) -> None:
    """Bind a socket to an address, whose port does not count, and to a port."""
    sock.bind((address[0], port, *address[2:]))


def sharing_ports(sock: socket.socket, others: Sequence[socket.socket]) -> contextlib.AbstractContextManager[None]:
    """Let a datagram socket be bound to the port of others, if there are any."""
    return _sharing((sock, *others)) if others else _ALONE


@contextlib.contextmanager
def _sharing(socks: Sequence[socket.socket]) -> Iterator[None]:
    """All of them need SO_REUSEADDR at that moment (linux net/ipv4/udp.c, udp_lib_lport_inuse), and none of them afterwards."""
    before = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for sock in socks]
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        yield
    finally:
        for sock, value in zip(socks, before, strict=True):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, value)


def check_local_address(sock: socket.socket, interface: Interface, call: str, code: int = errno.EADDRNOTAVAIL) -> None:
    """Check that the interface has the local address of a stream socket, which keeps its address when it is bound.

    :param call: the socket option that will be set
    :param code: the system's number for EADDRNOTAVAIL
    :raises BindFailed: the local address is not the interface's
    """
    try:
        local = ipaddress.ip_address(sock.getsockname()[0].split("%", 1)[0])
    except OSError as error:
        fail(error, "getsockname", interface)
    if not interface.has(unmapped(local)):
        message = f"a stream cannot move to {interface.name}: {local} is not its address"
        fail(OSError(code, message), call, interface, message)


def rescoped(peer: Sockaddr, interface: Interface | None) -> Sockaddr:
    """The peer's address for a socket on the interface: a link-local address gets the interface's scope.

    With its old scope the connect would fail: with EINVAL on Linux, as unreachable on Darwin.
    """
    if interface is None or len(peer) < 4 or not ipaddress.IPv6Address(peer[0].split("%", 1)[0]).is_link_local:
        return peer
    return (peer[0].split("%", 1)[0], peer[1], peer[2], interface.index)


def unacknowledged(sock: socket.socket) -> int:
    """What the socket has accepted and not got rid of yet.

    For a stream, these are the bytes that the peer has not acknowledged, where a FIN counts as one (linux net/ipv4/tcp.c,
    tcp_ioctl). For datagrams, it is the memory that they take.

    :raises OSError: the system does not tell
    :raises ValueError: the socket is closed
    """
    answer: bytes = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("=i", answer)[0])


def probe(sock: socket.socket, *options: tuple[int, int]) -> Callable[[], None]:
    """Let an idle stream socket send a keep-alive probe every second.

    :param options: the levels and numbers of the options for the seconds before the first probe and between two of them, and to
        switch them on
    :return: restores the options. It holds the socket weakly, and never raises
    :raises OSError: the system refused
    """
    before = [(*option, sock.getsockopt(*option)) for option in options]
    held = weakref.ref(sock)

    def restore() -> None:
        probing = held()
        if probing is None:
            return
        with contextlib.suppress(OSError):
            for level, option, value in before:
                probing.setsockopt(level, option, value)

    for option in options:
        sock.setsockopt(*option, 1)
    return restore


class KeepAlive(NamedTuple):
    """When an idle connection is probed."""

    idle: int
    """Seconds until the first probe."""
    interval: int
    """Seconds between probes."""
    probes: int
    """The connection ends after this many unanswered probes."""


def keep_alive(seconds: float) -> KeepAlive:
    """The probes with which an idle connection ends after that many seconds of silence. The first is sent after half of them."""
    idle, interval = max(1, int(seconds / 2)), max(1, int(seconds / 4))
    return KeepAlive(idle, interval, max(1, math.ceil((seconds - idle) / interval)))
