"""A patch that binds the sockets of Python code before they connect or send.

``connect()`` and ``connect_ex()`` of :class:`socket.socket` are replaced, which :mod:`ssl`, :mod:`http.client`, requests, paho,
redis, pymongo, asyncio's ``sock_connect`` and trio use. ``sendto()`` and ``sendmsg()`` bind an unconnected socket before its
first datagram to another host.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any

from bindsock import kernel as kernels
from bindsock.blocking import BlockingConnector, BlockingSocket
from bindsock.blocking.lingering_close import close_lingering, wait_for_peers
from bindsock.default import bind
from bindsock.dial.chosen import is_left_alone
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.lingering_close import duplicate_if_needed
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import is_client, peer_of
from bindsock.factory import connector_of
from bindsock.model.network import FAMILIES, unmapped
from bindsock.run.outcome import name_of
from bindsock.run.patching import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from bindsock.dial.resolving import SockAddr
    from bindsock.routing.effective import Decider
    from bindsock.run.table import Context

WHAT = "sockets"


def patch(context: Context, module: ModuleType) -> None:
    """Bind sockets before they connect or send."""
    binder = SocketBinder(context)
    plain = module.socket
    connect, connect_ex, sendto, sendmsg, real_close = (
        plain.connect,
        plain.connect_ex,
        plain.sendto,
        plain.sendmsg,
        plain._real_close,
    )

    def bound_connect(self: socket.socket, address: Any, /) -> None:
        binder.connect(self, address, connect)

    def bound_connect_ex(self: socket.socket, address: Any, /) -> int:
        return binder.connect_ex(self, address, connect_ex)

    def bound_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        if rest:
            rest = (*rest[:-1], binder.before_sending(self, rest[-1]))
        sent: int = sendto(self, data, *rest)
        return sent

    def bound_sendmsg(self: socket.socket, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        if address is not None:
            address = binder.before_sending(self, address)
        sent: int = sendmsg(self, buffers, ancdata, flags, *([address] if address is not None else []))
        return sent

    def bound_real_close(self: socket.socket, *args: Any) -> None:
        binder.close(self, functools.partial(real_close, self, *args))

    functions: dict[str, Any] = {
        "connect": bound_connect,
        "connect_ex": bound_connect_ex,
        "sendto": bound_sendto,
        "sendmsg": bound_sendmsg,
        "_real_close": bound_real_close,
    }
    for name, function in functions.items():
        function.__name__ = function.__qualname__ = name
        function.__doc__ = getattr(plain, name).__doc__
        replace(context.undo, plain, name, function)
    atexit.register(wait_for_peers)
    context.undo.callback(atexit.unregister, wait_for_peers)


class SocketBinder:
    """Binds client sockets, and counts the outcomes."""

    def __init__(self, context: Context) -> None:
        self._policy = context.policy
        self._ledger = context.ledger
        self._connector = BlockingConnector(self._policy.interface, self._policy.preferences, self._policy.better_path)
        self._settled: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        """The sockets that further datagrams do not bind."""

    def connect(self, sock: socket.socket, address: Any, connect: Callable[[socket.socket, Any], object]) -> None:
        """Connect the socket; bind it before, unless it is to be left alone."""
        target = self._target(sock, address)
        if target is None:
            connect(sock, address)
            return
        try:
            with self._ledger.refusals(WHAT):
                self._connector.connect(sock, target, connect)
        except (BlockingIOError, InterruptedError):
            self._ledger.note_outcome(WHAT, sock)
            raise
        self._ledger.note_outcome(WHAT, sock)

    def connect_ex(self, sock: socket.socket, address: Any, connect_ex: Callable[[socket.socket, Any], int]) -> int:
        """Connect like :meth:`connect`, but return the errno of a failed connect.

        :raises BindsockError: the socket could not be bound
        """
        code = 0

        def connect(sock: socket.socket, address: Any) -> None:
            nonlocal code
            code = connect_ex(sock, address)
            if code:
                raise OSError(code, os.strerror(code))

        try:
            self.connect(sock, address, connect)
        except OSError as error:
            if not code or sock.fileno() == -1:
                raise
            return error.errno or errno.EAGAIN  # that of a time-out, as CPython returns it
        return 0

    def before_sending(self, sock: socket.socket, address: Any) -> Any:
        """Bind a socket before it sends to an address, unless it is already bound or is to be left alone.

        :return: the address to send to
        :raises BindsockError: the socket could not be bound
        """
        if sock in self._settled:
            return address
        target = self._target(sock, address)
        if target is None:
            return address
        destination = unmapped(address_of(target))
        with self._ledger.refusals(WHAT):
            decision = bind(sock, destination, interface=self._policy.interface, preferences=self._policy.preferences)
        if decision.interface is not None:
            self._settled.add(sock)
            self._ledger.note("bound", WHAT, decision.interface.name)
        return target

    def close(self, sock: socket.socket, close: Callable[[], object]) -> None:
        """Close a socket so that the last acknowledgement of an IPv6 connection leaves by its interface, too."""
        blocks = sock.fileno() != -1 and sock.gettimeout() != 0  # an event loop handles non-blocking sockets
        # An interpreter that ends cannot import any more, and waits for nobody.
        if (
            not blocks
            or sys.is_finalizing()
            or sock.family != socket.AF_INET6
            or isinstance(sock, FollowedSocket | BlockingSocket)
        ):
            close()
            return
        kernel = kernels.current()
        left = duplicate_if_needed(kernel, sock)
        close()
        if left is not None:
            close_lingering(left, kernel)

    def _target(self, sock: socket.socket, address: Any) -> SockAddr | None:
        """The numeric address to bind the socket for; ``None`` if it is to be left alone."""
        if isinstance(sock, FollowedSocket) or sock.fileno() == -1 or sock.family not in FAMILIES:
            return None
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str | bytes | bytearray):
            return None
        if not is_client(sock, self._decider) or self._is_left_alone(sock):
            self._note_own_choice(sock)
            return None
        numeric = _numeric(sock, address)
        if numeric is None:
            return None
        if unmapped(address_of(numeric)).is_loopback:
            self._ledger.note("left alone", WHAT, "to this machine")
            return None
        return numeric

    def _decider(self) -> Decider:
        with connector_of(self._policy.factory()).asking() as decider:
            return decider

    def _is_left_alone(self, sock: socket.socket) -> bool:
        return is_left_alone(kernels.current(), sock)

    def _note_own_choice(self, sock: socket.socket) -> None:
        if sock in self._settled:
            return
        self._settled.add(sock)
        interface = kernels.current().bound(sock)
        if interface is not None:
            if sock.gettimeout() != 0:  # an event loop counts non-blocking sockets
                self._ledger.note("bound", WHAT, name_of(interface))
        elif self._is_left_alone(sock):
            self._ledger.note("escaped", WHAT, "the program has set an option that chooses the socket's routes")
        elif peer_of(sock) is None and not address_of(sock.getsockname()).is_loopback:
            if sock.type == socket.SOCK_DGRAM and address_of(sock.getsockname()).is_unspecified:
                self._ledger.note("left alone", WHAT, "a server's port")
            else:
                self._ledger.note("escaped", WHAT, "the program has bound the socket to an address")


def _numeric(sock: socket.socket, address: Any) -> SockAddr | None:
    """The address with a numeric host, as the system resolves it; ``None`` for hosts with a special meaning to the system."""
    host, port, *rest = address
    text = host if isinstance(host, str) else bytes(host).decode("ascii", "replace")
    if text in ("", "<broadcast>") or "\0" in text:  # Python itself refuses the last
        return None
    try:
        address_of((text, port, *rest))
    except ValueError:
        infos = socket.getaddrinfo(host, port, sock.family, sock.type, sock.proto)
        found: SockAddr = (infos[0][4][0], port, *(rest or infos[0][4][2:]))
        return found
    return (text, port, *rest)
