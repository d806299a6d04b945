"""Tells which sockets that bindsock did not make are client sockets to be bound, and which are left alone."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.dial.chosen import own_address, uplink_of
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.model.network import FAMILIES

if TYPE_CHECKING:
    from bindsock.dial.resolving import SockAddr
    from bindsock.routing.effective import Decider

_FIRST_AUTOMATIC_PORT = 32768
"""The lowest ephemeral port (Linux net.ipv4.ip_local_port_range; Darwin's start at 49152)."""


def is_client(sock: socket.socket, decider: Callable[[], Decider]) -> bool:
    """Whether bindsock should bind and follow a socket that is about to connect or to send.

    It should not if the socket is a UNIX socket; or was made and bound by bindsock itself; or has a local address that does not
    belong to an uplink (see :mod:`bindsock.dial.chosen`); or is a datagram socket with a low port and without a peer. A program
    chooses a low port when it acts as a server. The system offers no better sign.

    :param decider: returns the newest decider; called only for a socket with a local address
    """
    if sock.family not in FAMILIES or isinstance(sock, FollowedSocket):
        return False
    if is_connected(sock):
        return True
    if sock.type == socket.SOCK_DGRAM and 0 < sock.getsockname()[1] < _FIRST_AUTOMATIC_PORT:
        return False
    own = own_address(sock)
    return own is None or uplink_of(decider(), own) is not None


def is_connected(sock: socket.socket) -> bool:
    """Whether the socket has a peer."""
    return peer_of(sock) is not None


def peer_of(sock: socket.socket) -> SockAddr | None:
    """The address of the peer; ``None`` if the socket is not connected.

    :raises OSError: the socket is closed
    """
    try:
        peer: SockAddr = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    return peer


def families_of(sock: socket.socket) -> tuple[socket.AddressFamily, ...]:
    """The families that a socket on the wildcard address serves. The first one decides where it belongs."""
    if sock.family != socket.AF_INET6 or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return (socket.AddressFamily(sock.family),)
    return (socket.AF_INET6, socket.AF_INET)
