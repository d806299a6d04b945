"""The routing table: read completely by sysctl, or one destination looked up by RTM_GET."""

from __future__ import annotations

import functools
import random
from ctypes import sizeof
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.messages import address_of, head, messages, prefix_length_of, sockaddr, sockaddrs
from bindsock.model.network import Route, RouteKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.kernel.darwin.syscalls import Syscalls, SystemSocket
    from bindsock.model.network import IPAddress, IPNetwork

_UNUSABLE = abi.RTF_CONDEMNED | abi.RTF_DEAD
"""Flags of routes that are being deleted."""

_IGNORED = abi.RTF_WASCLONED | abi.RTF_LLINFO | abi.RTF_LOCAL | abi.RTF_BROADCAST | abi.RTF_MULTICAST
"""Flags of routes that do not tell by which interface a destination is reached: routes cloned for earlier packets, neighbours,
the host's own addresses, groups. Cloned routes and neighbours would pin a peer to the interface that was used before."""

_ANY: tuple[IPAddress, ...] = (IPv4Address(0), IPv6Address(0))

_REFUSALS = (abi.EPERM, abi.EACCES, abi.EINVAL, abi.ENOTSUP, abi.EOPNOTSUPP)
"""Errors that mean: a sandbox forbids it, or the kernel does not know RTM_GET_SILENT (xnu bsd/net/rtsock.c, route_output)."""

_ANSWERS_READ = 1000
_REMEMBERED = 1 << 14
"""How many parsed routes are cached."""


def read_routes(syscalls: Syscalls, indices: list[int]) -> list[Route]:
    """The routes, in the kernel's order. If a sandbox forbids to read the table, only the default routes, looked up one by one.

    :param indices: of the interfaces
    :raises KernelError: the answer cannot be understood
    :raises OSError: the kernel refuses both to list and to look up routes
    """
    try:
        return parse_routes(_dump(syscalls))
    except KernelError:
        raise
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return list(_default_routes(syscalls, indices))


def _dump(syscalls: Syscalls) -> bytes:
    mib = (abi.CTL_NET, abi.AF_ROUTE, 0, 0)
    try:
        return syscalls.sysctl((*mib, abi.NET_RT_DUMP2, 0))
    except OSError:
        # The older form contains all that is needed here.
        return syscalls.sysctl((*mib, abi.NET_RT_DUMP, 0))


def parse_routes(dump: bytes) -> list[Route]:
    """The routes of a NET_RT_DUMP or NET_RT_DUMP2.

    :raises KernelError: the dump cannot be understood
    """
    found = []
    for kind, message in messages(dump):
        if kind == abi.RTM_GET2:
            header: abi.rt_msghdr | abi.rt_msghdr2 = head(abi.rt_msghdr2, message)
        elif kind == abi.RTM_GET:
            header = head(abi.rt_msghdr, message)
        else:
            continue
        if not header.rtm_flags & _IGNORED:
            route = _route(header.rtm_index, header.rtm_flags, header.rtm_addrs, message[sizeof(header) :])
            if route is not None:
                found.append(route)
    return found


@functools.lru_cache(maxsize=_REMEMBERED)
def _route(index: int, flags: int, announced: int, addresses: bytes) -> Route | None:
    """Parse a message without its counters. Most messages are the same in the next reading, so the result is cached."""
    if not flags & abi.RTF_UP or flags & _UNUSABLE:
        return None
    found = sockaddrs(addresses, 0, announced)
    destination = _destination(found, flags)
    if destination is None:
        return None
    gateway = address_of(found[abi.RTA_GATEWAY]) if flags & abi.RTF_GATEWAY and abi.RTA_GATEWAY in found else None
    kind = RouteKind.UNICAST
    if flags & abi.RTF_REJECT:
        kind = RouteKind.UNREACHABLE
    elif flags & abi.RTF_BLACKHOLE:
        kind = RouteKind.BLACKHOLE
    return Route(destination, index, gateway, scoped=bool(flags & abi.RTF_IFSCOPE), kind=kind)


