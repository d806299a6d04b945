"""Interfaces and their addresses, out of RTM_NEWLINK and RTM_NEWADDR; and what kind of thing an interface is.

Layouts and numbers: ``include/uapi/linux/if_link.h``, ``if_addr.h``, ``if_arp.h``, ``if.h``. Most messages are the same from one
reading to the next, so that what they meant is remembered.
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

# A tap is of kind "tun", too. Not here: vxlan and geneve, which carry a cluster's own specific routes (a pod network) rather than
# somebody's default, so that passing them over would cut the cluster off.
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
"""What these are given leaves by the device beneath (IFLA_LINK)."""
_COLLECTING_KINDS = frozenset({"bridge", "bond", "team"})
"""What these are given leaves by the devices that belong to them (IFLA_MASTER)."""
_TRANSLATOR = ipaddress.IPv4Network("192.0.0.0/29")
"""RFC 7335: the addresses of 464XLAT's translator (RFC 6877) and of DS-Lite's softwire (RFC 6333). What goes into it leaves by
the IPv6 uplink, and it is the way for IPv4."""


@dataclass(frozen=True, slots=True)
class Link:
    """What RTM_NEWLINK says of an interface."""

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
    """It has a parent device: it is hardware (Linux 5.14)."""
    lower: int | None
    """IFLA_LINK, if that is in this namespace."""
    address: bytes
    """The hardware address."""
    master: int | None = None
    """The bridge, bond or VRF that it belongs to."""
    alternative_names: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK) or self.hardware == _ARPHRD_LOOPBACK

    @property
    def running(self) -> bool:
        """It has carrier: without it the kernel sends nothing (linux net/sched/sch_generic.c, dev_deactivate)."""
        return bool(self.flags & _IFF_LOWER_UP)

    @property
    def dormant(self) -> bool:
        """It has carrier, but its operational state (RFC 2863) is not up: Wi-Fi before its key exchange."""
        return self.running and not (self.flags & _IFF_RUNNING and self.operstate in (_OPERSTATE_UNKNOWN, _OPERSTATE_UP))


@lru_cache(maxsize=256)
def parse_link(payload: bytes) -> Link | None:
    """A link of RTM_NEWLINK; ``None`` for a bridge port's message, which describes no interface.

    :raises KernelError: the message is damaged
    """
    family, hardware, index, flags, _ = netlink.fixed(IFINFOMSG, payload)
    if family != socket.AF_UNSPEC:
        return None
    found = netlink.attributes(payload, IFINFOMSG.size)
    name = netlink.text(found.get(_IFLA_IFNAME, b""))
    if index <= 0 or not name:
        raise KernelError("netlink: a link without an index or a name")
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
    """The interface index and the address of an RTM_NEWADDR; ``None`` if it is of another family.

    :raises KernelError: the message is damaged
    """
    family, prefix_length, flags, _, index = netlink.fixed(_IFADDRMSG, payload)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = netlink.attributes(payload, _IFADDRMSG.size)
    # On a point-to-point link IFA_ADDRESS is the peer's.
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if packed is None:
        raise KernelError("netlink: an address message without an address")
    if _IFA_FLAGS in found:
        flags = netlink.u32(found[_IFA_FLAGS])
    address = parse_ip(family, packed)
    if prefix_length > len(packed) * 8:
        raise KernelError(f"netlink: a prefix of {prefix_length} bits in an address of {len(packed) * 8}")
    # An optimistic address is tentative and yet in use (RFC 4429).
    tentative = bool(flags & _IFA_F_DADFAILED) or flags & (_IFA_F_TENTATIVE | _IFA_F_OPTIMISTIC) == _IFA_F_TENTATIVE
    return index, InterfaceAddress(
        address=address,
        prefix_length=prefix_length,
        tentative=tentative,
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        # The same bit says "secondary" of an IPv4 address.
        temporary=family == socket.AF_INET6 and bool(flags & _IFA_F_TEMPORARY),
    )


@lru_cache(maxsize=1024)
def parse_ip(family: int, packed: bytes) -> IPAddress:
    """An address of the family.

    :raises KernelError: it has another length
    """
    if len(packed) != (4 if family == socket.AF_INET else 16):
        raise KernelError(f"netlink: an address of {len(packed)} bytes in family {family}")
    return ipaddress.IPv4Address(packed) if family == socket.AF_INET else ipaddress.IPv6Address(packed)


def classify(link: Link, *, wireless: bool, modem: bool) -> tuple[InterfaceKind, bool]:
    """What the interface is, and whether it is an uplink only where there is no other.

    :param wireless: the device is known to be Wi-Fi
    :param modem: the device is known to be a mobile modem
    """
    if link.loopback:
        return InterfaceKind.LOOPBACK, False
    if link.kind == "ppp" or link.hardware == _ARPHRD_PPP:
        # PPPoE uplink or PPTP/L2TP/SSTP client: nothing tells which.
        return InterfaceKind.OTHER, True
    if link.kind in _DUMMY_KINDS:
        return InterfaceKind.DUMMY, False
    if link.kind in _TUNNEL_KINDS or link.hardware in _ARPHRD_TUNNELS:
        return InterfaceKind.TUNNEL, False
    if modem or link.kind in _CELLULAR_KINDS:
        return InterfaceKind.CELLULAR, False
    if link.hardware in (_ARPHRD_NONE, _ARPHRD_RAWIP):
        # Packets without a link layer: a modem if there is hardware beneath, else the tunnel of a kind not known here.
        return (InterfaceKind.CELLULAR if link.parent else InterfaceKind.TUNNEL), False
    if wireless:
        return InterfaceKind.WIFI, False
    if link.kind == "bridge":
        return InterfaceKind.BRIDGE, False
    if link.kind:
        # A veth or macvlan is a container's only uplink; bond, team, VLAN and VRF carry a real one. Where ARP is off on a veth
        # nothing finds a gateway: such a thing stands for a kill switch.
        return InterfaceKind.OTHER, link.kind == "veth" and bool(link.flags & _IFF_NOARP)
    return (InterfaceKind.WIRED if link.hardware == ARPHRD_ETHER else InterfaceKind.OTHER), False


def corrected_kinds(
    kinds: Mapping[int, tuple[InterfaceKind, bool]],
    found: Mapping[int, Link],
    addresses: Mapping[int, Iterable[InterfaceAddress]],
) -> dict[int, tuple[InterfaceKind, bool]]:
    """The kinds of interfaces as :func:`classify` has them, corrected by what they stand on and what is beside them.

    :param kinds: by index
    :param found: the links by index
    :param addresses: by index
    """
    result = dict(kinds)
    for index, link in found.items():
        if result[index][0] is not InterfaceKind.TUNNEL and link.kind in _STACKED_KINDS and _is_on_tunnel(link, found, kinds):
            result[index] = InterfaceKind.TUNNEL, False
        elif link.kind in ("tun", "ip6tnl") and any(a.address in _TRANSLATOR for a in addresses.get(index, ())):
            result[index] = InterfaceKind.OTHER, False
    return result


def uplink_candidates(kinds: Mapping[int, tuple[InterfaceKind, bool]], found: Mapping[int, Link]) -> list[int]:
    """The devices by which a namespace may reach the outside, TUN and TAP devices among them.

    :param kinds: by index, as :func:`corrected_kinds` has them
    :param found: the links by index
    :return: their indexes
    """
    others = [index for index, (kind, _) in kinds.items() if kind not in (InterfaceKind.LOOPBACK, InterfaceKind.DUMMY)]
    return [index for index in others if found[index].kind == "tun" or kinds[index][0] is not InterfaceKind.TUNNEL]


def is_tap(link: Link) -> bool:
    """Whether it is a TAP device: a TUN device with a link layer (``linux drivers/net/tun.c``, tun_net_initialize)."""
    return link.kind == "tun" and link.hardware == ARPHRD_ETHER


def _is_on_tunnel(link: Link, found: Mapping[int, Link], kinds: Mapping[int, tuple[InterfaceKind, bool]]) -> bool:
    """Whether the device on which the link stands, at last, is a tunnel."""
    seen = {link.index}
    while link.lower is not None and link.lower not in seen and link.lower in found:
        link = found[link.lower]
        seen.add(link.index)
        if kinds[link.index][0] is InterfaceKind.TUNNEL or all_ports_are_tunnels(link, found, kinds):
            return True
    return False


def all_ports_are_tunnels(link: Link, found: Mapping[int, Link], kinds: Mapping[int, tuple[InterfaceKind, bool]]) -> bool:
    """Whether it is a bridge or a bond to which only tunnels belong."""
    if link.kind not in _COLLECTING_KINDS:
        return False
    ports = [port.index for port in found.values() if port.master == link.index]
    return bool(ports) and all(kinds[port][0] is InterfaceKind.TUNNEL for port in ports)
