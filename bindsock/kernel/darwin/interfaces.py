"""The interfaces: read by NET_RT_IFLIST2, and by an ioctl for each property that it does not contain."""

from __future__ import annotations

import re
from ctypes import sizeof
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.messages import address_of, head, messages, name_of, prefix_length_of, sockaddr, sockaddrs
from bindsock.model.network import Interface, InterfaceAddress, InterfaceKind

if TYPE_CHECKING:
    from bindsock.kernel.darwin.syscalls import Syscalls
    from bindsock.model.network import IPAddress

_EXHAUSTED = (abi.EBADF, abi.ENOMEM, abi.ENFILE, abi.EMFILE, abi.ENOBUFS)
"""Errors of an ioctl that have nothing to do with the interface. All others mean "not known": a sandbox, an older kernel, or an
interface that has just been removed."""

_TUNNEL_FAMILIES = (
    abi.IFRTYPE_FAMILY_TUN,
    abi.IFRTYPE_FAMILY_GIF,
    abi.IFRTYPE_FAMILY_STF,
    abi.IFRTYPE_FAMILY_UTUN,
    abi.IFRTYPE_FAMILY_IPSEC,
)
_TUNNEL_NAME = re.compile(r"(utun|ipsec|tun|tap|gif|stf|rd|feth)\d+")
"""feth is a pair of interfaces joined back to back. ZeroTier uses it as a tunnel."""

_PEER_NAME = re.compile(r"(awdl|llw|ap|anpi)\d+")
_PEER_TYPES = (
    abi.IFRTYPE_FUNCTIONAL_WIFI_AWDL,
    abi.IFRTYPE_FUNCTIONAL_INTCOPROC,
    abi.IFRTYPE_FUNCTIONAL_COMPANIONLINK,
    abi.IFRTYPE_FUNCTIONAL_MANAGEMENT,
)

_KINDS = {
    abi.IFRTYPE_FUNCTIONAL_LOOPBACK: InterfaceKind.LOOPBACK,
    abi.IFRTYPE_FUNCTIONAL_WIRED: InterfaceKind.WIRED,
    abi.IFRTYPE_FUNCTIONAL_WIFI_INFRA: InterfaceKind.WIFI,
    abi.IFRTYPE_FUNCTIONAL_CELLULAR: InterfaceKind.CELLULAR,
}

_NOT_ASKED = (InterfaceKind.TUNNEL, InterfaceKind.LOOPBACK)
"""The kinds of interfaces whose address flags no decision depends on."""


@dataclass(slots=True)
class Link:
    """An interface as NET_RT_IFLIST2 describes it."""

    index: int
    name: str
    flags: int
    type: int
    mtu: int
    addresses: list[tuple[IPAddress, int]] = field(default_factory=list)
    """Addresses and prefix lengths."""


def parse_links(dump: bytes) -> dict[int, Link]:
    """The interfaces of a NET_RT_IFLIST2, by index.

    :raises KernelError: the dump cannot be understood
    """
    links: dict[int, Link] = {}
    for kind, message in messages(dump):
        if kind == abi.RTM_IFINFO2:
            info = head(abi.if_msghdr2, message)
            found = sockaddrs(message, sizeof(info), info.ifm_addrs)
            name = name_of(found.get(abi.RTA_IFP, b""))
            links[info.ifm_index] = Link(info.ifm_index, name, info.ifm_flags, info.ifm_data.ifi_type, info.ifm_data.ifi_mtu)
        elif kind == abi.RTM_NEWADDR:
            header = head(abi.ifa_msghdr, message)
            link = links.get(header.ifam_index)
            found = sockaddrs(message, sizeof(header), header.ifam_addrs)
            own = found.get(abi.RTA_IFA, b"")
            address = address_of(own)
            if link is not None and address is not None:
                length = prefix_length_of(found.get(abi.RTA_NETMASK, b""), own[1])
                link.addresses.append((address, address.max_prefixlen if length is None else length))
    return links


class Interfaces(NamedTuple):
    """One reading of the interfaces."""

    by_index: dict[int, Interface]
    peers: frozenset[int]
    """The indices of interfaces that only reach devices nearby, never the Internet, whatever routes they have: awdl and llw
    (AirDrop), ap (the hotspot), anpi (the coprocessor), management links."""


def read_interfaces(syscalls: Syscalls) -> Interfaces:
    """Read the interfaces.

    :raises KernelError: the answer cannot be understood
    :raises OSError: a call failed
    """
    links = parse_links(syscalls.sysctl((abi.CTL_NET, abi.AF_ROUTE, 0, 0, abi.NET_RT_IFLIST2, 0)))
    names = dict(syscalls.interfaces())
    found = {}
    peers = set()
    for index, link in links.items():
        link.name = names.get(index) or link.name
        if not link.name:
            continue
        delegate = _delegate(syscalls, link.name)
        classified = _classify(syscalls, link, delegate)
        if classified.peer:
            peers.add(index)
        found[index] = _interface(syscalls, link, delegate, classified)
    return Interfaces(found, frozenset(peers))


