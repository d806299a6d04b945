"""Routing messages: their pitfalls, and malformed bytes, which must do no harm."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsock.errors import KernelError
from bindsock.kernel.darwin import abi
from bindsock.kernel.darwin.interfaces import parse_links
from bindsock.kernel.darwin.messages import address_of, messages, name_of, prefix_length_of, sockaddr, sockaddrs
from bindsock.kernel.darwin.routes import parse_routes
from bindsock.model.network import RouteKind
from tests.darwin.golden import dump, golden, messages_of, states, transitions

EN0 = bytes.fromhex("1412030006030600656e308a665a011065000000")


def route(
    flags: int,
    *addresses: bytes,
    announced: int = abi.RTA_DST | abi.RTA_GATEWAY | abi.RTA_NETMASK,
    index: int = 3,
    kind: int = abi.RTM_GET2,
) -> bytes:
    """A message of a dump."""
    body = b"".join(part.ljust((len(part) + 3) & ~3 or 4, b"\0") for part in addresses)
    header = abi.rt_msghdr2(92 + len(body), abi.RTM_VERSION, kind, index, flags, announced)
    return bytes(header) + body


DEFAULT = sockaddr(ip_address("0.0.0.0"))
GATEWAY = sockaddr(ip_address("192.168.1.1"))
UP = abi.RTF_UP | abi.RTF_GATEWAY


def test_a_mask_of_length_0_is_that_of_a_default_route() -> None:
    (default,) = parse_routes(route(UP, DEFAULT, GATEWAY, b""))
    assert (default.destination, default.gateway, default.scoped) == (ip_network("0.0.0.0/0"), ip_address("192.168.1.1"), False)


def test_a_mask_of_length_0_need_not_even_be_there_if_it_is_the_last() -> None:
    whole = route(UP, DEFAULT, GATEWAY, b"")
    cut = (len(whole) - 4).to_bytes(2, "little") + whole[2:-4]
    assert parse_routes(cut) == parse_routes(whole)


@pytest.mark.parametrize(
    ("mask", "length"),
    [("05ffffffff000000", 8), ("06ffffffac100000", None), ("07ffffffffffff00", 24), ("08ffffffffffffff", 32), ("00000000", 0)],
)
def test_trimmed_masks(mask: str, length: int | None) -> None:
    raw = bytes.fromhex(mask)
    assert prefix_length_of(raw[: raw[0]], abi.AF_INET) == length


def test_trimmed_masks_of_ipv6() -> None:
    assert prefix_length_of(bytes.fromhex("09ffffffffffffff20")[:9], abi.AF_INET6) is None
    assert prefix_length_of(bytes.fromhex("09ffffffffffffffe0"), abi.AF_INET6) == 3
    assert prefix_length_of(bytes.fromhex("10ffffffffffffffffffffffffffffff"), abi.AF_INET6) == 64


def test_addresses_are_rounded_up_to_four_bytes_and_the_last_is_not() -> None:
    odd = bytes.fromhex("07ffffffffffff")
    body = DEFAULT + odd.ljust(8, b"\0") + EN0[:19]
    found = sockaddrs(body, 0, abi.RTA_DST | abi.RTA_NETMASK)
    assert found == {abi.RTA_DST: DEFAULT, abi.RTA_NETMASK: odd}
    assert sockaddrs(DEFAULT + odd, 0, abi.RTA_DST | abi.RTA_NETMASK)[abi.RTA_NETMASK] == odd


def test_recorded_broadcasts_of_odd_length_are_read_to_their_end() -> None:
    odd = [bytes.fromhex(m) for t in transitions() for s in t["steps"] for m in s["route"] if len(m) // 2 % 4 and len(m) > 184]
    assert odd
    for message in odd:
        header = abi.rt_msghdr.from_buffer_copy(message)
        found = sockaddrs(message, 92, header.rtm_addrs)
        assert sum(1 for bit in range(8) if header.rtm_addrs >> bit & 1) == len(found)


def test_scopes_embedded_in_addresses_are_taken_out() -> None:
    assert address_of(bytes.fromhex("1c1e000000000000fe80000300000000000000000000000103000000")) == ip_address("fe80::1")
    assert address_of(bytes.fromhex("1c1e000000000000ff02000300000000000000000000000100000000")) == ip_address("ff02::1")
    assert address_of(bytes.fromhex("1c1e000000000000ff05000300000000000000000000000100000000")) == ip_address("ff05:3::1")


def test_names_end_where_their_length_says() -> None:
    assert name_of(EN0) == "en0"
    assert name_of(b"") == name_of(DEFAULT) == ""


@pytest.mark.parametrize("flag", ["RTF_WASCLONED", "RTF_LLINFO", "RTF_CONDEMNED", "RTF_DEAD", "RTF_LOCAL", "RTF_MULTICAST"])
def test_what_does_not_tell_the_way_is_left_out(flag: str) -> None:
    host = route(UP | abi.RTF_HOST, GATEWAY, GATEWAY, announced=abi.RTA_DST | abi.RTA_GATEWAY)
    assert [str(r.destination) for r in parse_routes(host)] == ["192.168.1.1/32"]
    flags = UP | abi.RTF_HOST | getattr(abi, flag)
    assert parse_routes(route(flags, GATEWAY, GATEWAY, announced=abi.RTA_DST | abi.RTA_GATEWAY)) == []


def test_a_cloned_host_route_does_not_pin_its_peer() -> None:
    # The route to 9.9.9.9 that xnu keeps after a connection by en5 (RTF_WASCLONED), and en5's neighbour (RTF_LLINFO).
    peer = sockaddr(ip_address("9.9.9.9"))
    flags = abi.RTF_UP | abi.RTF_GATEWAY | abi.RTF_HOST | abi.RTF_WASCLONED | abi.RTF_IFSCOPE
    cloned = route(flags, peer, GATEWAY, announced=abi.RTA_DST | abi.RTA_GATEWAY, index=4)
    neighbour = route(abi.RTF_UP | abi.RTF_HOST | abi.RTF_LLINFO, peer, EN0, announced=abi.RTA_DST | abi.RTA_GATEWAY, index=4)
    default = route(UP, DEFAULT, GATEWAY, b"")
    assert parse_routes(cloned + neighbour + default) == parse_routes(default)


def test_routes_that_refuse_say_so() -> None:
    assert [r.kind for r in parse_routes(route(UP | abi.RTF_REJECT, DEFAULT, GATEWAY, b""))] == [RouteKind.UNREACHABLE]
    assert [r.kind for r in parse_routes(route(UP | abi.RTF_BLACKHOLE, DEFAULT, GATEWAY, b""))] == [RouteKind.BLACKHOLE]


def test_a_route_that_is_not_up_is_none() -> None:
    assert parse_routes(route(abi.RTF_GATEWAY, DEFAULT, GATEWAY, b"")) == []


def test_messages_of_another_version_and_type_are_passed_over() -> None:
    whole = route(UP, DEFAULT, GATEWAY, b"")
    other = whole[:2] + b"\x04" + whole[3:]
    assert parse_routes(other + route(UP, DEFAULT, GATEWAY, b"", kind=0x15) + whole) == parse_routes(whole)


@pytest.mark.parametrize(
    "damaged",
    [
        b"\0",
        b"\x01\0\x05",
        struct.pack("<HBB", 0, 5, 20),
        struct.pack("<HBB", 3, 5, 20) + bytes(4),
        struct.pack("<HBB", 200, 5, 20) + bytes(92),
        struct.pack("<HBB", 8, 5, 20) + bytes(4),
        route(UP, b"\x20" + DEFAULT[1:], announced=abi.RTA_DST),
    ],
)
def test_damaged_dumps_raise_the_one_typed_error(damaged: bytes) -> None:
    with pytest.raises(KernelError):
        parse_routes(damaged)


def test_a_dump_is_walked_to_its_end() -> None:
    for state in states():
        for operation in ("NET_RT_DUMP", "NET_RT_DUMP2", "NET_RT_IFLIST2"):
            whole = dump(state, operation)
            assert whole is not None
            assert len(list(messages(whole))) == len(state["sysctl"][operation]["0"])


RECORDED = [bytes.fromhex(m) for m in golden()["messages"]] + [bytes.fromhex(m) for m in messages_of(states()[-1])]
INJECTED = [bytes.fromhex(m) for case in golden()["edge_cases"]["rtm_get"] for m in case.get("other_listeners", ())]


@st.composite
def damaged_dumps(draw: st.DrawFn) -> bytes:
    """A sequence of recorded messages, with bytes changed, cut off, repeated or inserted."""
    dump = bytearray(b"".join(draw(st.lists(st.sampled_from(RECORDED + INJECTED), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 6))):
        position = draw(st.integers(0, len(dump) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                dump[position] = draw(st.integers(0, 255))
            case 1:
                del dump[position:]
            case 2:
                dump[position:position] = draw(st.binary(max_size=8))
            case 3:
                dump[position : position + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\0\x05\x14"]))
        if not dump:
            break
    return bytes(dump)


@settings(max_examples=200)
@given(damaged_dumps())
def test_no_dump_can_raise_anything_else(damaged: bytes) -> None:
    with contextlib.suppress(KernelError):
        parse_routes(damaged)
    with contextlib.suppress(KernelError):
        parse_links(damaged)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_can_raise_anything_else(junk: bytes) -> None:
    for parse in (parse_routes, parse_links):
        with contextlib.suppress(KernelError):
            parse(junk)


@settings(max_examples=200)
@given(st.binary(max_size=40), st.integers(0, 255), st.sampled_from([abi.AF_INET, abi.AF_INET6, None]))
def test_no_socket_address_can_raise(junk: bytes, announced: int, family: int | None) -> None:
    address_of(junk, family)
    name_of(junk)
    prefix_length_of(junk, abi.AF_INET)
    prefix_length_of(junk, abi.AF_INET6)
    with contextlib.suppress(KernelError):
        sockaddrs(junk, 0, announced)
