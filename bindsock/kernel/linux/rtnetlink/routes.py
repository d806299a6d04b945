"""Parsing RTM_NEWROUTE, and encoding the lookup of the route that a bound socket would take.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``, ``nexthop.h``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.kernel.linux.rtnetlink.links import parse_ip
from bindsock.model.network import ADDRESS_BITS, LOCAL_TABLE, IPAddress, IPNetwork, Route, RouteKind, family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_GETNEXTHOP = 106

RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")
_NHMSG = struct.Struct("=BBBxI")
_NEXTHOP_GRP = struct.Struct("=IBBH")
_U16 = struct.Struct("=H")
_PREFERENCES = {b"\1": 1, b"\3": -1}
"""RFC 4191: 1 is high, 3 low, 0 medium."""

RTN_UNICAST = 1
RTN_LOCAL = 2
_KINDS = {
    RTN_UNICAST: RouteKind.UNICAST,
    6: RouteKind.BLACKHOLE,
    7: RouteKind.UNREACHABLE,
    8: RouteKind.PROHIBIT,
    9: RouteKind.THROW,
}
DEAD_ENDS = frozenset(_KINDS) - {RTN_UNICAST}
"""The route types that discard what is sent."""
ROUTE_TYPES = frozenset(_KINDS)
"""The types of routes to other hosts; the other types are local, broadcast, anycast and multicast."""

_RTA_DST = 1
_RTA_SRC = 2
RTA_OIF = 4
RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_MULTIPATH = 9
RTA_TABLE = 15
_RTA_MARK = 16
RTA_VIA = 18
_RTA_PREF = 20
_RTA_NH_ID = 30
_NHA_ID = 1
_NHA_GROUP = 2
_NHA_OIF = 5
_NHA_GATEWAY = 6

RTM_F_CLONED = 0x200
_RTM_F_LOOKUP_TABLE = 0x1000
"""Without this flag IPv4 always reports the main table (``linux net/ipv4/route.c``, inet_rtm_getroute)."""
_RTM_F_FIB_MATCH = 0x2000

ALL_NEXTHOPS = _NHMSG.pack(socket.AF_UNSPEC, 0, 0, 0)
"""The body of the dump of all nexthop objects."""


class NextHop(NamedTuple):
    """The next hop of a route; ``None`` for what it does not name."""

    interface: int | None
    gateway: IPAddress | None


class ParsedRoute(NamedTuple):
    """An entry of a routing table as the kernel reports it."""

    type: int
    destination: IPNetwork
    table: int
    metric: int
    routes: tuple[Route, ...]
    """One route for each next hop; none if the interface is not known."""
    nexthop_id: int | None
    """The id of the nexthop object."""
    source: IPAddress | None = None
    """RTA_PREFSRC: the source address that the entry names, or that the kernel would choose."""

    def by(self, hops: Iterable[NextHop]) -> tuple[Route, ...]:
        """The routes by these next hops."""
        return _by(hops, self.destination, self.metric, self.table)


def dump_request(family: int, table: int | None = None) -> bytes:
    """The body of the dump of a family's routes.

    :param table: one routing table; all if ``None``
    """
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return body if table is None else body + netlink.attribute_u32(RTA_TABLE, table)


def query(
    destination: IPAddress, interface: int | None, *, fib_match: bool = True, source: IPAddress | None = None, mark: int = 0
) -> bytes:
    """The body of RTM_GETROUTE, which looks up the route to a destination.

    :param interface: the index of the interface that the socket is bound to; ``None`` for an unbound socket
    :param fib_match: ask for the matching entry of the table. Without it, IPv4 claims that a destination without a route is on
        the link (``linux net/ipv4/route.c``, ip_route_output_key_hash_rcu); but it tells which of several next hops the kernel
        takes, and which source address it would choose
    :param source: the address that the socket is bound to
    :param mark: the socket's firewall mark
    """
    family = family_of(destination)
    # IPv6 always reports the table, and refuses this flag.
    flags = (_RTM_F_FIB_MATCH if fib_match else 0) | (_RTM_F_LOOKUP_TABLE if family == socket.AF_INET else 0)
    bits = destination.max_prefixlen
    body = RTMSG.pack(family, bits, bits if source is not None else 0, 0, 0, 0, 0, 0, flags)
    body += netlink.attribute(_RTA_DST, destination.packed)
    if source is not None:
        body += netlink.attribute(_RTA_SRC, source.packed)
    if interface is not None:
        body += netlink.attribute_u32(RTA_OIF, interface)
    return body + netlink.attribute_u32(_RTA_MARK, mark) if mark else body


def parse_route(payload: bytes) -> ParsedRoute | None:
    """Parse an RTM_NEWROUTE.

    :return: ``None`` for routes that do not matter: of other families, of the route cache, of the local table, of the types
        local, broadcast, anycast and multicast, and routes for certain source addresses or for a type of service
    :raises KernelError: the message is damaged
    """
    _, _, source_length, tos, table, _, _, kind, flags = netlink.fixed(RTMSG, payload)
    if kind not in ROUTE_TYPES or flags & RTM_F_CLONED or table == LOCAL_TABLE or source_length or tos:
        return None
    parsed = _parse(payload)
    return None if parsed is None or parsed.table == LOCAL_TABLE else parsed


@lru_cache(maxsize=256)
def parse_answer(payload: bytes) -> ParsedRoute | None:
    """Parse the answer to a lookup, of any route type; ``None`` for a route of another family.

    :raises KernelError: the message is damaged
    """
    return _parse(payload)


def _parse(payload: bytes) -> ParsedRoute | None:
    family, prefix_length, _, _, table, _, _, kind, _ = netlink.fixed(RTMSG, payload)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = netlink.attributes(payload, RTMSG.size)
    destination = parse_prefix(family, found.get(_RTA_DST, b""), prefix_length)
    if RTA_TABLE in found:
        table = netlink.u32(found[RTA_TABLE])
    metric = netlink.u32(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0
    routes: tuple[Route, ...] = ()
    if kind in DEAD_ENDS:
        # IPv6 reports the loopback as their interface, IPv4 none.
        routes = (Route(destination, None, None, metric, table, False, _KINDS[kind]),)
    elif _RTA_MULTIPATH in found:
        routes = _by(_multipath(family, found[_RTA_MULTIPATH]), destination, metric, table)
    elif RTA_OIF in found:
        preference = _PREFERENCES.get(found.get(_RTA_PREF, b""), 0)
        route = Route(destination, netlink.u32(found[RTA_OIF]), _gateway(family, found), metric, table, preference=preference)
        routes = (route,)
    nexthop = netlink.u32(found[_RTA_NH_ID]) if _RTA_NH_ID in found else None
    source = parse_ip(family, found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else None
    return ParsedRoute(kind, destination, table, metric, routes, nexthop, source)


def _by(hops: Iterable[NextHop], destination: IPNetwork, metric: int, table: int) -> tuple[Route, ...]:
    return tuple(Route(destination, hop.interface, hop.gateway, metric, table) for hop in hops if hop.interface is not None)


def head_of(message: bytes, offset: int, version: int, length: int) -> int:
    """The first bits of the prefix that an RTM_NEWROUTE or RTM_DELROUTE is about, as a number.

    :param offset: where the attributes begin
    :param length: of the prefix
    :raises KernelError: the message is damaged
    """
    if length == 0:
        return 0
    packed = netlink.attributes(message, offset).get(_RTA_DST, b"")
    bits = ADDRESS_BITS[version]
    if len(packed) * 8 != bits or length > bits:
        raise KernelError(f"netlink: a prefix of {length} bits does not fit its {len(packed)} bytes")
    return int.from_bytes(packed, "big") >> (bits - length)


def parse_nexthops(payloads: Sequence[bytes]) -> dict[int, tuple[NextHop, ...]]:
    """The next hops of each nexthop object, by id; a group has those of its members.

    :raises KernelError: a message is damaged
    """
    single: dict[int, tuple[NextHop, ...]] = {}
    groups: dict[int, list[int]] = {}
    for payload in payloads:
        family = netlink.fixed(_NHMSG, payload)[0]
        found = netlink.attributes(payload, _NHMSG.size)
        if _NHA_ID not in found:
            raise KernelError("netlink: a nexthop has no id")
        number = netlink.u32(found[_NHA_ID])
        if _NHA_GROUP in found:
            members = found[_NHA_GROUP]
            if len(members) % _NEXTHOP_GRP.size:
                raise KernelError("netlink: a nexthop group ends in the middle of a member")
            groups[number] = [int(member[0]) for member in _NEXTHOP_GRP.iter_unpack(members)]
        elif _NHA_OIF in found:
            gateway = parse_ip(family, found[_NHA_GATEWAY]) if _NHA_GATEWAY in found else None
            single[number] = (NextHop(netlink.u32(found[_NHA_OIF]), gateway),)
    return single | {number: tuple(hop for m in members for hop in single.get(m, ())) for number, members in groups.items()}


def _multipath(family: int, data: bytes) -> tuple[NextHop, ...]:
    hops = []
    offset, end = 0, len(data)
    while end - offset >= _RTNEXTHOP.size:
        length, _, _, index = _RTNEXTHOP.unpack_from(data, offset)
        if not _RTNEXTHOP.size <= length <= end - offset:
            raise KernelError(f"netlink: a next hop claims {length} bytes, but {end - offset} are left")
        found = netlink.attributes(data[offset : offset + length], _RTNEXTHOP.size)
        hops.append(NextHop(index if index > 0 else None, _gateway(family, found)))
        offset += (length + 3) & ~3
    return tuple(hops)


def _gateway(family: int, found: Mapping[int, bytes]) -> IPAddress | None:
    if RTA_GATEWAY in found:
        return parse_ip(family, found[RTA_GATEWAY])
    if RTA_VIA in found:
        # An IPv4 route by an IPv6 neighbour (RFC 5549): the family, then the address.
        via = found[RTA_VIA]
        if len(via) < 2:
            raise KernelError("netlink: a gateway has no family")
        via_family = _U16.unpack_from(via)[0]
        if via_family in (socket.AF_INET, socket.AF_INET6):
            return parse_ip(via_family, via[2:])
    return None


def parse_prefix(family: int, packed: bytes, prefix_length: int) -> IPNetwork:
    """Convert bytes and a length to a prefix of the family. A prefix of length 0 may have no bytes.

    :raises KernelError: the bytes or the length do not fit the family
    """
    size = 4 if family == socket.AF_INET else 16
    if prefix_length > size * 8:
        raise KernelError(f"netlink: a prefix length of {prefix_length} in family {family}")
    if not packed and not prefix_length:
        packed = bytes(size)
    if len(packed) != size:
        raise KernelError(f"netlink: {len(packed)} bytes are no address of family {family}")
    make: Callable[..., IPNetwork] = ipaddress.IPv4Network if family == socket.AF_INET else ipaddress.IPv6Network
    return make((packed, prefix_length), strict=False)