def _destination(addresses: dict[int, bytes], flags: int) -> IPNetwork | None:
    sockaddr = addresses.get(abi.RTA_DST, b"")
    address = address_of(sockaddr)
    if address is None:
        return None
    length: int | None = address.max_prefixlen
    if not flags & abi.RTF_HOST and (abi.RTA_NETMASK in addresses or int(address) == 0):
        # The mask of a default route is empty, and missing if it is the last address.
        length = prefix_length_of(addresses.get(abi.RTA_NETMASK, b""), sockaddr[1])
    # A non-contiguous mask is no prefix; no present system makes one.
    return None if length is None else ip_network((address, length), strict=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The kernel's answer to a lookup."""

    index: int
    """The index of the interface by which a packet would leave."""
    flags: int
    message: bytes


def ask(syscalls: Syscalls, destination: IPAddress, *, scope: int = 0, default: bool = False) -> Answer | None:
    """The route that the kernel uses for a destination; ``None`` if there is none.

    :param scope: the index of the interface that the sending socket is bound to
    :param default: look up the default route itself, not the route to the address 0
    :raises OSError: the kernel refuses the lookup
    """
    sock = syscalls.route_socket()
    try:
        try:
            return _ask(sock, abi.RTM_GET_SILENT, destination, scope, default)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
        # Every routing socket in the system receives the answer to RTM_GET, so the silent one is tried first.
        return _ask(sock, abi.RTM_GET, destination, scope, default)
    finally:
        sock.close()


def _ask(sock: SystemSocket, kind: int, destination: IPAddress, scope: int, default: bool) -> Answer | None:
    sequence = random.getrandbits(31)
    link_local = isinstance(destination, IPv6Address) and (destination.is_link_local or destination.is_multicast)
    addresses = sockaddr(destination, scope if link_local else 0)
    announced = abi.RTA_DST
    if default:
        announced |= abi.RTA_NETMASK
        # The mask is written in full: a mask of length 0 would end the list (xnu bsd/net/rtsock.c, rt_xaddrs).
        addresses += addresses
    header = abi.rt_msghdr(
        rtm_msglen=sizeof(abi.rt_msghdr) + len(addresses),
        rtm_version=abi.RTM_VERSION,
        rtm_type=kind,
        rtm_index=scope,
        rtm_flags=abi.RTF_IFSCOPE if scope else 0,
        rtm_addrs=announced,
        rtm_seq=sequence,
    )
    try:
        sock.send(bytes(header) + addresses)
    except OSError as error:
        if error.errno == abi.ESRCH:
            return None
        raise
    # When send() returns, the answer is queued, among messages for all listeners.
    for _ in range(_ANSWERS_READ):
        try:
            message = sock.recv(4096)
        except BlockingIOError:
            break
        answer = _answer(message, sequence)
        if answer is not None:
            return answer if answer.index else None
    raise KernelError("the kernel did not answer a route lookup", call="RTM_GET")


def _answer(message: bytes, sequence: int) -> Answer | None:
    """The answer to the lookup with that sequence number, with index 0 if there is no route; ``None`` for other messages."""
    if len(message) < sizeof(abi.rt_msghdr):
        return None
    header = abi.rt_msghdr.from_buffer_copy(message)
    if header.rtm_version != abi.RTM_VERSION or header.rtm_type not in (abi.RTM_GET, abi.RTM_GET_SILENT):
        return None
    if header.rtm_seq != sequence:
        return None
    if header.rtm_errno:
        return Answer(0, 0, message)
    return Answer(header.rtm_index, header.rtm_flags, message)


def has_route(syscalls: Syscalls, index: int, destination: IPAddress) -> bool:
    """Whether a socket bound to the interface has a route to the destination by it.

    :raises OSError: the kernel refuses the lookup
    """
    answer = ask(syscalls, destination, scope=index)
    if answer is None or answer.index != index:
        return False
    # The kernel rejects a silent neighbour for some seconds; there is a route to it nevertheless.
    return bool(answer.flags & abi.RTF_LLINFO) or not answer.flags & (abi.RTF_REJECT | abi.RTF_BLACKHOLE)


def _default_routes(syscalls: Syscalls, indices: list[int]) -> Iterator[Route]:
    for address in _ANY:
        for index in (0, *indices):
            answer = ask(syscalls, address, scope=index, default=True)
            if answer is None:
                continue
            header = head(abi.rt_msghdr, answer.message)
            route = _route(header.rtm_index, header.rtm_flags, header.rtm_addrs, answer.message[sizeof(header) :])
            if route is None or not route.is_default:
                continue
            # Without a scope the kernel may answer with the primary interface's scoped route (route.c, rt_lookup_common).
            if index == 0 or (route.scoped and answer.index == index):
                yield Route(route.destination, answer.index, route.gateway, scoped=index != 0, kind=route.kind)
