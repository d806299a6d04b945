"""Encodes the simulated kernel's messages.

They have the peculiarities of the recorded ones: all addresses but the last are padded to four bytes, masks are trimmed,
link-local addresses have an embedded scope, and the mask of a default route is an empty sockaddr.
"""

from __future__ import annotations

from ctypes import sizeof
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.messages import sockaddr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bindsock.model.network import IPAddress, IPNetwork
    from bindsock.testing.darwin._state import IPInterface, SimulatedInterface, SimulatedRoute

PID = 501


def route_dump(route: SimulatedRoute, operation: int) -> bytes:
    """A route in NET_RT_DUMP or NET_RT_DUMP2."""
    parts = {
        abi.RTA_DST: address(route.destination.network_address, route.interface.index),
        abi.RTA_GATEWAY: _gateway(route),
        abi.RTA_IFA: b"" if route.source is None else address(route.source, route.interface.index),
    }
    if not route.flags & abi.RTF_HOST:
        parts[abi.RTA_NETMASK] = trimmed_mask(route.destination)
    if route.source is None:
        del parts[abi.RTA_IFA]
    kind = abi.RTM_GET2 if operation == abi.NET_RT_DUMP2 else abi.RTM_GET
    announced, body = _body(parts)
    structure = abi.rt_msghdr2 if operation == abi.NET_RT_DUMP2 else abi.rt_msghdr
    header = structure(
        rtm_msglen=sizeof(structure) + len(body),
        rtm_version=abi.RTM_VERSION,
        rtm_type=kind,
        rtm_index=route.interface.index,
        rtm_flags=_signed(route.flags),
        rtm_addrs=announced,
    )
    return bytes(header) + body


def interface_dump(interface: SimulatedInterface) -> bytes:
    """An interface in NET_RT_IFLIST2, with its addresses."""
    announced, body = _body({abi.RTA_IFP: link(interface, name=True)})
    header = abi.if_msghdr2(
        ifm_msglen=sizeof(abi.if_msghdr2) + len(body),
        ifm_version=abi.RTM_VERSION,
        ifm_type=abi.RTM_IFINFO2,
        ifm_addrs=announced,
        ifm_flags=interface.flags,
        ifm_index=interface.index,
        ifm_data=abi.if_data64(ifi_type=interface.hardware.type, ifi_mtu=interface.mtu),
    )
    own = (address_message(abi.RTM_NEWADDR, interface, each, named=False) for each in interface.addresses)
    return b"".join((bytes(header) + body, *own))


def route_message(
    kind: int,
    route: SimulatedRoute,
    *,
    echo: bool = False,
    sequence: int = 0,
    error: int = 0,
    index: int | None = None,
) -> bytes:
    """RTM_ADD, RTM_DELETE or RTM_GET for a route.

    :param echo: whether it repeats a message that a program wrote; the kernel adds the interface's name and other fields
    """
    parts = {
        abi.RTA_DST: address(route.destination.network_address, route.interface.index),
        abi.RTA_GATEWAY: _gateway(route),
    }
    if not route.flags & abi.RTF_HOST:
        parts[abi.RTA_NETMASK] = trimmed_mask(route.destination)
    if echo:
        parts[abi.RTA_IFP] = link(route.interface, name=kind == abi.RTM_DELETE)
        if kind == abi.RTM_DELETE and route.source is not None:
            parts[abi.RTA_IFA] = address(route.source, route.interface.index)
    flags = route.flags
    if kind == abi.RTM_DELETE:
        flags = flags & ~abi.RTF_UP | abi.RTF_CONDEMNED
    if echo and not error:
        flags |= abi.RTF_DONE
    announced, body = _body(parts, pad_last=False)
    header = abi.rt_msghdr(
        rtm_msglen=sizeof(abi.rt_msghdr) + len(body),
        rtm_version=abi.RTM_VERSION,
        rtm_type=kind,
        rtm_index=route.interface.index if index is None else index,
        rtm_flags=_signed(flags),
        rtm_addrs=announced,
        rtm_pid=PID if echo else 0,
        rtm_seq=sequence,
        rtm_errno=error,
    )
    return bytes(header) + body


