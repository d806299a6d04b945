"""Sockets that somebody else made: which of them are a client's, to be bound, and which are to be left alone."""

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
"""The lowest port that a socket gets without asking (Linux net.ipv4.ip_local_port_range; Darwin's begin at 49152)."""


def is_client(sock: socket.socket, decider: Callable[[], Decider]) -> bool:
    """Whether a socket that is about to connect or to send is one that bindsock has to look after.

    It is not: a UNIX socket; one that a part of bindsock has made, and bound; one with an address of its own that is no uplink's
    (see :mod:`bindsock.dial.chosen`); and a datagram socket with a low port and no peer. Such a port was given on purpose, by
    somebody who waits for others to send to it; the system tells nothing better.

    :param decider: the newest decider; asked only for a socket with an address of its own
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
    """What the socket is connected to.

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
    """The families that a socket on the wildcard address is for, the one to follow first."""
    if sock.family != socket.AF_INET6 or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return (socket.AddressFamily(sock.family),)
    return (socket.AF_INET6, socket.AF_INET)
