"""Prefixes: finding the longest match, and recognising prefixes that together act as a default route."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Generic, TypeVar

from bindsock.model.network import ADDRESS_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bindsock.model.network import IPAddress, IPNetwork

V = TypeVar("V")

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_PRIVATE_IPV4 = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")))
_PRIVATE_IPV6 = tuple(map(IPv6Network, ("fc00::/7", "fe80::/10")))


class PrefixTable(Generic[V]):
    """Maps prefixes of one address family to values.

    There is one dictionary for each prefix length that occurs. A lookup probes each of them once, so its cost does not depend on
    the number of prefixes.
    """

    def __init__(self, version: int) -> None:
        self._bits = ADDRESS_BITS[version]
        self._lengths: dict[int, dict[int, list[V]]] = {}
        self._order: list[int] | None = None

    def add(self, prefix: IPNetwork, value: V) -> None:
        """Add a value. A prefix may have several."""
        length = prefix.prefixlen
        self._lengths.setdefault(length, {}).setdefault(int(prefix.network_address) >> (self._bits - length), []).append(value)
        self._order = None

    def matching(self, address: IPAddress) -> Iterator[list[V]]:
        """The values of each prefix that contains the address, longest prefix first."""
        if self._order is None:
            self._order = sorted(self._lengths, reverse=True)
        number = int(address)
        for length in self._order:
            values = self._lengths[length].get(number >> (self._bits - length))
            if values is not None:
                yield values


def is_default_in_disguise(prefixes: Iterable[IPNetwork], version: int) -> bool:
    """Whether the prefixes together cover at least half of all addresses, or half of the global unicast addresses of IPv6.

    With such routes VPNs take all traffic without replacing the default route: ``0/1`` and ``128/1``, ``1/8`` to ``128/1``,
    ``2000::/3``.
    """
    bits = ADDRESS_BITS[version]
    multicast, multicast_length = (0xE, 4) if version == 4 else (0xFF, 8)
    spans = []
    total = 0
    for prefix in prefixes:
        length = prefix.prefixlen
        start = int(prefix.network_address)
        if length >= multicast_length and start >> (bits - multicast_length) == multicast:
            continue
        size = 1 << (bits - length)
        spans.append((start, start + size))
        total += size
    low, high = 0, 1 << bits
    if version == 6:
        low = int(_GLOBAL_UNICAST.network_address)
        high = low + _GLOBAL_UNICAST.num_addresses
    # Overlaps make this sum too large. If even this is too small, there is no need to sort the prefixes.
    if 2 * total < high - low:
        return False
    whole = inside = reached = 0
    for start, end in sorted(spans):
        start = max(start, reached)
        if start < end:
            reached = end
            whole += end - start
            inside += max(0, min(end, high) - max(start, low))
    return 2 * whole >= 1 << bits or 2 * inside >= high - low


def specific_in(prefix: IPNetwork) -> str:
    """The prefix as text; a host address without its length."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def is_private(prefix: IPNetwork) -> bool:
    """Whether the prefix lies within the private or link-local addresses (RFC 1918, 6598, 3927, 4193, 4291)."""
    if isinstance(prefix, IPv4Network):
        return any(prefix.subnet_of(private) for private in _PRIVATE_IPV4)
    return any(prefix.subnet_of(private) for private in _PRIVATE_IPV6)
