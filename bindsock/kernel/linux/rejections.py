"""The ICMP message that ended a connect, read from the socket's error queue.

IPv4 TCP always queues it while it connects (``linux net/ipv4/tcp_ipv4.c``, tcp_v4_err). IPv6 only gives an error number:
``EACCES`` for "administratively prohibited" and similar codes (``net/ipv6/icmp.c``, icmpv6_err_convert).
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

from bindsock.model.rejection import Rejection

_MSG_ERRQUEUE = 0x2000
_IP_RECVERR = 11
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
"""``struct sock_extended_err``: errno, origin, type, code, padding, info, data. The sender's address follows."""
_ORIGIN_ICMP = 2
_DESTINATION_UNREACHABLE = 3
_HOST_UNREACHABLE = 1
_PROHIBITED = frozenset({9, 10, 13})
"""Codes of RFC 1812 5.2.7.1: communication is administratively prohibited, with the network, with the host, or at all."""
_OFFENDER = struct.Struct("=HxxB3B")


def rejection(sock: socket.socket) -> Rejection | None:
    """Take the message from the queue.

    :return: ``None`` if the entry is no ICMP message
    :raises OSError: the queue is empty or cannot be read
    """
    timeout = sock.gettimeout()
    # With a timeout Python would wait for an empty queue, although MSG_ERRQUEUE never blocks.
    sock.settimeout(0.0)
    try:
        _, ancillary, _, _ = sock.recvmsg(1, 512, _MSG_ERRQUEUE)
    finally:
        sock.settimeout(timeout)
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_RECVERR:
            return parse(data)
    return None


def parse(data: bytes) -> Rejection | None:
    """Parse an ``IP_RECVERR`` control message; ``None`` if it is no ICMP message or too short."""
    if len(data) < _EXTENDED_ERROR.size + _OFFENDER.size:
        return None
    _, origin, kind, code, _, _, _ = _EXTENDED_ERROR.unpack_from(data)
    family, *sender = _OFFENDER.unpack_from(data, _EXTENDED_ERROR.size)
    if origin != _ORIGIN_ICMP or family != socket.AF_INET:
        return None
    unreachable = kind == _DESTINATION_UNREACHABLE
    return Rejection(IPv4Address(bytes(sender)), unreachable and code in _PROHIBITED, unreachable and code == _HOST_UNREACHABLE)
