"""Interfaces and their addresses, parsed from RTM_NEWLINK and RTM_NEWADDR, and the kinds of interfaces.

Layouts and numbers: ``include/uapi/linux/if_link.h``, ``if_addr.h``, ``if_arp.h``, ``if.h``. Most messages are the same in the
next reading, so parsed messages are cached.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink
from bindsock.model.network import InterfaceAddress, InterfaceKind, IPAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RTM_GETLINK = 18
RTM_GETADDR = 22

IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")

IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_RUNNING = 0x40
_IFF_NOARP = 0x80
_IFF_LOWER_UP = 0x10000

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_OPERSTATE = 16
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1
_IFLA_EXT_MASK = 29
_IFLA_LINK_NETNSID = 37
_IFLA_PROP_LIST = 52
_IFLA_ALT_IFNAME = 53
_IFLA_PARENT_DEV_NAME = 56
_RTEXT_FILTER_SKIP_STATS = 8

_OPERSTATE_UNKNOWN = 0
_OPERSTATE_UP = 6

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_TEMPORARY = 0x01
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40

ALL_LINKS = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + netlink.attribute_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
"""The body of the dump of all links."""
ALL_ADDRESSES = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
"""The body of the dump of all addresses."""

ARPHRD_ETHER = 1
_ARPHRD_PPP = 512
_ARPHRD_RAWIP = 519
_ARPHRD_LOOPBACK = 772
_ARPHRD_NONE = 65534
# IPIP, IP6IP6, SIT, GRE, GRE over IPv6: the fallback where a tunnel's link kind is not known below.
_ARPHRD_TUNNELS = frozenset({768, 769, 776, 778, 823})

# A TAP has the kind "tun", too. vxlan and geneve are not in the list: they carry a cluster's own specific routes (a pod
# network), not a default route, so bypassing them would cut the cluster off.
_TUNNEL_KINDS = frozenset(
    {
        "tun",
        "wireguard",
        "amneziawg",
        "ovpn",
        "ovpn-dco",
        "ipip",
        "sit",
        "gre",
        "gretap",
        "erspan",
        "ip6tnl",
        "ip6gre",
        "ip6gretap",
        "ip6erspan",
        "vti",
        "vti6",
        "xfrm",
        "gtp",
        "bareudp",
    }
)
_CELLULAR_KINDS = frozenset({"wwan", "rmnet"})
_DUMMY_KINDS = frozenset({"dummy", "ifb", "nlmon", "vsockmon", "netdevsim"})
_STACKED_KINDS = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"})
"""Interfaces whose packets leave by the device that they are stacked on (IFLA_LINK)."""
_COLLECTING_KINDS = frozenset({"bridge", "bond", "team"})
"""Interfaces whose packets leave by their member devices (IFLA_MASTER)."""
_TRANSLATOR = ipaddress.IPv4Network("192.0.0.0/29")
"""The addresses (RFC 7335) of 464XLAT's translator (RFC 6877) and DS-Lite's softwire (RFC 6333), which carry IPv4 over an IPv6
uplink."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as RTM_NEWLINK describes it."""

    index: int
    name: str
    hardware: int
    """ARPHRD type."""
    flags: int
    mtu: int
    operstate: int
    kind: str
    """IFLA_INFO_KIND; empty for a physical device and for the loopback."""
    parent: bool
    """Whether it has a parent device, and so is hardware (Linux 5.14)."""
    lower: int | None
    """IFLA_LINK, the index of the device that it is stacked on, if that is in this namespace."""
    address: bytes
    """The hardware address."""
    master: int | None = None
    """The index of the bridge, bond or VRF that it belongs to."""
    alternative_names: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK) or self.hardware == _ARPHRD_LOOPBACK

    @property
    def running(self) -> bool:
        """Whether it has carrier. Without it the kernel sends nothing (linux net/sched/sch_generic.c, dev_deactivate)."""
        return bool(self.flags & _IFF_LOWER_UP)

    @property
    def dormant(self) -> bool:
        """Whether it has carrier but its operational state (RFC 2863) is not up, as with Wi-Fi before its key exchange."""
        return self.running and not (self.flags & _IFF_RUNNING and self.operstate in (_OPERSTATE_UNKNOWN, _OPERSTATE_UP))


