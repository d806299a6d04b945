"""Whether a neighbour answers, by the kernel's neighbour table. Needs no privilege.

Layout and numbers: ``include/uapi/linux/neighbour.h``. Linux 5.0 and later can look up a single entry (``net/core/neighbour.c``,
neigh_get).
"""

from __future__ import annotations

import errno
import socket
import struct
from functools import lru_cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.rtnetlink.links import parse_ip
from bindsock.model.network import family_of

if TYPE_CHECKING:
    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import IPAddress

RTM_GETNEIGH = 30
_NDMSG = struct.Struct("=BxxxiHBB")
"""Family, interface index, state, flags, type."""
_NDA_DST = 1
_NDA_IFINDEX = 8
_NTF_ROUTER = 0x80

_NUD_INCOMPLETE = 0x01
_NUD_FAILED = 0x20
_NUD_NONE = 0x00
_EVERY = IPv4Address(0)
"""The address in the entry of a point-to-point device."""
_DISCARD = 9
"""The port of the discard service (RFC 863)."""


def answers(channel: Channel, index: int, address: IPAddress) -> bool | None:
    """Whether the neighbour's link-layer address is known, so that packets to it leave at once.

    A point-to-point device has one entry for all IPv4 neighbours, made by the first packet (``linux net/ipv4/arp.c``,
    arp_constructor).

    :return: ``None`` if the kernel does not tell
    """
    for each in (address, _EVERY) if address.version == 4 else (address,):
        try:
            payload = channel.ask(RTM_GETNEIGH, _question(index, each)).payload
        except OSError as error:
            if error.errno != errno.ENOENT:
                return None
        else:
            return parse_answers(payload)
    return False


@lru_cache(maxsize=64)
def _question(index: int, address: IPAddress) -> bytes:
    return _NDMSG.pack(family_of(address), index, 0, 0, 0) + netlink.attribute(_NDA_DST, address.packed)


def parse_answers(payload: bytes) -> bool:
    """Whether an entry has a link-layer address, or needs none.

    :raises KernelError: the message is damaged
    """
    state = netlink.fixed(_NDMSG, payload)[2]
    return state not in (_NUD_NONE, _NUD_INCOMPLETE, _NUD_FAILED)


def ask(sock: socket.socket, index: int, address: IPAddress) -> None:
    """Make the kernel ask for the neighbour's link-layer address, by sending an empty datagram to its discard port.

    :param sock: a datagram socket that is bound to the interface
    :raises OSError: the datagram cannot be sent
    """
    host = str(address).partition("%")[0]
    sock.sendto(b"", (host, _DISCARD) if address.version == 4 else (host, _DISCARD, 0, index))


def routers(channel: Channel, index: int) -> list[IPAddress]:
    """The IPv6 neighbours on the interface that are routers (RFC 4861 4.4, the R flag), in the kernel's order.

    :raises KernelError: an answer cannot be understood
    :raises OSError: the question is refused
    """
    body = _NDMSG.pack(socket.AF_INET6, 0, 0, 0, 0) + netlink.attribute_u32(_NDA_IFINDEX, index)
    found = [parse_router(payload, index) for payload in channel.dump(RTM_GETNEIGH, body)]
    return [address for address in found if address is not None]


def parse_router(payload: bytes, index: int) -> IPAddress | None:
    """The address in an entry for a router on the interface that has answered; ``None`` for other entries.

    :raises KernelError: the message is damaged
    """
    family, at, state, flags, _ = netlink.fixed(_NDMSG, payload)
    if family != socket.AF_INET6 or at != index or not flags & _NTF_ROUTER or state in (_NUD_NONE, _NUD_INCOMPLETE, _NUD_FAILED):
        return None
    destination = netlink.attributes(payload, _NDMSG.size).get(_NDA_DST)
    return parse_ip(family, destination) if destination is not None else None
