"""The kernel's network events: an rtnetlink socket in the multicast groups whose messages can change a decision."""

from __future__ import annotations

import errno
import socket
import struct
import weakref

from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.routes import ROUTE_TYPES, RTM_F_CLONED, TABLE_LOCAL

# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE. Links, since an interface that goes down
# announces no IPv4 route; rules, since that is all that wg-quick changes for traffic that is not its own.
_GROUPS = (1, 5, 7, 8, 9, 11, 19)
# RTNLGRP_NEXTHOP, Linux 5.3: past the 32 that an address can carry.
_GROUP_NEXTHOP = 32

_RTM_NEWROUTE = 24
_RTM_DELROUTE = 25
_ABOUT_INTERFACES = frozenset({16, 17, 20, 21})
"""RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR."""
_ROUTE_HEAD = struct.Struct("=IHHIIBBBBBBBBI")
"""nlmsghdr and rtmsg in one."""

_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 1 << 20
_DATAGRAMS_A_DRAIN = 1000


class RouteEvents:
    """An :class:`bindsock.kernel.EventSource`."""

    def __init__(self, buffer_bytes: int = _BUFFER_BYTES) -> None:
        """
        :param buffer_bytes: how much may wait unread; without CAP_NET_ADMIN the system's ``net.core.rmem_max`` is the most
        :raises OSError: the socket cannot be opened
        """
        self.overruns = 0
        self.interfaces_changed = True
        """Whether an interface or an address may have changed since this was last set to false."""
        self._sock = socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
        self._finalizer = weakref.finalize(self, self._sock.close)
        try:
            self._sock.setblocking(False)
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
            except PermissionError:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            self._sock.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
            try:
                self._sock.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, _GROUP_NEXTHOP)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOPROTOOPT):
                    raise
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._sock.fileno()

    def drain(self) -> bool:
        """Read what waits, at most 1,000 datagrams at a time: in a storm the loop has its turn in between.

        Once it is known that everything must be read, the rest goes by without a look at it.
        """
        dirty = False
        for _ in range(_DATAGRAMS_A_DRAIN):
            try:
                data, sender = self._sock.recvfrom(4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The kernel dropped events (linux net/netlink/af_netlink.c, netlink_overrun), whatever they were.
                self.overruns += 1
                dirty = self.interfaces_changed = True
                continue
            if sender[0] != 0:
                continue
            if not self.interfaces_changed and concerns_interfaces(data):
                dirty = self.interfaces_changed = True
            elif not dirty:
                dirty = matters(data)
        return dirty

    def close(self) -> None:
        """Close the socket."""
        self._finalizer()


def concerns_interfaces(datagram: bytes) -> bool:
    """Whether an event is, or may be, about an interface or an address."""
    if len(datagram) < _ROUTE_HEAD.size:
        return True
    length, kind, *_ = _ROUTE_HEAD.unpack_from(datagram)
    return kind in _ABOUT_INTERFACES or (length + 3) & ~3 < len(datagram)


def matters(datagram: bytes) -> bool:
    """Whether an event can change a reading: not those of the route cache and of local, broadcast and multicast routes.

    Nothing is parsed in depth; what cannot be understood matters.
    """
    if len(datagram) < _ROUTE_HEAD.size:
        return True
    length, kind, _, _, _, _, _, _, _, table, _, _, route_type, flags = _ROUTE_HEAD.unpack_from(datagram)
    if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or (length + 3) & ~3 < len(datagram):
        return True
    return route_type in ROUTE_TYPES and not flags & RTM_F_CLONED and table != TABLE_LOCAL
