"""NAT64: how an IPv4 literal is dialled on a network that has IPv6 alone.

Such a network translates IPv6 addresses that embed an IPv4 address (RFC 6052). Its name servers tell the prefix when they are
asked for the IPv6 addresses of ``ipv4only.arpa``, which has two known IPv4 addresses and no others (RFC 7050). Names need
none of this: those name servers answer them with embedded addresses (DNS64).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TypeAlias

from bindsock.dial.resolving import AddrInfo

NAME = "ipv4only.arpa"
"""The name whose IPv6 addresses tell the prefix (RFC 7050 section 3)."""
_KNOWN = frozenset({IPv4Address("192.0.0.170"), IPv4Address("192.0.0.171")})
_LENGTHS = (96, 64, 56, 48, 40, 32)
"""The prefix lengths there are (RFC 6052 section 2.2)."""
_RESERVED = 8
"""The byte that must be zero and holds nothing of the IPv4 address (RFC 6052 section 2.2)."""

FindPrefixes: TypeAlias = Callable[[], Awaitable[tuple[IPv6Network, ...]]]
"""Asks the network for its prefixes; none if it translates nothing."""


def embed(address: IPv4Address, prefix: IPv6Network) -> IPv6Address:
    """The IPv6 address by which a network with this prefix reaches the IPv4 address.

    :raises ValueError: the prefix has a length that RFC 6052 does not know
    """
    octets = bytearray(prefix.network_address.packed)
    for position, octet in zip(_positions(prefix.prefixlen), address.packed, strict=True):
        octets[position] = octet
    return IPv6Address(bytes(octets))


def prefixes_in(addresses: Iterable[IPv6Address]) -> tuple[IPv6Network, ...]:
    """The prefixes that the IPv6 addresses of ``ipv4only.arpa`` tell, in order (RFC 7050 section 3)."""
    found: dict[IPv6Network, None] = {}
    for address in addresses:
        for length in _LENGTHS:
            embedded = IPv4Address(bytes(address.packed[position] for position in _positions(length)))
            if embedded in _KNOWN and (length == 96 or not address.packed[_RESERVED]):
                found.setdefault(IPv6Network((address.packed, length), strict=False))
                break
    return tuple(found)


def synthesized(info: AddrInfo, prefixes: Iterable[IPv6Network]) -> list[AddrInfo]:
    """The addresses by which an IPv4 address is dialled through a translator.

    :param info: the IPv4 address, as ``getaddrinfo()`` gives it
    """
    _, kind, proto, name, (host, port, *_) = info
    return [(socket.AF_INET6, kind, proto, name, (str(embed(IPv4Address(host), prefix)), port, 0, 0)) for prefix in prefixes]


def _positions(length: int) -> list[int]:
    """The bytes that hold the IPv4 address behind a prefix of this length."""
    if length not in _LENGTHS:
        raise ValueError(f"a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits, not {length}")
    first = length // 8
    return [position for position in range(first, first + 5) if position != _RESERVED][:4]