def address_message(kind: int, interface: SimulatedInterface, own: IPInterface, *, named: bool = True) -> bytes:
    """RTM_NEWADDR or RTM_DELADDR."""
    if isinstance(own, IPv4Interface):
        mask = trimmed_mask(own.network)
        mask = mask[:1] + bytes((abi.AF_INET, 0, 0)) + mask[4:]
    else:
        mask = sockaddr(own.netmask)
    parts = {abi.RTA_NETMASK: mask, abi.RTA_IFA: address(own.ip, interface.index)}
    if named:
        parts[abi.RTA_IFP] = link(interface, name=True)
    if isinstance(own, IPv4Interface):
        parts[abi.RTA_BRD] = sockaddr(own.network.broadcast_address)
    announced, body = _body(parts)
    header = abi.ifa_msghdr(
        ifam_msglen=sizeof(abi.ifa_msghdr) + len(body),
        ifam_version=abi.RTM_VERSION,
        ifam_type=kind,
        ifam_addrs=announced,
        ifam_index=interface.index,
    )
    return bytes(header) + body


def interface_message(interface: SimulatedInterface, *, index: int | None = None) -> bytes:
    """RTM_IFINFO."""
    header = abi.if_msghdr(
        ifm_msglen=sizeof(abi.if_msghdr),
        ifm_version=abi.RTM_VERSION,
        ifm_type=abi.RTM_IFINFO,
        ifm_flags=interface.flags,
        ifm_index=interface.index if index is None else index,
        ifm_data=abi.if_data(ifi_type=interface.hardware.type, ifi_mtu=interface.mtu),
    )
    return bytes(header)


def group_message(kind: int, interface: SimulatedInterface, group: IPAddress) -> bytes:
    """RTM_NEWMADDR or RTM_DELMADDR."""
    announced, body = _body({abi.RTA_IFP: link(interface, name=True), abi.RTA_IFA: address(group, interface.index)})
    header = abi.ifma_msghdr(
        ifmam_msglen=sizeof(abi.ifma_msghdr) + len(body),
        ifmam_version=abi.RTM_VERSION,
        ifmam_type=kind,
        ifmam_addrs=announced,
        ifmam_index=interface.index,
    )
    return bytes(header) + body


def kernel_event(interface: SimulatedInterface, subclass: int, code: int, number: int, data: bytes = b"") -> bytes:
    """A kernel event of the network class about an interface."""
    name = interface.name.rstrip("0123456789")
    about = abi.net_event_data(interface.hardware.family, int(interface.name[len(name) :] or 0), name.encode())
    # KEV_ND6_RA begins with something else.
    body = (bytes(len(bytes(about))) if subclass == abi.KEV_ND6_SUBCLASS else bytes(about)) + data
    size = abi.KEV_MSG_HEADER_SIZE + len(body)
    header = (size, abi.KEV_VENDOR_APPLE, abi.KEV_NETWORK_CLASS, subclass, number, code)
    return b"".join(word.to_bytes(4, "little") for word in header) + body


def address(ip: IPAddress, index: int) -> bytes:
    """A socket address as the kernel stores it: link-local addresses have their scope in bytes 2 and 3."""
    raw = bytearray(sockaddr(ip))
    if not isinstance(ip, IPv4Address) and (ip.is_link_local or (ip.is_multicast and ip.packed[1] & 0xF in (1, 2))):
        raw[10:12] = index.to_bytes(2, "big")
    return bytes(raw)


def link(interface: SimulatedInterface, *, name: bool = False) -> bytes:
    """A link-level socket address."""
    encoded = interface.name.encode() if name else b""
    length = max(20, (8 + len(encoded) + 3) & ~3)
    head = bytes((length, abi.AF_LINK)) + interface.index.to_bytes(2, "little")
    return (head + bytes((interface.hardware.type, len(encoded), 0, 0)) + encoded).ljust(length, b"\0")


def trimmed_mask(network: IPNetwork) -> bytes:
    """A netmask without trailing zeros; it is empty for a default route (xnu bsd/net/route.c, rtm_scrub)."""
    packed = network.netmask.packed.rstrip(b"\0")
    if not packed:
        return b""
    head = 4 if network.version == 4 else 8
    return bytes((head + len(packed),)) + b"\xff" * (head - 1) + packed


def _gateway(route: SimulatedRoute) -> bytes:
    if route.gateway is None:
        return link(route.interface)
    return address(route.gateway, route.interface.index)


def _body(parts: Mapping[int, bytes], *, pad_last: bool = True) -> tuple[int, bytes]:
    """The bit mask that announces the socket addresses, and the addresses in its order."""
    ordered = sorted(parts.items())
    announced = sum(parts)
    body = b""
    for position, (_, part) in enumerate(ordered):
        last = position == len(ordered) - 1
        body += part if last and not pad_last else part.ljust((len(part) + 3) & ~3 or 4, b"\0")
    return announced, body


def _signed(flags: int) -> int:
    return flags - (1 << 32) if flags & 1 << 31 else flags