@lru_cache(maxsize=256)
def parse_link(payload: bytes) -> Link | None:
    """Parse an RTM_NEWLINK; ``None`` for a bridge port's message, which describes no interface.

    :raises KernelError: the message is damaged
    """
    family, hardware, index, flags, _ = netlink.fixed(IFINFOMSG, payload)
    if family != socket.AF_UNSPEC:
        return None
    found = netlink.attributes(payload, IFINFOMSG.size)
    name = netlink.text(found.get(_IFLA_IFNAME, b""))
    if index <= 0 or not name:
        raise KernelError("netlink: a link has no index or no name")
    info = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
    operstate = found.get(_IFLA_OPERSTATE, b"\0")
    lower = netlink.u32(found[_IFLA_LINK]) if _IFLA_LINK in found and _IFLA_LINK_NETNSID not in found else 0
    return Link(
        index=index,
        name=name,
        hardware=hardware,
        flags=flags,
        mtu=netlink.u32(found[_IFLA_MTU]) if _IFLA_MTU in found else 0,
        operstate=operstate[0] if operstate else _OPERSTATE_UNKNOWN,
        kind=netlink.text(info.get(_IFLA_INFO_KIND, b"")),
        parent=_IFLA_PARENT_DEV_NAME in found,
        lower=lower if lower not in (0, index) else None,
        address=found.get(_IFLA_ADDRESS, b""),
        master=netlink.u32(found[_IFLA_MASTER]) or None if _IFLA_MASTER in found else None,
        alternative_names=tuple(
            netlink.text(value)
            for kind, value in netlink.every_attribute(found.get(_IFLA_PROP_LIST, b""))
            if kind == _IFLA_ALT_IFNAME
        ),
    )


@lru_cache(maxsize=1024)
def parse_address(payload: bytes) -> tuple[int, InterfaceAddress] | None:
    """The interface index and the address in an RTM_NEWADDR; ``None`` if it is of another family.

    :raises KernelError: the message is damaged
    """
    family, prefix_length, flags, _, index = netlink.fixed(_IFADDRMSG, payload)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = netlink.attributes(payload, _IFADDRMSG.size)
    # On a point-to-point link IFA_ADDRESS is the peer's.
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if packed is None:
        raise KernelError("netlink: an address message has no address")
    if _IFA_FLAGS in found:
        flags = netlink.u32(found[_IFA_FLAGS])
    address = parse_ip(family, packed)
    if prefix_length > len(packed) * 8:
        raise KernelError(f"netlink: a prefix length of {prefix_length} for an address of {len(packed) * 8} bits")
    # An optimistic address is tentative, but may be used (RFC 4429).
    tentative = bool(flags & _IFA_F_DADFAILED) or flags & (_IFA_F_TENTATIVE | _IFA_F_OPTIMISTIC) == _IFA_F_TENTATIVE
    return index, InterfaceAddress(
        address=address,
        prefix_length=prefix_length,
        tentative=tentative,
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        # For an IPv4 address the same bit means "secondary".
        temporary=family == socket.AF_INET6 and bool(flags & _IFA_F_TEMPORARY),
    )


@lru_cache(maxsize=1024)
def parse_ip(family: int, packed: bytes) -> IPAddress:
    """Convert bytes to an address of the family.

    :raises KernelError: the length is wrong
    """
    if len(packed) != (4 if family == socket.AF_INET else 16):
        raise KernelError(f"netlink: {len(packed)} bytes are no address of family {family}")
    return ipaddress.IPv4Address(packed) if family == socket.AF_INET else ipaddress.IPv6Address(packed)