def _interface(syscalls: Syscalls, link: Link, delegate: int | None, classified: _Classification) -> Interface:
    expensive = _ask(syscalls, abi.SIOCGIFEXPENSIVE, link.name)
    constrained = _ask(syscalls, abi.SIOCGIFCONSTRAINED, link.name)
    return Interface(
        link.name,
        link.index,
        classified.kind,
        up=bool(link.flags & abi.IFF_UP),
        running=bool(link.flags & abi.IFF_RUNNING),
        addresses=tuple(_address(syscalls, link.name, classified.kind, address, length) for address, length in link.addresses),
        mtu=link.mtu,
        delegate=delegate,
        expensive=expensive is not None and expensive.ifr_expensive != 0,
        constrained=constrained is not None and constrained.ifr_constrained != 0,
        last_resort=classified.last_resort,
    )


class _Classification(NamedTuple):
    kind: InterfaceKind
    last_resort: bool = False
    peer: bool = False


def _classify(syscalls: Syscalls, link: Link, delegate: int | None) -> _Classification:
    """The interface's kind. Tunnels are recognised first: a tunnel's functional type is its delegate's (xnu bsd/net/if.c)."""
    if link.flags & abi.IFF_LOOPBACK:
        return _Classification(InterfaceKind.LOOPBACK)
    family = subfamily = functional = 0
    if (answer := _ask(syscalls, abi.SIOCGIFTYPE, link.name)) is not None:
        _, family, subfamily = answer.ifr_type
    flags = _ask(syscalls, abi.SIOCGIFXFLAGS, link.name)
    if (
        delegate
        or (flags is not None and flags.ifr_xflags & abi.IFXF_IS_VPN)
        or family in _TUNNEL_FAMILIES
        or subfamily == abi.IFRTYPE_SUBFAMILY_REDIRECT
        or _TUNNEL_NAME.fullmatch(link.name)
    ):
        return _Classification(InterfaceKind.TUNNEL)
    if family == abi.IFRTYPE_FAMILY_PPP or link.type == abi.IFT_PPP or link.name.startswith("ppp"):
        # PPPoE and modems, or L2TP and PPTP: they cannot be told apart.
        return _Classification(InterfaceKind.OTHER, last_resort=True)
    if (answer := _ask(syscalls, abi.SIOCGIFFUNCTIONALTYPE, link.name)) is not None:
        functional = answer.ifr_functional_type
    if functional in _PEER_TYPES or _PEER_NAME.fullmatch(link.name):
        return _Classification(InterfaceKind.OTHER, peer=True)
    if functional in _KINDS:
        return _Classification(_KINDS[functional])
    if family == abi.IFRTYPE_FAMILY_CELLULAR or link.type == abi.IFT_CELLULAR:
        return _Classification(InterfaceKind.CELLULAR)
    return _Classification(InterfaceKind.BRIDGE if link.type == abi.IFT_BRIDGE else InterfaceKind.OTHER)


def _delegate(syscalls: Syscalls, name: str) -> int | None:
    """The index of the interface's delegate, one step; ``None`` if there is none or it is not known."""
    answer = _ask(syscalls, abi.SIOCGIFDELEGATE, name)
    return None if answer is None else answer.ifr_delegated or None


def _address(syscalls: Syscalls, name: str, kind: InterfaceKind, address: IPAddress, length: int) -> InterfaceAddress:
    flags = 0
    if isinstance(address, IPv6Address) and not address.is_link_local and kind not in _NOT_ASKED:
        flags = _address_flags(syscalls, name, address)
    return InterfaceAddress(
        address,
        length,
        tentative=bool(flags & (abi.IN6_IFF_TENTATIVE | abi.IN6_IFF_DUPLICATED)),
        deprecated=bool(flags & abi.IN6_IFF_DEPRECATED),
        temporary=bool(flags & abi.IN6_IFF_TEMPORARY),
    )


def _ask(syscalls: Syscalls, request: int, name: str) -> abi.ifreq_union | None:
    """The answer of an ioctl about an interface; ``None`` if it is not known.

    :raises OSError: the machine is out of descriptors or memory
    """
    encoded = name.encode("ascii", "replace")
    if len(encoded) >= abi.IFNAMSIZ:
        return None
    # The kernel leaves the bytes after the answer as they were sent: zero (recorded from xnu).
    answer = _call(syscalls, request, bytes(abi.ifreq(ifr_name=encoded)))
    if answer is None or len(answer) < sizeof(abi.ifreq):
        return None
    return abi.ifreq.from_buffer_copy(answer).ifr_ifru


def _address_flags(syscalls: Syscalls, name: str, address: IPv6Address) -> int:
    """The ``IN6_IFF_`` flags of an address; 0 if they are not known."""
    question = abi.in6_ifreq(ifr_name=name.encode("ascii", "replace"))
    question.ifr_ifru.ifru_addr = abi.sockaddr_in6.from_buffer_copy(sockaddr(address))
    answer = _call(syscalls, abi.SIOCGIFAFLAG_IN6, bytes(question))
    # An IPv4 socket passes the ioctl to the driver, and some drivers accept requests that they do not know.
    if answer is None or len(answer) < sizeof(abi.in6_ifreq) or answer == bytes(question):
        return 0
    return abi.in6_ifreq.from_buffer_copy(answer).ifr_ifru.ifru_flags6


def _call(syscalls: Syscalls, request: int, argument: bytes) -> bytes | None:
    try:
        return syscalls.ioctl(request, argument)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
        return None
