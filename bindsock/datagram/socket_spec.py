"""The parameters of a datagram endpoint, from which an equal socket can be made on another interface."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.dial.binding import NONBLOCKING, local_text
from bindsock.dial.resolving import SockAddr, address_of
from bindsock.errors import BindFailed
from bindsock.kernel.sockets import sharing_ports
from bindsock.model.network import unmapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface, IPAddress


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """The arguments of ``loop.create_datagram_endpoint``, resolved."""

    family: socket.AddressFamily
    proto: int = 0
    local: SockAddr | None = None
    remote: SockAddr | None = None
    reuse_port: bool = False
    allow_broadcast: bool = False
    """Set ``SO_BROADCAST``, and, as in asyncio, send to the remote address without connecting the socket."""

    @property
    def peer(self) -> SockAddr | None:
        """The address that the socket is connected to."""
        return None if self.allow_broadcast else self.remote

    @property
    def port(self) -> int:
        """The requested local port; 0 for any."""
        return int(self.local[1]) if self.local is not None else 0

    @property
    def address(self) -> IPAddress | None:
        """The requested local address; ``None`` for any."""
        if self.local is None:
            return None
        address = unmapped(address_of(self.local))
        return None if address.is_unspecified else address

    def make(self) -> socket.socket:
        """Make a socket with the requested options, neither bound nor connected."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM | NONBLOCKING, self.proto)
        try:
            if not NONBLOCKING:
                sock.setblocking(False)
            if self.reuse_port:
                if not hasattr(socket, "SO_REUSEPORT"):
                    raise ValueError("reuse_port not supported by socket module")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self.allow_broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def bind_and_connect(
        self,
        sock: socket.socket,
        kernel: Kernel,
        interface: Interface | None,
        port: int | None = None,
        own: IPAddress | None = None,
    ) -> None:
        """Bind a new socket to the interface, then to its local address and port, and connect it.

        :param port: the local port, if it is another one than the requested one
        :param own: the local address, if it is another one than the requested one
        :raises BindFailed: the system refused, or the local address does not belong to the interface
        :raises OSError: the address or the port is not available, or there is no route to the remote address
        """
        if interface is not None:
            address = self.address
            if address is not None and not interface.has(address):
                raise BindFailed(
                    f"the local address {address} does not belong to {interface.name}, the interface of the endpoint",
                    errno=errno.EADDRNOTAVAIL,
                    interface=interface.name,
                    call="bind",
                )
            kernel.bind(sock, interface)
        if own is not None:
            local: SockAddr | None = (local_text(own, self.family), 0)
        elif self.local is not None:
            local = self.local
        else:
            local = ("", 0) if port is not None else None
        if port and not self.port:
            assert local is not None
            kernel.bind_port(sock, local, port)
        elif local is not None:
            sock.bind((local[0], self.port if port is None else port, *local[2:]))
        if self.peer is not None:
            sock.connect(self.peer)

    def duplicate_on(
        self,
        like: socket.socket | None,
        kernel: Kernel,
        interface: Interface | None,
        ports: Iterable[int],
        *,
        own: IPAddress | None = None,
        sharing: Sequence[socket.socket] = (),
    ) -> socket.socket:
        """Make a second socket on another interface.

        :param like: the first socket, if the program may have set options on it; they are copied one by one
        :param interface: ``None`` to leave the socket unbound
        :param ports: the local ports to try, in order; 0 for any
        :param own: the local address, if it is another one than the requested one
        :param sharing: sockets with which it may share its port although one of them is unbound
        :raises OSError: as :meth:`bind_and_connect`, for the last port
        """
        refusal: OSError | None = None
        for port in dict.fromkeys(ports):
            sock = self.make()
            try:
                if like is not None:
                    copy_options(like, sock)
                with sharing_ports(sock, sharing):
                    self.bind_and_connect(sock, kernel, interface, port, own)
            except BaseException as error:
                sock.close()
                if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    refusal = error
                    continue
                raise
            return sock
        assert refusal is not None
        raise refusal


_COPIED = (
    ("SOL_SOCKET", "SO_RCVBUF"),
    ("SOL_SOCKET", "SO_SNDBUF"),
    ("SOL_SOCKET", "SO_BROADCAST"),
    ("SOL_SOCKET", "SO_REUSEADDR"),
    ("SOL_SOCKET", "SO_REUSEPORT"),
    ("SOL_SOCKET", "SO_PRIORITY"),
    ("SOL_SOCKET", "SO_MARK"),
    ("IPPROTO_IP", "IP_TOS"),
    ("IPPROTO_IP", "IP_TTL"),
    ("IPPROTO_IP", "IP_MULTICAST_TTL"),
    ("IPPROTO_IP", "IP_MULTICAST_LOOP"),
    ("IPPROTO_IP", "IP_MTU_DISCOVER"),
    ("IPPROTO_IP", "IP_RECVTOS"),
    ("IPPROTO_IP", "IP_RECVERR"),
    ("IPPROTO_IPV6", "IPV6_V6ONLY"),
    ("IPPROTO_IPV6", "IPV6_TCLASS"),
    ("IPPROTO_IPV6", "IPV6_UNICAST_HOPS"),
    ("IPPROTO_IPV6", "IPV6_MULTICAST_HOPS"),
    ("IPPROTO_IPV6", "IPV6_MULTICAST_LOOP"),
    ("IPPROTO_IPV6", "IPV6_MTU_DISCOVER"),
    ("IPPROTO_IPV6", "IPV6_DONTFRAG"),
    ("IPPROTO_IPV6", "IPV6_RECVTCLASS"),
    ("IPPROTO_IPV6", "IPV6_RECVERR"),
)
"""The options that a program may have set by ``get_extra_info("socket")``.

Multicast memberships belong to an interface and cannot be read back; the program must join the groups again."""


def copy_options(source: socket.socket, target: socket.socket) -> None:
    """Copy the options that differ to a new socket, as far as the system allows it."""
    for level_name, name in _COPIED:
        level, option = getattr(socket, level_name, None), getattr(socket, name, None)
        if level is None or option is None or (level_name == "IPPROTO_IPV6" and source.family != socket.AF_INET6):
            continue
        with contextlib.suppress(OSError):
            wanted = source.getsockopt(level, option)
            if wanted == target.getsockopt(level, option):
                continue
            target.setsockopt(level, option, wanted)
            if target.getsockopt(level, option) != wanted:
                # Linux doubles a buffer size for its own overhead (net/core/sock.c, __sock_set_rcvbuf).
                target.setsockopt(level, option, wanted // 2)
