"""Whether this host's own firewall drops a connect or answers it with a reset.

TCP does not tell a program that lower layers refused its first packet (``linux net/ipv4/tcp_output.c``, tcp_connect), and a reset
by the firewall (``net/ipv4/netfilter/nf_reject_ipv4.c``, nf_send_reset) looks like one from the server. But if the first packet
carries a byte (TCP Fast Open without a cookie) and is refused, that byte is counted as not sent (tcp_send_syn_data). This module
makes such an attempt. Its packet gets no further than the first hop.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from bindsock.model.rejection import Departure

_TCP_INFO = 11
_TCP_FASTOPEN_NO_COOKIE = 34
_MSG_FASTOPEN = 0x20000000
_NOT_SENT = struct.Struct("=144xI")
"""tcpi_notsent_bytes in ``struct tcp_info`` (Linux 4.6)."""


def departure(sock: socket.socket, address: Any) -> Departure:
    """Try to connect, and see what becomes of the first packet.

    A reset by the firewall has been processed when the call returns, since it is handled during the call (``net/core/dev.c``,
    process_backlog).

    :param sock: a stream socket, bound as the socket of the connection was; close it afterwards
    :param address: the address of another host
    :raises OSError: a call failed, for example because Fast Open is switched off (``net.ipv4.tcp_fastopen``)
    """
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
    sock.setblocking(False)
    sock.sendto(b"\0", _MSG_FASTOPEN, address)
    refused = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _NOT_SENT.size)
    if len(info) < _NOT_SENT.size:
        return Departure.UNKNOWN
    (not_sent,) = _NOT_SENT.unpack(info)
    if not not_sent:
        return Departure.LEFT
    return Departure.RESET if refused else Departure.DROPPED
