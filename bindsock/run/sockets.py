"""Sockets that Python code connects or sends from itself, without an event loop: bound before the first packet.

``connect()`` and ``connect_ex()`` of :class:`socket.socket` are replaced, and with them what :mod:`ssl`, :mod:`http.client`,
requests, paho, redis, pymongo, asyncio's own ``sock_connect`` and trio connect with. ``sendto()`` and ``sendmsg()`` bind a socket
that was not connected before its first datagram to another host.
"""

from __future__ import annotations

import os
import socket
import weakref
from typing import TYPE_CHECKING, Any

from bindsock import kernel as kernels
from bindsock.default import bind
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import is_client, peer_of
from bindsock.errors import BindsockError
from bindsock.model.network import FAMILIES, unmapped
from bindsock.run.patching import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from bindsock.dial.resolving import SockAddr
    from bindsock.run.ledger import Outcome
    from bindsock.run.table import Context

WHAT = "sockets"


def patch(context: Context, module: ModuleType) -> None:
    """Bind the sockets that Python code connects, and sends from."""
    binder = SocketBinder(context)
    plain = module.socket
    connect, connect_ex, sendto, sendmsg = plain.connect, plain.connect_ex, plain.sendto, plain.sendmsg

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

    for name, function in (
        ("connect", bound_connect),
        ("connect_ex", bound_connect_ex),
        ("sendto", bound_sendto),
        ("sendmsg", bound_sendmsg),
    ):
        function.__name__ = function.__qualname__ = name
        function.__doc__ = getattr(plain, name).__doc__
        replace(context.undo, plain, name, function)


class SocketBinder:
    """Binds sockets of a client, and counts what became of them."""

    def __init__(self, context: Context) -> None:
        self._policy = context.policy
        self._connector = context.policy.connector()
        self._ledger = context.ledger
        self._settled: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        """Those of which it is known that no datagram binds them any more."""

    def connect(self, sock: socket.socket, address: Any, connect: Callable[[socket.socket, Any], object]) -> None:
        """Bind the socket to the interface for the address and connect it; or only connect it, if it is not to be bound."""
        numeric = self._destination(sock, address)
        if numeric is None:
            connect(sock, address)
            return
        try:
            self._connector.connect(sock, numeric, connect)
        except (BlockingIOError, InterruptedError):
            self._note(sock)
            raise
        except BindsockError as error:
            self._ledger.note("refused", WHAT, type(error).__name__)
            raise
        self._note(sock)

    def connect_ex(self, sock: socket.socket, address: Any, connect_ex: Callable[[socket.socket, Any], int]) -> int:
        """As :meth:`connect`, with the number of connect's own error as the result.

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
        except OSError:
            if not code or sock.fileno() == -1:
                raise
        return code

    def before_sending(self, sock: socket.socket, address: Any) -> Any:
        """Bind a socket that is about to send to an address, if it is to be bound and is not yet.

        :return: the address to send to
        :raises BindsockError: the socket could not be bound
        """
        if sock in self._settled:
            return address
        numeric = self._destination(sock, address)
        if numeric is None:
            return address
        try:
            decision = bind(
                sock,
                unmapped(address_of(numeric)),
                interface=self._policy.interface,
                preferences=self._policy.preferences,
            )
        except BindsockError as error:
            self._ledger.note("refused", WHAT, type(error).__name__)
            raise
        if decision.interface is not None:
            self._settled.add(sock)
            self._ledger.note("bound", WHAT, decision.interface.name)
        return numeric

    def _destination(self, sock: socket.socket, address: Any) -> SockAddr | None:
        """Where the socket is to go to, with a numeric host; ``None`` if it is not to be bound for that."""
        if isinstance(sock, FollowedSocket) or sock.fileno() == -1 or sock.family not in FAMILIES:
            return None
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str | bytes | bytearray):
            return None
        if not is_client(sock) and not self._has_address_of_interface(sock, address):
            self._note_own_choice(sock)
            return None
        kernel = kernels.current()
        interface = kernel.bound(sock)
        if interface is not None:
            # One that does not block belongs to an event loop, which counts it.
            if sock.gettimeout() != 0 and sock not in self._settled:
                self._ledger.note("bound", WHAT, _name(interface))
            self._settled.add(sock)
            return None
        numeric = _numeric(sock, address)
        if numeric is None:
            return None
        if unmapped(address_of(numeric)).is_loopback:
            self._ledger.note("left alone", WHAT, "to this machine")
            return None
        return numeric

    def _has_address_of_interface(self, sock: socket.socket, address: Any) -> bool:
        """Whether the program has bound the socket to an address of the interface to which it is to be bound anyway."""
        local = unmapped(address_of(sock.getsockname()))
        numeric = _numeric(sock, address) if not local.is_unspecified and peer_of(sock) is None else None
        if numeric is None:
            return False
        decision = self._policy.factory().explain(unmapped(address_of(numeric)))
        return decision.interface is not None and decision.interface.has(local)

    def _note(self, sock: socket.socket) -> None:
        outcome, detail = outcome_of(sock)
        self._ledger.note(outcome, WHAT, detail)

    def _note_own_choice(self, sock: socket.socket) -> None:
        if sock in self._settled:
            return
        self._settled.add(sock)
        if peer_of(sock) is not None or address_of(sock.getsockname()).is_loopback:
            return
        if sock.type == socket.SOCK_DGRAM and address_of(sock.getsockname()).is_unspecified:
            self._ledger.note("left alone", WHAT, "a server's port")
        else:
            self._ledger.note("escaped", WHAT, "the program has bound the socket to an address of its choice")


def outcome_of(sock: socket.socket) -> tuple[Outcome, str]:
    """What became of a socket that has an address: its outcome and its detail in the ledger."""
    interface = kernels.current().bound(sock) if sock.family in FAMILIES else None
    if interface is not None:
        return "bound", _name(interface)
    local, peer = sock.getsockname(), peer_of(sock)
    if sock.family not in FAMILIES or (peer is not None and peer[0] == local[0]) or address_of(local).is_loopback:
        return "left alone", "to this machine"
    return "escaped", "left to the system's routes, as the preferences say"


def _numeric(sock: socket.socket, address: Any) -> SockAddr | None:
    """The address with a numeric host, as the system would look it up; ``None`` if that is the system's own business."""
    host, port, *rest = address
    text = host if isinstance(host, str) else bytes(host).decode("ascii", "replace")
    if text in ("", "<broadcast>"):
        return None
    try:
        address_of((text, port, *rest))
    except ValueError:
        infos = socket.getaddrinfo(host, port, sock.family, sock.type, sock.proto)
        found: SockAddr = (infos[0][4][0], port, *(rest or infos[0][4][2:]))
        return found
    return (text, port, *rest)


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return f"the interface {interface}, which is gone"
