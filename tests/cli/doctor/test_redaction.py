from __future__ import annotations

import ipaddress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bindsock.cli.doctor.redaction import Redaction

MEANT_FOR_ALL = [ipaddress.ip_network(n) for n in ("0.0.0.0", "127.0.0.0/8", "255.255.255.255", "::/127", "192.0.0.0/29")]
STANDS_FOR_MANY = {"128.0.0.0", "2000::", "3000::", "4000::", "8000::", "c000::", "fc00::", "fe80::"}
INSTEAD = [
    ipaddress.ip_network(n)
    for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32", "fe80::/64")
]


def test_an_address_is_always_replaced_by_the_same_one() -> None:
    redaction = Redaction()
    said = redaction.document({"a": "10.1.0.2/24 via 10.1.0.1", "b": ["10.1.0.1", 7, None, True]})
    assert said == {"a": "192.0.2.1/24 via 192.0.2.2", "b": ["192.0.2.2", 7, None, True]}


def test_two_ways_to_write_an_address_are_one() -> None:
    assert Redaction().text("FD10:1::0:2 fd10:1:0::2") == "2001:db8::1 2001:db8::1"


def test_a_link_local_address_stays_one() -> None:
    assert Redaction().text("via fe80::5054:ff:fe12:3456%eth0") == "via fe80::1%eth0"


@pytest.mark.parametrize(
    "kept",
    [
        "0.0.0.0/1 and 128.0.0.0/1",
        "127.0.0.53",
        "::/3, 2000::/4 and fc00::/7",
        "Linux 6.18.44",
        "12:30:01",
        "rule `32765: not from all fwmark 0xca6c lookup 51820`",
        "ip addrtype: OUTPUT",
        "1.2.3.4.5",
        "sysctl net.ipv4.conf.all.rp_filter=2",
    ],
)
def test_what_is_no_address_of_somebody_is_kept(kept: str) -> None:
    assert Redaction().text(kept) == kept


def test_a_name_is_replaced_wherever_it_stands() -> None:
    redaction = Redaction(["git.example.com", "git"])
    assert redaction.text("git.example.com: no address for Git.Example.Com.") == "host.example: no address for host.example."
    assert redaction.text("legit digit") == "legit digit"


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=30))
def test_no_address_is_left(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    redacted = Redaction().text("; ".join(f"[{a}]" for a in addresses)).split("; ") if addresses else []
    seen: dict[str, str] = {}
    for address, instead in zip(addresses, redacted, strict=True):
        new = ipaddress.ip_address(instead.strip("[]"))
        assert seen.setdefault(str(address), str(new)) == str(new)
        if str(address) in STANDS_FOR_MANY or any(address in network for network in MEANT_FOR_ALL):
            assert new == address
        else:
            assert any(new in network for network in INSTEAD)


def test_more_addresses_than_are_reserved_stay_apart() -> None:
    addresses = [str(ipaddress.ip_address(int(ipaddress.ip_address("10.0.0.0")) + n)) for n in range(2000)]
    redacted = Redaction().text(" ".join(addresses)).split()
    assert len(set(redacted)) == 2000
