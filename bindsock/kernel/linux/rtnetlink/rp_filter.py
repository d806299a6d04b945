"""The reverse path filter, read by RTM_GETNETCONF, since /proc may show another network namespace after setns().

Layout and numbers: ``include/uapi/linux/netconf.h``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bindsock.kernel.linux import netlink

if TYPE_CHECKING:
    from bindsock.kernel.linux.netlink import Channel

_RTM_GETNETCONF = 82
_NETCONFMSG = bytes([socket.AF_INET, 0, 0, 0])
"""The family, padded to four bytes."""
_NETCONFA_IFINDEX = 1
_NETCONFA_RP_FILTER = 3
_ALL = -1
_STRICT = 1


def is_strict(channel: Channel, index: int) -> bool:
    """Whether IPv4 packets that arrive on the interface are dropped unless the best route back leaves by it.

    The larger of the interface's value and the value for all interfaces counts (``linux include/linux/inetdevice.h``,
    IN_DEV_RPFILTER); 2 means loose, 1 strict.

    :raises OSError: the kernel refuses
    :raises KernelError: the answer cannot be understood
    """
    return max(_rp_filter(channel, _ALL), _rp_filter(channel, index)) == _STRICT


def _rp_filter(channel: Channel, index: int) -> int:
    return parse_rp_filter(channel.ask(_RTM_GETNETCONF, _NETCONFMSG + netlink.attribute_u32(_NETCONFA_IFINDEX, index)).payload)


def parse_rp_filter(payload: bytes) -> int:
    """The reverse path filter's setting: 0 off, 1 strict, 2 loose.

    :raises KernelError: the message is damaged
    """
    found = netlink.attributes(payload, len(_NETCONFMSG))
    return netlink.i32(found[_NETCONFA_RP_FILTER]) if _NETCONFA_RP_FILTER in found else 0
