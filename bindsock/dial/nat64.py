"""NAT64: dials an IPv4 literal on a network that has only IPv6.

Such a network translates IPv6 addresses that embed an IPv4 address (RFC 6052). To find the prefix, ask its name servers for the
IPv6 addresses of ``ipv4only.arpa``, a name with two well-known IPv4 addresses (RFC 7050). Host names do not need this, because
these name servers answer with embedded addresses (DNS64).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, TypeAlias

from bindsock.dial.resolving import AddrInfo

if TYPE_CHECKING:
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

NAME = "ipv4only.arpa"
"""The name whose IPv6 addresses contain the prefix (RFC 7050 section 3)."""
_KNOWN = frozenset({IPv4Address("192.0.0.170"), IPv4Address("192.0.0.171")})
_LENGTHS = (96, 64, 56, 48, 40, 32)
"""The possible prefix lengths (RFC 6052 section 2.2)."""
_RESERVED = 8
"""The index of the byte that must be zero and is no part of the IPv4 address (RFC 6052 section 2.2)."""

FindPrefixes: TypeAlias = Callable[[], Awaitable[tuple[IPv6Network, ...]]]
"""Asks the network for its NAT64 prefixes; the result is empty if it does not translate."""


def embed(address: IPv4Address, prefix: IPv6Network) -> IPv6Address:
    """The IPv6 address by which a network with this prefix reaches the IPv4 address.

    :raises ValueError: RFC 6052 does not allow the length of the prefix
    """
    octets = bytearray(prefix.network_address.packed)
    for position, octet in zip(_positions(prefix.prefixlen), address.packed, strict=True):
        octets[position] = octet
    return IPv6Address(bytes(octets))


def prefixes_in(addresses: Iterable[IPv6Address]) -> tuple[IPv6Network, ...]:
    """The prefixes that the IPv6 addresses of ``ipv4only.arpa`` contain, in order (RFC 7050 section 3)."""
    found: dict[IPv6Network, None] = {}
    for address in addresses:
        for length in _LENGTHS:
            embedded = IPv4Address(bytes(address.packed[position] for position in _positions(length)))
            if embedded in _KNOWN and (length == 96 or not address.packed[_RESERVED]):
                found.setdefault(IPv6Network((address.packed, length), strict=False))
                break
    return tuple(found)


def is_for_translator(host: str | None, family: int, infos: Iterable[AddrInfo], decider: Decider) -> bool:
    """Whether only a translator can reach the host: it is an IPv4 unicast literal, and only IPv6 has an effective interface.

    :param family: the requested family; a program that asks for IPv4 does not get IPv6
    :param infos: the addresses of the host, none of which has an interface
    """
    return (
        family == socket.AF_UNSPEC
        and _is_unicast_ipv4(host)
        and all(info[0] == socket.AF_INET for info in infos)
        and decider.decide(socket.AF_INET6).interface is not None
    )


def synthesized(infos: Iterable[AddrInfo], prefixes: Sequence[IPv6Network]) -> list[AddrInfo]:
    """The IPv6 addresses that reach IPv4 addresses through a translator.

    :param infos: the IPv4 addresses, as ``getaddrinfo()`` gives them
    """
    return [
        (socket.AF_INET6, kind, proto, name, (str(embed(IPv4Address(host), prefix)), port, 0, 0))
        for _, kind, proto, name, (host, port, *_) in infos
        for prefix in prefixes
    ]


async def translated(
    host: str | None, family: int, infos: Sequence[AddrInfo], decider: Decider, find: FindPrefixes | None
) -> list[AddrInfo]:
    """The IPv6 addresses by which a network without IPv4 reaches an IPv4 literal; empty if there are none.

    :param find: asks for the prefixes; ``None`` if that is not possible
    """
    if find is None or not is_for_translator(host, family, infos, decider):
        return []
    try:
        return synthesized(infos, await find())
    except OSError as error:
        log_unknown(host, error)
        return []


def log_unknown(host: str | None, error: OSError) -> None:
    """Log why an IPv4 literal is not dialled through a translator."""
    _logger.info("%s cannot be reached by IPv4, and the NAT64 prefix of the network is unknown: %s", host, error)


def _is_unicast_ipv4(host: str | None) -> bool:
    """Whether the host is an IPv4 literal that a router may forward to."""
    try:
        address = IPv4Address(host or "")
    except ValueError:
        return False
    return not (address.is_multicast or address.is_reserved or address.is_link_local or address.is_unspecified)


def _positions(length: int) -> list[int]:
    """The indices of the bytes that hold the IPv4 address after a prefix of this length."""
    if length not in _LENGTHS:
        raise ValueError(f"a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits, not {length}")
    first = length // 8
    return [position for position in range(first, first + 5) if position != _RESERVED][:4]
