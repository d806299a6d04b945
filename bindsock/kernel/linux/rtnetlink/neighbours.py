"""Whether a neighbour answers: the kernel's entry for its link-layer address. Asking takes no privilege.

Layout and numbers: ``include/uapi/linux/neighbour.h``. A single entry can be asked for since Linux 5.0 (``net/core/neighbour.c``,
neigh_get).
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from bindsock.kernel.linux import netlink

if TYPE_CHECKING:
    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import IPAddress

_RTM_GETNEIGH = 30
_NDMSG = struct.Struct("=BxxxiHBB")
"""Family, interface index, state, flags, type."""
_NDA_DST = 1

_NUD_INCOMPLETE = 0x01
_NUD_FAILED = 0x20
_NUD_NONE = 0x00
_DISCARD = 9
"""The port of the discard service (RFC 863)."""


def answers(channel: Channel, index: int, address: IPAddress) -> bool | None:
    """Whether the neighbour's link-layer address is known, so that what is sent by it leaves at once.

    :return: ``None`` if the kernel does not tell
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _NDMSG.pack(family, index, 0, 0, 0) + netlink.attribute(_NDA_DST, address.packed)
    try:
        payload = channel.ask(_RTM_GETNEIGH, body).payload
    except OSError as error:
        return False if error.errno == errno.ENOENT else None
    return parse_answers(payload)


def parse_answers(payload: bytes) -> bool:
    """Whether an entry has a link-layer address, or needs none.

    :raises KernelError: the message is damaged
    """
    state = netlink.fixed(_NDMSG, payload)[2]
    return state not in (_NUD_NONE, _NUD_INCOMPLETE, _NUD_FAILED)


def ask(sock: socket.socket, index: int, address: IPAddress) -> None:
    """Make the kernel look for the neighbour's link-layer address, by an empty datagram to its discard port.

    :param sock: a datagram socket that is bound to the interface
    :raises OSError: it cannot be sent
    """
    host = str(address).partition("%")[0]
    sock.sendto(b"", (host, _DISCARD) if address.version == 4 else (host, _DISCARD, 0, index))
