"""Parsing routing messages, as in a sysctl dump and from a routing socket.

A message is a header, which begins with its length, version and type, followed by the socket addresses that a bit mask in the
header announces. The pitfalls, with their places in xnu's bsd/net:

* Addresses are padded to four bytes, not to eight, and an address of length 0 takes four (rtsock.c, ROUNDUP32). The last address
  is not padded in messages on a socket (rt_msg1).
* Netmasks end at their last byte that is not zero and have no family (route.c, rtm_scrub).
* Link-local IPv6 addresses have their interface's index in bytes 2 and 3 (netinet6/scope6.c).

Any program may have written a message on a socket (rtsock.c, route_output passes short writes on unchanged). So no length is
trusted, and only :class:`~bindsock.errors.KernelError` is raised.
"""

from __future__ import annotations

from ctypes import Structure, sizeof
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from bindsock.errors import KernelError
from bindsock.kernel.darwin import abi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.model.network import IPAddress

S = TypeVar("S", bound=Structure)

_PREAMBLE = 4
_LAST_RTA = abi.RTA_BRD


def messages(dump: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each message of a dump. Messages of another version are skipped.

    :raises KernelError: a length is impossible
    """
    position = 0
    while position < len(dump):
        left = len(dump) - position
        if left < _PREAMBLE:
            raise KernelError(f"a routing dump ends with {left} extra bytes")
        length = int.from_bytes(dump[position : position + 2], "little")
        if not _PREAMBLE <= length <= left:
            raise KernelError(f"a routing message claims {length} bytes, but {left} bytes of the dump are left")
        if dump[position + 2] == abi.RTM_VERSION:
            yield dump[position + 3], dump[position : position + length]
        position += length


def head(structure: type[S], message: bytes) -> S:
    """The header of a message.

    :raises KernelError: the message is shorter
    """
    if len(message) < sizeof(structure):
        raise KernelError(f"a routing message of {len(message)} bytes is too short for {structure.__name__}")
    return structure.from_buffer_copy(message)


def sockaddrs(message: bytes, offset: int, announced: int) -> dict[int, bytes]:
    """The socket addresses of a message, by the bit that announces each (``RTA_DST``...), without padding.

    :raises KernelError: one runs past the end of the message
    """
    found = {}
    bit = abi.RTA_DST
    while bit <= _LAST_RTA and offset < len(message):
        if announced & bit:
            length = message[offset]
            if offset + length > len(message):
                raise KernelError(f"a socket address of {length} bytes runs past the end of its routing message")
            found[bit] = message[offset : offset + length]
            offset += (length + 3) & ~3 or 4
        bit <<= 1
    return found


def address_of(sockaddr: bytes, family: int | None = None) -> IPAddress | None:
    """The IP address in a socket address, without its scope; ``None`` if it is of another family. Missing bytes are zero.

    :param family: the address family, if the socket address has none, like a netmask
    """
    if family is None:
        if len(sockaddr) < 2:
            return None
        family = sockaddr[1]
    if family == abi.AF_INET:
        return IPv4Address(sockaddr[4:8].ljust(4, b"\0"))
    if family == abi.AF_INET6:
        raw = sockaddr[8:24].ljust(16, b"\0")
        return IPv6Address(raw[:2] + b"\0\0" + raw[4:] if _has_embedded_scope(raw) else raw)
    return None


def prefix_length_of(mask: bytes, family: int) -> int | None:
    """The prefix length of a netmask; ``None`` if its bits are not contiguous."""
    raw = mask[4:8].ljust(4, b"\0") if family == abi.AF_INET else mask[8:24].ljust(16, b"\0")
    bits = 8 * len(raw)
    length = int.from_bytes(raw, "big").bit_count()
    return length if int.from_bytes(raw, "big") == ((1 << length) - 1) << (bits - length) else None


def name_of(sockaddr: bytes) -> str:
    """The interface name in a link-level socket address; empty if it has none."""
    if len(sockaddr) < 8 or sockaddr[1] != abi.AF_LINK:
        return ""
    return sockaddr[8 : 8 + sockaddr[5]].decode("ascii", "replace")


def sockaddr(address: IPAddress, scope: int = 0) -> bytes:
    """The socket address of an IP address.

    :param scope: the interface's index, for an IPv6 link-local address
    """
    if isinstance(address, IPv4Address):
        return bytes((16, abi.AF_INET, 0, 0)) + address.packed + bytes(8)
    return bytes((28, abi.AF_INET6, 0, 0, 0, 0, 0, 0)) + address.packed + scope.to_bytes(4, "little")


def _has_embedded_scope(raw: bytes) -> bool:
    """Whether it is link-local unicast, or multicast of interface-local or link-local scope."""
    return (raw[0] == 0xFE and raw[1] & 0xC0 == 0x80) or (raw[0] == 0xFF and raw[1] & 0x0F in (1, 2))