def classify(link: Link, *, wireless: bool, modem: bool) -> tuple[InterfaceKind, bool]:
    """The interface's kind, and whether to use it only as a last resort.

    :param wireless: whether the device is known to be Wi-Fi
    :param modem: whether the device is known to be a mobile modem
    """
    if link.loopback:
        return InterfaceKind.LOOPBACK, False
    if link.kind == "ppp" or link.hardware == _ARPHRD_PPP:
        # A PPPoE uplink or a PPTP, L2TP or SSTP client: they cannot be told apart.
        return InterfaceKind.OTHER, True
    if link.kind in _DUMMY_KINDS:
        return InterfaceKind.DUMMY, False
    if link.kind in _TUNNEL_KINDS or link.hardware in _ARPHRD_TUNNELS:
        return InterfaceKind.TUNNEL, False
    if modem or link.kind in _CELLULAR_KINDS:
        return InterfaceKind.CELLULAR, False
    if link.hardware in (_ARPHRD_NONE, _ARPHRD_RAWIP):
        # No link layer: a modem if it is hardware, else a tunnel of an unknown kind.
        return (InterfaceKind.CELLULAR if link.parent else InterfaceKind.TUNNEL), False
    if wireless:
        return InterfaceKind.WIFI, False
    if link.kind == "bridge":
        return InterfaceKind.BRIDGE, False
    if link.kind:
        # A veth or macvlan can be a container's only uplink; bond, team, VLAN and VRF carry a real one. A veth without ARP cannot
        # find a gateway: VPNs use one as a kill switch.
        return InterfaceKind.OTHER, link.kind == "veth" and bool(link.flags & _IFF_NOARP)
    return (InterfaceKind.WIRED if link.hardware == ARPHRD_ETHER else InterfaceKind.OTHER), False


def corrected_kinds(
    kinds: Mapping[int, tuple[InterfaceKind, bool]],
    found: Mapping[int, Link],
    addresses: Mapping[int, Iterable[InterfaceAddress]],
) -> dict[int, tuple[InterfaceKind, bool]]:
    """The kinds of interfaces, corrected where they depend on lower devices or addresses.

    :param kinds: the results of :func:`classify`, by index
    :param found: the links, by index
    :param addresses: the interfaces' addresses, by index
    """
    result = dict(kinds)
    for index, link in found.items():
        if result[index][0] is not InterfaceKind.TUNNEL and link.kind in _STACKED_KINDS and _is_on_tunnel(link, found, kinds):
            result[index] = InterfaceKind.TUNNEL, False
        elif link.kind in ("tun", "ip6tnl") and any(a.address in _TRANSLATOR for a in addresses.get(index, ())):
            result[index] = InterfaceKind.OTHER, False
    return result


def uplink_candidates(kinds: Mapping[int, tuple[InterfaceKind, bool]], found: Mapping[int, Link]) -> list[int]:
    """The devices by which a network namespace may reach the outside, including TUN and TAP devices.

    :param kinds: the results of :func:`corrected_kinds`, by index
    :param found: the links, by index
    :return: the indices of the devices
    """
    others = [index for index, (kind, _) in kinds.items() if kind not in (InterfaceKind.LOOPBACK, InterfaceKind.DUMMY)]
    return [index for index in others if found[index].kind == "tun" or kinds[index][0] is not InterfaceKind.TUNNEL]


def is_tap(link: Link) -> bool:
    """Whether the link is a TAP device: a TUN device with a link layer (``linux drivers/net/tun.c``, tun_net_initialize)."""
    return link.kind == "tun" and link.hardware == ARPHRD_ETHER


def _is_on_tunnel(link: Link, found: Mapping[int, Link], kinds: Mapping[int, tuple[InterfaceKind, bool]]) -> bool:
    """Whether the link is stacked on a tunnel, directly or over other devices."""
    seen = {link.index}
    while link.lower is not None and link.lower not in seen and link.lower in found:
        link = found[link.lower]
        seen.add(link.index)
        if kinds[link.index][0] is InterfaceKind.TUNNEL or all_ports_are_tunnels(link, found, kinds):
            return True
    return False


def all_ports_are_tunnels(link: Link, found: Mapping[int, Link], kinds: Mapping[int, tuple[InterfaceKind, bool]]) -> bool:
    """Whether the link is a bridge or bond whose members are all tunnels."""
    if link.kind not in _COLLECTING_KINDS:
        return False
    ports = [port.index for port in found.values() if port.master == link.index]
    return bool(ports) and all(kinds[port][0] is InterfaceKind.TUNNEL for port in ports)
