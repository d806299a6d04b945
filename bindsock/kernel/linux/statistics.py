"""The packets that a device dropped (RTM_GETSTATS, Linux 4.7), and the datagrams of a socket that have not left yet.

Layout: ``include/uapi/linux/if_link.h``, struct if_stats_msg and struct rtnl_link_stats64.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.kernel.sockets import unacknowledged

if TYPE_CHECKING:
    from bindsock.kernel.linux.netlink import Channel

_RTM_GETSTATS = 94
_IF_STATS_MSG = struct.Struct("=BxxxII")
"""Family, interface index, filter."""
_IFLA_STATS_LINK_64 = 1
_ONLY_LINK_64 = 1 << (_IFLA_STATS_LINK_64 - 1)
"""An RTM_NEWLINK has these counters, too, but takes three times as long: it has everything else about the interface."""
_STATS64 = struct.Struct("=8Q")
"""rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped, and more."""

_SMALLEST_DATAGRAM = 768
"""How many bytes of the send buffer the smallest datagram takes: struct sk_buff, skb_shared_info, and data
(``net/core/skbuff.c``)."""


def dropped(channel: Channel, index: int) -> int:
    """The packets that a device accepted and did not send: its transmit drops and errors.

    These include packets that the qdisc of a device without carrier discards (``net/sched/sch_generic.c``, noop_enqueue; seen on
    6.18).

    :raises OSError: there is no such interface
    """
    answer = channel.ask(_RTM_GETSTATS, _IF_STATS_MSG.pack(socket.AF_UNSPEC, index, _ONLY_LINK_64))
    return parse_dropped(answer.payload)


def parse_dropped(payload: bytes) -> int:
    """The transmit drops and errors in an RTM_NEWSTATS.

    :raises KernelError: the message is damaged
    """
    statistics = netlink.attributes(payload, _IF_STATS_MSG.size).get(_IFLA_STATS_LINK_64)
    if statistics is None or len(statistics) < _STATS64.size:
        raise KernelError("netlink: a link has no statistics")
    counts: tuple[int, ...] = _STATS64.unpack_from(statistics)
    return counts[5] + counts[7]


def unsent(sock: socket.socket) -> int:
    """An upper bound of the datagrams in the send buffer. A device frees a datagram's share when it has sent it."""
    try:
        taken = unacknowledged(sock)
    except (OSError, ValueError):  # closed
        return 0
    return -(-taken // _SMALLEST_DATAGRAM)
