"""NAT64: how an IPv4 literal is dialled on a network that has IPv6 alone.

Such a network translates IPv6 addresses that embed an IPv4 address (RFC 6052). Its name servers tell the prefix when they are
asked for the IPv6 addresses of ``ipv4only.arpa``, which has two known IPv4 addresses and no others (RFC 7050). Names need
none of this: those name servers answer them with embedded addresses (DNS64).
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


def is_for_translator(host: str | None, family: int, infos: Iterable[AddrInfo], decider: Decider) -> bool:
    """Whether a translator alone can reach the host: it is the literal of an IPv4 unicast address, and there is IPv6 alone.

    :param family: the one that was asked for; who asks for IPv4 does not get IPv6
    :param infos: the addresses of the host, none of which has an interface
    """
    return (
        family == socket.AF_UNSPEC
        and _is_unicast_ipv4(host)
        and all(info[0] == socket.AF_INET for info in infos)
        and decider.decide(socket.AF_INET6).interface is not None
    )


def synthesized(infos: Iterable[AddrInfo], prefixes: Sequence[IPv6Network]) -> list[AddrInfo]:
    """The addresses by which IPv4 addresses are reached through a translator.

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
    """The addresses by which a network without IPv4 reaches an IPv4 literal; none if it does not, or the host is none.

    :param find: ``None`` if nobody can be asked
    """
    if find is None or not is_for_translator(host, family, infos, decider):
        return []
    try:
        return synthesized(infos, await find())
    except OSError as error:
        log_unknown(host, error)
        return []


def log_unknown(host: str | None, error: OSError) -> None:
    """Say why an IPv4 literal is not dialled by a translator."""
    _logger.info("%s cannot be reached by IPv4, and the network's NAT64 prefix is not known: %s", host, error)


def _is_unicast_ipv4(host: str | None) -> bool:
    """Whether the host is an IPv4 literal that a router may forward to."""
    try:
        address = IPv4Address(host or "")
    except ValueError:
        return False
    return not (address.is_multicast or address.is_reserved or address.is_link_local or address.is_unspecified)


def _positions(length: int) -> list[int]:
    """The bytes that hold the IPv4 address behind a prefix of this length."""
    if length not in _LENGTHS:
        raise ValueError(f"a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits, not {length}")
    first = length // 8
    return [position for position in range(first, first + 5) if position != _RESERVED][:4]
