"""NAT64 addresses: the examples of RFC 6052 section 2.4, and the prefixes found by ipv4only.arpa."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindsock.dial.nat64 import embed, is_for_translator, prefixes_in, synthesized
from bindsock.dial.resolving import AddrInfo, numeric
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import network

EXAMPLES = [
    ("2001:db8::/32", "2001:db8:c000:221::"),
    ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
    ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
    ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
    ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
    ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
]


@pytest.mark.parametrize(("prefix", "address"), EXAMPLES)
def test_the_examples_of_the_rfc(prefix: str, address: str) -> None:
    assert embed(IPv4Address("192.0.2.33"), IPv6Network(prefix)) == IPv6Address(address)


def test_a_prefix_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32, 40, 48, 56, 64 or 96 bits, not 80"):
        embed(IPv4Address("192.0.2.33"), IPv6Network("2001:db8::/80"))


@given(st.integers(0, 2**128 - 1), st.sampled_from([96, 64, 56, 48, 40, 32]), st.sampled_from(["192.0.0.170", "192.0.0.171"]))
def test_a_prefix_is_found_in_the_address_that_was_made_with_it(number: int, length: int, known: str) -> None:
    prefix = IPv6Network((number, length), strict=False)
    found = prefixes_in([embed(IPv4Address(known), prefix)])
    # The well-known address may also occur in the prefix itself. Then the longer prefix is found first.
    assert found
    assert found[0] == prefix or found[0].subnet_of(prefix)


def test_an_address_without_the_known_ones_tells_nothing() -> None:
    assert prefixes_in([IPv6Address("2001:db8::1"), IPv6Address("64:ff9b::c000:221")]) == ()


def test_two_addresses_with_one_prefix_tell_it_once() -> None:
    addresses = [IPv6Address("64:ff9b::192.0.0.170"), IPv6Address("64:ff9b::192.0.0.171")]
    assert prefixes_in(addresses) == (IPv6Network("64:ff9b::/96"),)


def test_an_ipv4_address_becomes_one_for_each_prefix() -> None:
    info: AddrInfo = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.33", 443))
    prefixes = [IPv6Network("64:ff9b::/96"), IPv6Network("2001:db8::/32")]
    assert [i[4][:2] for i in synthesized([info], prefixes)] == [("64:ff9b::c000:221", 443), ("2001:db8:c000:221::", 443)]


SIX_ONLY = network("wifi0 wifi 2001:db8::5/64", "default6 via fe80::1 dev wifi0")
NOTHING = network("wifi0 wifi 2001:db8::5/64")


@pytest.mark.parametrize(
    ("host", "family", "expected"),
    [
        ("192.0.2.33", socket.AF_UNSPEC, True),
        ("10.0.0.1", socket.AF_UNSPEC, True),
        ("192.0.2.33", socket.AF_INET, False),
        ("2001:db8:1::1", socket.AF_UNSPEC, False),
        ("224.0.0.251", socket.AF_UNSPEC, False),
        ("255.255.255.255", socket.AF_UNSPEC, False),
        ("169.254.1.1", socket.AF_UNSPEC, False),
        ("0.0.0.0", socket.AF_UNSPEC, False),
    ],
)
def test_a_translator_is_for_unicast_literals_of_ipv4(host: str, family: int, expected: bool) -> None:
    info = numeric(host, 443, socket.AF_UNSPEC, socket.SOCK_STREAM, 0)
    assert info is not None
    assert is_for_translator(host, family, [info], Decider(SIX_ONLY, Preferences())) is expected
    assert not is_for_translator(host, family, [info], Decider(NOTHING, Preferences()))


def test_a_name_needs_no_translator() -> None:
    """The network's own name servers translate names (DNS64)."""
    info: AddrInfo = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.33", 443))
    assert not is_for_translator("example.com", socket.AF_UNSPEC, [info], Decider(SIX_ONLY, Preferences()))
