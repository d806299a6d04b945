"""The kernel's network events: an rtnetlink socket that joins the multicast groups whose messages can change a decision.

If the socket overruns, the kernel has dropped events: the source then reports that everything may have changed.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.rtnetlink.links import IFF_UP
from bindsock.kernel.linux.rtnetlink.questions import PROBES
from bindsock.kernel.linux.rtnetlink.routes import ROUTE_TYPES, RTA_OIF, RTM_DELROUTE, RTM_F_CLONED, RTM_NEWROUTE, head_of
from bindsock.model.network import ADDRESS_BITS, FAMILIES, LOCAL_TABLE

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress

# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE. Links are needed because an interface that
# goes down announces no removal of IPv4 routes; rules, because wg-quick changes nothing else for other programs' traffic.
_GROUPS = (1, 5, 7, 8, 9, 11, 19)
# RTNLGRP_NEXTHOP, Linux 5.3. The mask in a netlink address has no bit for it.
_GROUP_NEXTHOP = 32

_RTM_NEWLINK = 16
_RTM_DELADDR = 21
_ABOUT_INTERFACES = frozenset({_RTM_NEWLINK, 17, 20, _RTM_DELADDR})
"""The other two are RTM_DELLINK and RTM_NEWADDR."""
_ROUTE_HEAD = struct.Struct("=IHHIIBBBBBBBBI")
"""nlmsghdr followed by rtmsg."""
_LINK_BODY = struct.Struct("=IiI")
"""The beginning of ifinfomsg: family and type, index, flags. ifaddrmsg has its index in the same place."""

_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 1 << 20
_DATAGRAMS_A_DRAIN = 150
"""How many datagrams are read in one turn of the event loop; this takes 1 to 2 ms."""
_MOST_PREFIXES = 256
"""If events since the last reading were about more prefixes than this, any answer may have changed."""
_PROBES = tuple((probe.version, int(probe)) for probes in PROBES.values() for probe in probes)


class RouteEvents:
    """An :class:`bindsock.kernel.EventSource`."""

    def __init__(self, buffer_bytes: int = _BUFFER_BYTES, *, concerns: Concerns = lambda version, length, head: True) -> None:
        """
        :param concerns: whether a route to a prefix (version, length, and the first bits as a number) affects a destination in
            use
        :param buffer_bytes: size of the receive buffer; without CAP_NET_ADMIN at most ``net.core.rmem_max``
        :raises OSError: the socket cannot be opened
        """
        self.overruns: int = 0
        self.urgent: bool = True
        self.pending: PendingEvents = PendingEvents(concerns)
        """The events since the last reading. A reading clears them."""
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
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._sock.fileno()

    def drain(self) -> bool:
        """Read pending events, at most 150 datagrams, so that a storm of events does not block the event loop.

        Once everything must be read again, further events are discarded unparsed.

        :return: whether any of them can change a decision
        """
        self.urgent = False
        for _ in range(_DATAGRAMS_A_DRAIN):
            # Polling each time is cheaper than the exception of a read that would block.
            if not self._poll.poll(0):
                break
            try:
                data, sender = self._sock.recvfrom(4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The kernel dropped events (linux net/netlink/af_netlink.c, netlink_overrun).
                self.overruns += 1
                self.pending.lost = self.urgent = True
                continue
            if sender[0] == 0 and not (self.urgent and self.pending.lost):
                self.urgent |= self.pending.take(data) == "partial"
        return self.urgent

    def close(self) -> None:
        """Close the socket."""
        self._finalizer()


Urgency: TypeAlias = Literal["none", "partial"]
"""Whether an event can change a reading: ``"none"`` for one that cannot (about the route cache, a local, broadcast or multicast
route, or a route to no destination in use), ``"partial"`` for one that can, even a partial reading."""
Concerns: TypeAlias = Callable[[int, int, int], bool]


class PendingEvents:
    """The events since the last reading, as far as the next one depends on them.

    :param concerns: whether a route to a prefix affects a destination in use
    """

    def __init__(self, concerns: Concerns) -> None:
        self._concerns = concerns
        self.lost: bool = False
        """Whether events were lost, so that anything may have changed."""
        self.interfaces: bool = True
        """Whether an interface or an address may have changed, other than by an interface going down."""
        self.rules: bool = True
        """Whether a policy rule or a nexthop object may have changed."""
        self.defaults: set[socket.AddressFamily] = set(FAMILIES)
        """The families whose default routes may have changed, other than by an interface going down."""
        self.down: set[int] = set()
        """The interfaces that went down. The kernel removes their routes and, by default, their IPv6 addresses."""
        self.prefixes: set[tuple[int, int, int]] = set()
        """The prefixes of changed routes that affect destinations in use: version, length, and the first bits as a number."""

    @classmethod
    def of_all(cls, sources: Sequence[PendingEvents]) -> PendingEvents:
        """The events of several sources, or of none."""
        merged = cls(lambda version, length, head: True)
        merged.clear()
        for source in sources:
            merged.lost |= source.lost
            merged.interfaces |= source.interfaces
            merged.rules |= source.rules
            merged.defaults |= source.defaults
            merged.down |= source.down
            merged.prefixes |= source.prefixes
        return merged

    @property
    def anything(self) -> bool:
        """Whether the answer about any destination may have changed."""
        return self.lost or self.interfaces or self.rules or len(self.prefixes) > _MOST_PREFIXES

    def may_change(self, destination: IPAddress) -> bool:
        """Whether the answer about a destination may have changed."""
        if self.anything or self.down:
            return True
        if not self.prefixes:
            return False
        version, number = destination.version, int(destination)
        return any(v == version and number >> (ADDRESS_BITS[v] - length) == head for v, length, head in self.prefixes)

    def clear(self) -> None:
        """Forget the events: a reading has taken them into account."""
        self.lost = self.interfaces = self.rules = False
        self.defaults.clear()
        self.down.clear()
        self.prefixes.clear()

    def take(self, datagram: bytes) -> Urgency:
        """Add an event. Only its header is parsed; an event that cannot be understood counts as lost."""
        if len(datagram) < _ROUTE_HEAD.size:
            self.lost = True
            return "partial"
        length, kind, _, _, _, family, prefix_length, _, _, table, _, _, route_type, flags = _ROUTE_HEAD.unpack_from(datagram)
        if (length + 3) & ~3 < len(datagram):
            self.lost = True
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            if route_type not in ROUTE_TYPES or flags & RTM_F_CLONED or table == LOCAL_TABLE:
                return "none"
            if kind == RTM_NEWROUTE or not self._went_down_with_interface(datagram):
                return self._take_route(family, prefix_length, datagram)
        elif kind in _ABOUT_INTERFACES:
            _, index, link_flags = _LINK_BODY.unpack_from(datagram, 16)
            if kind == _RTM_NEWLINK and family == socket.AF_UNSPEC and not link_flags & IFF_UP:
                self.down.add(index)
            elif kind != _RTM_DELADDR or index not in self.down:
                self.interfaces = True
        else:  # rules and nexthops
            self.rules = True
            self.defaults.update(FAMILIES)
        return "partial"

    def _take_route(self, family: int, length: int, datagram: bytes) -> Urgency:
        if family not in (socket.AF_INET, socket.AF_INET6):
            return "none"
        version = 4 if family == socket.AF_INET else 6
        try:
            head = head_of(datagram, _ROUTE_HEAD.size, version, length)
        except KernelError:
            self.lost = True
            return "partial"
        covers_probe = any(v == version and number >> (ADDRESS_BITS[v] - length) == head for v, number in _PROBES)
        if covers_probe:
            self.defaults.add(socket.AF_INET if version == 4 else socket.AF_INET6)
        elif not self._concerns(version, length, head):
            return "none"
        if len(self.prefixes) <= _MOST_PREFIXES:
            self.prefixes.add((version, length, head))
        return "partial"

    def _went_down_with_interface(self, datagram: bytes) -> bool:
        try:
            interface = netlink.attributes(datagram, _ROUTE_HEAD.size).get(RTA_OIF)
            return interface is not None and netlink.u32(interface) in self.down
        except KernelError:
            return False
