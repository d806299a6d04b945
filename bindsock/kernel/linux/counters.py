"""What a device counts, out of RTM_NEWLINK's IFLA_STATS64.

Layout: ``include/uapi/linux/if_link.h``, struct rtnl_link_stats64.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink

if TYPE_CHECKING:
    from bindsock.kernel.linux.netlink import Channel

_RTM_GETLINK = 18
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_STATS64 = 23
_STATS64 = struct.Struct("=8Q")
"""rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped, and more."""


def dropped(channel: Channel, index: int) -> int:
    """How many packets a device was given and did not send: drops, those without a carrier among them, and errors.

    What the qdisc of a device without carrier swallows is among them (``net/sched/sch_generic.c``, noop_enqueue; seen on 6.18).

    :raises OSError: there is no such interface
    """
    answer = channel.ask(_RTM_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    netlink.fixed(_IFINFOMSG, answer.payload)
    statistics = netlink.attributes(answer.payload, _IFINFOMSG.size).get(_IFLA_STATS64)
    if statistics is None or len(statistics) < _STATS64.size:
        raise KernelError("RTM_NEWLINK without statistics")
    counts: tuple[int, ...] = _STATS64.unpack_from(statistics)
    return counts[5] + counts[7]
