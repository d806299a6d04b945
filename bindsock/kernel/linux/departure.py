"""What becomes of an attempt to connect within this host: whether its firewall drops it or answers it with a reset.

TCP does not tell a program that the layers beneath it refused its first packet (``linux net/ipv4/tcp_output.c``, tcp_connect),
and a reset of the firewall (``net/ipv4/netfilter/nf_reject_ipv4.c``, nf_send_reset) looks like one of the server. But a
byte that is sent with the first packet (TCP Fast Open, without a cookie) is counted as not sent if that was refused
(tcp_send_syn_data). Such an attempt is made here. Its packet goes no further than the first hop.
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
"""Of ``struct tcp_info``: tcpi_notsent_bytes (Linux 4.6)."""


def departure(sock: socket.socket, address: Any) -> Departure:
    """Try to connect.

    The firewall's reset has been taken in when the call returns: all of it happens within that (``net/core/dev.c``,
    process_backlog).

    :param sock: a stream socket that is bound as that of the connection; only good to be closed afterwards
    :param address: of another host
    :raises OSError: a call failed, so that it is unknown: Fast Open is switched off (``net.ipv4.tcp_fastopen``), for one
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
