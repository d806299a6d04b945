"""Netlink without a kernel: recorded messages, damaged messages, and a channel with faulty answers."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink, route_hint, statistics
from bindsock.kernel.linux.rtnetlink import devices, events, links, routes, rules
from bindsock.kernel.linux.rtnetlink import rp_filter as netconf
from bindsock.kernel.linux.rtnetlink.lookups import AnswerCache
from bindsock.kernel.linux.rtnetlink.policy import parse_policy_rule
from bindsock.kernel.linux.rtnetlink.reader import Reader
from bindsock.model.network import Answers, Interface, InterfaceAddress, InterfaceKind, Lookup, Network, Route, RouteKind
from bindsock.model.tables import tabulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the messages were recorded on a little-endian machine")

V4, V6 = socket.AF_INET, socket.AF_INET6
RECORDED: dict[str, list[bytes]] = {
    name: [bytes.fromhex(datagram) for datagram in datagrams]
    for name, datagrams in json.loads((Path(__file__).parent / "recorded" / "linux-6.18.json").read_text("ascii")).items()
}


def payloads(name: str) -> list[bytes]:
    """The entries of a recorded dump, or a single recorded answer."""
    found = [message for datagram in RECORDED[name] for message in netlink.messages(datagram)]
    return [message.payload for message in found if message.kind not in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR)]


def test_recorded_links_are_understood() -> None:
    found = {link.name: link for payload in payloads("links") if (link := links.parse_link(payload))}
    kinds = {n: (link.kind, link.hardware, links.classify(link, wireless=False, modem=False)[0]) for n, link in found.items()}
    assert kinds == {
        "lo": ("", 772, InterfaceKind.LOOPBACK),
        "wifi0": ("veth", 1, InterfaceKind.OTHER),
        "eth0": ("veth", 1, InterfaceKind.OTHER),
        "tun0": ("tun", 65534, InterfaceKind.TUNNEL),
        "tap0": ("tun", 1, InterfaceKind.TUNNEL),
        "br0": ("bridge", 1, InterfaceKind.BRIDGE),
        "mv0": ("macvlan", 1, InterfaceKind.OTHER),
        "vx0": ("vxlan", 1, InterfaceKind.OTHER),
    }
    assert found["mv0"].lower == found["eth0"].index
    assert found["eth0"].lower is None, "its other end is in another namespace, where the index means something else"
    assert (found["eth0"].up, found["eth0"].running, found["br0"].up, found["br0"].running) == (True, True, False, False)


def test_recorded_routes_are_understood() -> None:
    found = [
        (str(route.destination), str(route.gateway), route.metric, route.table, route.kind)
        for name in ("IPv4 routes", "IPv6 routes")
        for payload in payloads(name)
        if (parsed := routes.parse_route(payload))
        for route in parsed.routes
    ]
    assert ("0.0.0.0/0", "10.1.0.1", 600, 254, RouteKind.UNICAST) in found
    assert ("10.77.0.0/16", "10.2.0.1", 0, 254, RouteKind.UNICAST) in found
    assert ("10.78.0.0/16", "fe80::1:1", 7, 100000, RouteKind.UNICAST) in found
    assert ("10.79.0.0/16", "None", 0, 254, RouteKind.BLACKHOLE) in found
    assert ("2001:db8:1::/48", "None", 1024, 254, RouteKind.UNREACHABLE) in found
    assert not any(destination.startswith(("127.", "ff00", "::1/")) for destination, *_ in found)


def test_recorded_nexthops_are_understood() -> None:
    found = routes.parse_nexthops(payloads("nexthops"))
    assert {number: [str(hop.gateway) for hop in hops] for number, hops in found.items()} == {
        1: ["10.1.0.1"],
        2: ["10.2.0.1"],
        3: ["10.1.0.1", "10.2.0.1"],
        4: ["fd10:1::1"],
    }


def read_all(datagram: bytes) -> None:
    for message in netlink.messages(datagram):
        for parse in PARSERS:
            try_to(parse, message.payload)


def try_to(parse: Callable[[bytes], object], data: bytes) -> None:
    """Parse data. It may raise KernelError, which is an OSError, and no other error."""
    with contextlib.suppress(KernelError):
        parse(data)


PARSERS: list[Callable[[bytes], object]] = [
    netlink.attributes,
    netlink.messages,
    netlink.refusal,
    netlink.u32,
    netlink.i32,
    netlink.text,
    links.parse_link.__wrapped__,
    links.parse_address.__wrapped__,
    routes.parse_route,
    routes.parse_answer.__wrapped__,
    lambda payload: routes.parse_nexthops([payload]),
    netconf.parse_rp_filter,
    lambda datagram: pending_events().take(datagram),
    parse_policy_rule,
    rules.parse_rule.__wrapped__,
]
EVERY_DATAGRAM = [datagram for datagrams in RECORDED.values() for datagram in datagrams]
EVERY_PAYLOAD = [message.payload for datagram in EVERY_DATAGRAM for message in netlink.messages(datagram)]


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A real message, cut, overwritten, or joined to another."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.integers(0, 4)):
            case 0:
                del data[draw(st.integers(0, len(data))) :]
            case 1 if data:
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
            case 2 if len(data) >= 2:
                # A length or a type: they are 16 bits wide and on even offsets.
                at = draw(st.integers(0, len(data) // 2 - 1)) * 2
                data[at : at + 2] = draw(st.sampled_from([0, 1, 3, 4, 5, 7, 8, 12, 0x7FFF, 0x8000, 0xFFFF])).to_bytes(2, "little")
            case 3:
                other = draw(st.sampled_from(originals))
                at = draw(st.integers(0, len(data)))
                data[at:at] = other[draw(st.integers(0, len(other))) :]
            case _:
                data += draw(st.binary(max_size=9))
    return bytes(data)


@settings(max_examples=600)
@given(damaged(EVERY_PAYLOAD))
def test_a_damaged_payload_raises_kernel_error_alone(payload: bytes) -> None:
    for parse in PARSERS:
        try_to(parse, payload)


@settings(max_examples=500)
@given(damaged(EVERY_DATAGRAM))
def test_a_damaged_datagram_raises_kernel_error_alone(datagram: bytes) -> None:
    try_to(read_all, datagram)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_raises_kernel_error_alone(data: bytes) -> None:
    for parse in PARSERS:
        try_to(parse, data)


def test_a_message_cut_at_any_byte_is_refused() -> None:
    (datagram,) = RECORDED["IPv4 route"]
    assert len(netlink.messages(datagram)) == 1
    for end in range(1, len(datagram)):
        with pytest.raises(KernelError):
            netlink.messages(datagram[:end])


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("=BBBBBBBBI", V4, 33, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(1, bytes(4)),
        struct.pack("=BBBBBBBBI", V4, 24, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(1, bytes(3)),
        struct.pack("=BBBBBBBBI", V4, 24, 0, 0, 254, 3, 0, 1, 0),
        struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(4, bytes(2)),
        struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute_u32(4, 1) + netlink.attribute(5, bytes(16)),
        struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(9, struct.pack("=HBBi", 0, 0, 0, 1)),
        struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute_u32(4, 1) + netlink.attribute(18, b"\0"),
    ],
    ids=["prefix too long", "address too short", "no address", "short index", "wrong gateway", "hop of no length", "short via"],
)
def test_a_route_that_contradicts_itself_is_refused(payload: bytes) -> None:
    with pytest.raises(KernelError):
        routes.parse_route(payload)


@pytest.mark.parametrize("length", [0, 1, 3, 9, 0xFFFF])
def test_an_attribute_whose_length_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(KernelError):
        netlink.attributes(struct.pack("=HHI", length, 1, 7))


def test_attributes_go_by_type_without_its_flags() -> None:
    data = netlink.attribute(0x8001, b"abc") + netlink.attribute(0x4002, b"") + netlink.attribute_u32(3, 7)
    assert netlink.attributes(data) == {1: b"abc", 2: b"", 3: b"\7\0\0\0"}


def test_a_name_that_is_no_text_survives() -> None:
    assert netlink.text(b"caf\xe9\0rest") == "caf\udce9"


PLAIN = links.Link(
    index=2,
    name="eth0",
    hardware=1,
    flags=0x11043,
    mtu=1500,
    operstate=6,
    kind="",
    parent=True,
    lower=None,
    address=b"\2\0\0\0\0\1",
)


def link(**changes: Any) -> links.Link:
    return replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, InterfaceKind.WIRED),
        ({"parent": False}, InterfaceKind.WIRED),  # before Linux 5.14 the kernel does not send the parent
        ({"kind": "wireguard", "hardware": 65534, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "amneziawg", "hardware": 65534, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "a tunnel of next year", "hardware": 65534, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "", "hardware": 65534, "parent": True}, InterfaceKind.CELLULAR),
        ({"kind": "wwan", "hardware": 65534, "parent": True}, InterfaceKind.CELLULAR),
        ({"kind": "rmnet", "hardware": 519, "parent": False}, InterfaceKind.CELLULAR),
        ({"hardware": 519, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "ovpn", "hardware": 65534, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "ipip", "hardware": 768, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "", "hardware": 776, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "gretap", "hardware": 1, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "xfrm", "hardware": 65534, "parent": False}, InterfaceKind.TUNNEL),
        ({"kind": "bond", "parent": False}, InterfaceKind.OTHER),
        ({"kind": "vlan", "parent": False}, InterfaceKind.OTHER),
        ({"kind": "ipvlan", "parent": False}, InterfaceKind.OTHER),
        ({"hardware": 32}, InterfaceKind.OTHER),  # InfiniBand
        ({"flags": 0x49, "hardware": 772, "parent": False}, InterfaceKind.LOOPBACK),
    ],
)
def test_tunnel_or_not_is_told_by_kind_and_hardware_type(changes: dict[str, Any], expected: InterfaceKind) -> None:
    assert links.classify(link(**changes), wireless=False, modem=False) == (expected, False)


@pytest.mark.parametrize("changes", [{"kind": "ppp", "hardware": 512}, {"kind": "", "hardware": 512}])
def test_ppp_is_an_uplink_of_last_resort_and_no_tunnel(changes: dict[str, Any]) -> None:
    assert links.classify(link(parent=False, **changes), wireless=False, modem=False) == (InterfaceKind.OTHER, True)


def test_radios_are_what_they_are_known_to_be() -> None:
    assert links.classify(link(), wireless=True, modem=False)[0] is InterfaceKind.WIFI
    assert links.classify(link(), wireless=False, modem=True)[0] is InterfaceKind.CELLULAR


UP, RUNNING, CARRIER = 0x1, 0x40, 0x10000


@pytest.mark.parametrize(
    ("flags", "operstate", "running", "dormant"),
    [
        (UP | RUNNING | CARRIER, 6, True, False),
        (UP | RUNNING | CARRIER, 0, True, False),
        (UP | CARRIER, 5, True, True),  # dormant
        (UP | CARRIER, 4, True, True),  # testing
        (UP | RUNNING | CARRIER, 2, True, True),  # a driver that reports "down" but carries packets
        (UP, 2, False, False),
        (UP, 3, False, False),
    ],
)
def test_carrier_is_what_counts_and_the_operational_state_makes_it_dormant(
    flags: int, operstate: int, running: bool, dormant: bool
) -> None:
    made = link(flags=flags, operstate=operstate)
    assert (made.running, made.dormant) == (running, dormant)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    device = tmp_path / "eth0"
    device.mkdir()
    (device / "ifindex").write_text("2\n")
    (device / "address").write_text("02:00:00:00:00:01\n")
    (device / "uevent").write_text("DEVTYPE=wlan\nINTERFACE=eth0\nIFINDEX=2\n")
    return tmp_path


@pytest.fixture
def descriptor() -> Iterable[int]:
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        yield sock.fileno()


def test_wifi_is_told_by_sysfs_if_it_means_the_same_device(sysfs: Path, descriptor: int) -> None:
    assert devices.radio(link(), descriptor, sysfs) == (True, False)
    assert devices.radio(link(index=3), descriptor, sysfs) == (False, False)
    assert devices.radio(link(address=b"\2\0\0\0\0\2"), descriptor, sysfs) == (False, False)


def test_a_modem_is_told_by_sysfs_or_else_by_its_name(sysfs: Path, descriptor: int) -> None:
    (sysfs / "eth0" / "uevent").write_text("DEVTYPE=wwan\n")
    assert devices.radio(link(), descriptor, sysfs) == (False, True)
    assert devices.radio(link(name="wwan0"), descriptor, sysfs) == (False, True)
    assert devices.radio(link(name="wwan0", parent=False), descriptor, sysfs) == (False, False)


def test_a_virtual_device_is_no_radio_whatever_its_name(sysfs: Path, descriptor: int) -> None:
    assert devices.radio(link(kind="veth"), descriptor, sysfs) == (False, False)


@pytest.mark.parametrize(
    ("family", "flags", "expected"),
    [
        (V6, 0x80, (False, False, False)),
        (V6, 0x40, (True, False, False)),
        (V6, 0x44, (False, False, False)),  # optimistic: in use although tentative
        (V6, 0x08 | 0x80, (True, False, False)),
        (V6, 0x20, (False, True, False)),
        (V6, 0x301, (False, False, True)),
        (V4, 0x01, (False, False, False)),  # secondary
    ],
)
def test_address_flags(family: int, flags: int, expected: tuple[bool, bool, bool]) -> None:
    packed = bytes([10, 0, 0, 1]) if family == V4 else bytes([0xFD, *bytes(14), 1])
    payload = (
        struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, 7) + netlink.attribute(1, packed) + netlink.attribute_u32(8, flags)
    )
    parsed = links.parse_address(payload)
    assert parsed is not None
    index, address = parsed
    assert index == 7
    assert (address.tentative, address.deprecated, address.temporary) == expected


def route_event(
    *,
    kind: int = 24,
    table: int = 254,
    type_: int = 1,
    flags: int = 0,
    length: int = 0,
    to: str | None = "10.77.0.0",
    out: int | None = 2,
) -> bytes:
    body = struct.pack("=BBBBBBBBI", V4, length, 0, 0, table, 3, 0, type_, flags)
    if length and to is not None:
        body += netlink.attribute(1, ipaddress.ip_address(to).packed)
    if out is not None:
        body += netlink.attribute_u32(4, out)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (route_event(), "partial"),
        (route_event(kind=25), "partial"),
        (route_event(length=16), "none"),
        (route_event(length=17), "none"),
        (route_event(length=8, to="192.0.0.0"), "none"),
        (route_event(length=8, to="193.0.0.0"), "partial"),  # contains the address that finds the default routes
        (route_event(length=24, to="198.51.100.0"), "partial"),  # contains a followed destination
        (route_event(kind=25, length=24, to="198.51.100.0"), "partial"),
        (route_event(kind=25, length=24, to="198.51.101.0"), "none"),
        (route_event(length=24, to=None), "partial"),  # damaged
        (route_event(kind=32, length=24), "partial"),  # RTM_NEWRULE: the bytes mean something else
        (route_event(table=252), "partial"),
        (route_event(type_=7), "partial"),
        (route_event(type_=2, table=255), "none"),
        (route_event(type_=3, table=255), "none"),
        (route_event(type_=4), "none"),
        (route_event(type_=5), "none"),
        (route_event(kind=25, flags=0x200), "none"),
        (route_event(kind=16, type_=5), "partial"),  # RTM_NEWLINK, likewise
        (route_event(type_=2) + route_event(), "partial"),
        (b"\1\2\3", "partial"),
        (b"", "partial"),
    ],
)
def test_only_routes_that_lead_elsewhere_matter(datagram: bytes, expected: str) -> None:
    assert pending_events().take(datagram) == expected


def link_event(index: int, *, kind: int = 16, flags: int = 0, family: int = 0) -> bytes:
    return struct.pack("=IHHII", 32, kind, 0, 0, 0) + struct.pack("=BxHiII", family, 1, index, flags, 1)


def address_event(index: int, kind: int) -> bytes:
    return struct.pack("=IHHII", 28, kind, 0, 0, 0) + struct.pack("=BBBBI", V6, 64, 0, 0, index) + bytes(4)


GONE = link_event(2)


@pytest.mark.parametrize(
    ("datagrams", "expected"),
    [
        ([GONE], (False, False, {2})),
        ([GONE, link_event(3)], (False, False, {2, 3})),
        ([link_event(2, flags=1)], (True, False, set())),
        ([GONE, link_event(2, flags=1)], (True, False, {2})),
        ([link_event(2, kind=17)], (True, False, set())),  # RTM_DELLINK
        ([link_event(2, family=7)], (True, False, set())),  # AF_BRIDGE: a port's own
        ([GONE, address_event(2, 21)], (False, False, {2})),
        ([GONE, address_event(2, 20)], (True, False, {2})),
        ([GONE, address_event(3, 21)], (True, False, {2})),
        ([address_event(2, 21), GONE], (True, False, {2})),
        ([GONE, route_event(kind=25)], (False, False, {2})),
        ([GONE, route_event(kind=24)], (False, True, {2})),
        ([route_event(kind=25), GONE], (False, True, {2})),
        ([GONE, route_event(kind=25, out=3)], (False, True, {2})),
        ([GONE, route_event(kind=25, out=None)], (False, True, {2})),
        ([GONE, route_event(kind=25)[:-8] + b"\1\0\4\0\2\0\0\0"], (False, True, {2})),  # damaged
        ([GONE, route_event(kind=33)], (False, True, {2})),
        ([GONE + GONE], (True, False, set())),
    ],
)
def test_an_interface_that_goes_down_is_told_from_all_else(datagrams: list[bytes], expected: tuple[bool, bool, set[int]]) -> None:
    pending = pending_events()
    assert (pending.interfaces, pending.defaults) == (True, {V4, V6})
    pending.clear()
    for datagram in datagrams:
        assert pending.take(datagram) == "partial"
    assert (pending.interfaces or pending.lost, bool(pending.defaults), pending.down) == expected
    pending.clear()
    assert (pending.interfaces, pending.lost, pending.defaults, pending.down) == (False, False, set(), set())


CONCERNED = ipaddress.ip_address("198.51.100.7")


def test_the_drops_and_errors_of_a_device_are_added() -> None:
    head = struct.pack("=BxxxII", 0, 7, 1)
    assert statistics.parse_dropped(head + netlink.attribute(1, struct.pack("=25Q", *range(25)))) == 5 + 7
    for damaged in (b"", head[:-1], head, head + netlink.attribute(1, bytes(63)), head + netlink.attribute(2, bytes(200))):
        with pytest.raises(KernelError):
            statistics.parse_dropped(damaged)


def pending_events() -> events.PendingEvents:
    """The pending events, with one followed destination."""
    asked = AnswerCache(lambda destination: Answers(), lambda: True)
    asked(CONCERNED)
    return events.PendingEvents(asked.concerns)


def test_a_route_makes_only_those_answers_old_that_lie_in_it() -> None:
    pending = pending_events()
    pending.clear()
    pending.take(route_event(length=24, to="198.51.100.0"))
    assert pending.may_change(CONCERNED)
    assert not pending.may_change(ipaddress.ip_address("198.51.101.7"))
    assert not pending.may_change(ipaddress.ip_address("::c633:6407"))
    assert not pending.anything


def test_the_events_of_several_sources_are_taken_together() -> None:
    one, other = pending_events(), pending_events()
    assert not events.PendingEvents.of_all([]).anything
    assert events.PendingEvents.of_all([one, other]).anything  # nothing has been read yet
    one.clear()
    other.clear()
    other.take(route_event(length=24, to="198.51.100.0"))
    both = events.PendingEvents.of_all([one, other])
    assert both.may_change(CONCERNED)
    assert not both.anything
    assert not one.may_change(CONCERNED)
    one.down.add(7)
    assert events.PendingEvents.of_all([one, other]).down == {7}


def test_a_flood_makes_everything_old() -> None:
    pending = events.PendingEvents(lambda version, length, head: True)
    pending.clear()
    for number in range(1000):
        pending.take(route_event(length=24, to=f"10.{number // 256}.{number % 256}.0"))
    assert pending.anything
    assert len(pending.prefixes) < 300


def test_answers_are_forgotten_in_time_and_then_everything_concerns_somebody() -> None:
    asked = AnswerCache(lambda destination: Answers(), lambda: True)
    assert not asked.concerns(4, 8, 77)
    for number in range(5000):
        asked(ipaddress.IPv4Address(0x0A000000 + number))
    assert len(asked.known) <= 4096
    assert asked.concerns(4, 8, 77)


def test_nothing_is_kept_while_no_event_would_make_it_old() -> None:
    asked = AnswerCache(lambda destination: Answers(), lambda: False)
    asked(CONCERNED)
    assert asked.known == {}


PORT = 4711
GETROUTE = 26
ENTRY = struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, 1, 0)


class ScriptedSocket:
    """A fake netlink socket. For each question, a function makes the answer from the question's sequence number."""

    def __init__(self, *answers: Callable[[int], Iterable[Any]], port: int = PORT) -> None:
        self.answers = list(answers)
        self.waiting: list[Any] = []
        self.port = port
        self.sent: list[netlink.Message] = []
        self.closed = 0
        self.sizes: list[int] = []

    def open(self) -> ScriptedSocket:
        self.waiting.clear()
        return self

    def send(self, data: bytes, /) -> int:
        (message,) = netlink.messages(data)
        self.sent.append(message)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.waiting.extend(answer(message.sequence))
        return len(data)

    def recvmsg(self, bufsize: int, /) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[int, int]]:
        self.sizes.append(bufsize)
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "again")
        item = self.waiting.pop(0)
        if isinstance(item, OSError):
            raise item
        data, flags, sender = item if isinstance(item, tuple) else (item, 0, 0)
        return data, [], flags, (sender, 0)

    def getsockname(self) -> tuple[int, int]:
        return self.port, 0

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed += 1


def message(sequence: int, payload: bytes = ENTRY, *, kind: int = 24, flags: int = 2, port: int = PORT) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, port) + payload


def done(sequence: int, code: int = 0, flags: int = 2) -> bytes:
    return message(sequence, struct.pack("=i", -code), kind=3, flags=flags)


def refused(sequence: int, code: int) -> bytes:
    return message(sequence, struct.pack("=i", -code) + bytes(16), kind=2, flags=0)


def good(sequence: int) -> list[bytes]:
    return [message(sequence) + message(sequence), message(sequence) + done(sequence)]


def test_a_dump_is_the_entries_of_all_its_datagrams() -> None:
    script = ScriptedSocket(good)
    assert netlink.Channel(script.open).dump(GETROUTE, b"body") == [ENTRY] * 3
    assert script.sent[0][:2] == (GETROUTE, 0x301)
    assert script.sent[0].payload == b"body"


def test_an_order_is_acknowledged_or_refused_with_the_kernels_errno() -> None:
    script = ScriptedSocket(lambda n: [refused(n, 0)], lambda n: [refused(n, errno.EPERM)], lambda n: [message(n), refused(n, 0)])
    channel = netlink.Channel(script.open)
    channel.tell(GETROUTE, b"body")
    assert script.sent[0][:2] == (GETROUTE, 0x5)
    with pytest.raises(PermissionError):
        channel.tell(GETROUTE, b"")
    channel.tell(GETROUTE, b"")
    assert script.closed == 0


def test_attributes_in_an_attribute_are_marked_as_such() -> None:
    packed = netlink.nested(7, netlink.attribute_u32(1, 5), netlink.attribute(2, b"x"))
    assert packed[:4] == struct.pack("=HH", 20, 7 | 0x8000)
    assert netlink.attributes(netlink.attributes(packed)[7]) == {1: struct.pack("=I", 5), 2: b"x"}


def test_questions_have_numbers_of_their_own_over_one_socket() -> None:
    script = ScriptedSocket(good)
    channel = netlink.Channel(script.open)
    channel.dump(GETROUTE, b"")
    channel.dump(GETROUTE, b"")
    assert script.sent[0].sequence != script.sent[1].sequence
    assert script.closed == 0


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda n: [message(n, flags=0x12), done(n)],
        lambda n: [message(n), done(n, flags=0x12)],
        lambda n: [message(n), OSError(errno.ENOBUFS, "no buffer")],
        lambda n: [message(n), done(n, errno.EAGAIN)],
        lambda n: [(message(n)[:20], socket.MSG_TRUNC, 0)],
    ],
    ids=["interrupted", "interrupted at the end", "overrun", "to be repeated", "truncated"],
)
def test_an_incomplete_dump_is_read_again(spoiled: Callable[[int], list[Any]]) -> None:
    script = ScriptedSocket(spoiled, good)
    assert netlink.Channel(script.open).dump(GETROUTE, b"") == [ENTRY] * 3
    assert len(script.sent) == 2


def test_a_truncated_answer_is_asked_for_with_a_larger_buffer() -> None:
    script = ScriptedSocket(lambda n: [(message(n), socket.MSG_TRUNC, 0)], good)
    netlink.Channel(script.open).dump(GETROUTE, b"")
    assert script.sizes[1] > script.sizes[0]


@pytest.mark.parametrize(
    "spoiled",
    [lambda n: [message(n, flags=0x12), done(n)], lambda n: [(b"", socket.MSG_TRUNC, 0)]],
    ids=["interrupted", "truncated"],
)
def test_a_table_that_never_stands_still_is_an_error_in_the_end(spoiled: Callable[[int], list[Any]]) -> None:
    script = ScriptedSocket(spoiled)
    with pytest.raises(KernelError, match="netlink"):
        netlink.Channel(script.open).dump(GETROUTE, b"")
    assert 2 <= len(script.sent) <= 10


def test_what_does_not_come_from_the_kernel_is_dropped() -> None:
    forged = (message(0, b"forged" + bytes(10)), 0, 999)

    def answer(sequence: int) -> list[Any]:
        return [(message(sequence, b"forged"), 0, 999), forged, *good(sequence)]

    assert netlink.Channel(ScriptedSocket(answer).open).dump(GETROUTE, b"") == [ENTRY] * 3


def test_answers_to_other_questions_and_other_sockets_are_dropped() -> None:
    def answer(sequence: int) -> list[bytes]:
        return [message(sequence - 1), message(sequence, port=PORT + 1), done(sequence - 1), *good(sequence)]

    assert netlink.Channel(ScriptedSocket(answer).open).dump(GETROUTE, b"") == [ENTRY] * 3


def test_a_refusal_is_an_oserror_and_the_socket_stays() -> None:
    script = ScriptedSocket(lambda n: [refused(n, errno.ENETUNREACH)], lambda n: [message(n)])
    channel = netlink.Channel(script.open)
    with pytest.raises(OSError, match="unreachable") as failed:
        channel.ask(GETROUTE, b"")
    assert failed.value.errno == errno.ENETUNREACH
    assert not isinstance(failed.value, KernelError)
    assert channel.ask(GETROUTE, b"").payload == ENTRY
    assert script.closed == 0


def test_the_error_at_the_end_of_a_dump_is_raised() -> None:
    with pytest.raises(OSError, match="Operation not supported"):
        netlink.Channel(ScriptedSocket(lambda n: [done(n, errno.EOPNOTSUPP)]).open).dump(GETROUTE, b"")


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda n: [b"\1\2\3"],
        lambda n: [message(n)[:-1]],
        lambda n: [message(n, b"\1", kind=2)],
        lambda n: [message(n, struct.pack("=i", 7), kind=2)],
        lambda n: [message(n, struct.pack("=i", 0), kind=2)],
        lambda n: [],
        lambda n: [b""] * 5000,
        lambda n: [message(n + 1)] * 5000,
        lambda n: [(message(n), 0, 999)] * 5000,
    ],
    ids=["noise", "cut", "short error", "positive error", "acknowledged", "silence", "empty", "strangers' numbers", "strangers"],
)
def test_nonsense_is_a_kernel_error_and_the_next_question_starts_anew(nonsense: Callable[[int], list[Any]]) -> None:
    script = ScriptedSocket(nonsense, lambda n: [message(n)])
    channel = netlink.Channel(script.open)
    with pytest.raises(KernelError):
        channel.ask(GETROUTE, b"")
    assert script.closed == 1
    assert channel.ask(GETROUTE, b"").payload == ENTRY


@pytest.mark.parametrize(("type_", "expected"), [(1, True), (2, True), (5, True), (6, False), (7, False), (8, False)])
def test_an_answer_that_names_a_discarding_route_is_no_route(type_: int, expected: bool) -> None:
    answer = struct.pack("=BBBBBBBBI", V4, 0, 0, 0, 254, 3, 0, type_, 0) + netlink.attribute_u32(4, 3)
    script = ScriptedSocket(lambda n: [message(n, answer)])
    reader = Reader(netlink.Channel(script.open))
    assert reader.has_route(Interface("eth0", 3), ipaddress.ip_address("192.0.2.1")) is expected


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV])
def test_a_refusal_that_means_no_route_is_no_error(code: int) -> None:
    reader = Reader(netlink.Channel(ScriptedSocket(lambda n: [refused(n, code)]).open))
    assert not reader.has_route(Interface("eth0", 3), ipaddress.ip_address("192.0.2.1"))


def test_any_other_refusal_is_an_error() -> None:
    reader = Reader(netlink.Channel(ScriptedSocket(lambda n: [refused(n, errno.EPERM)]).open))
    with pytest.raises(PermissionError):
        reader.has_route(Interface("eth0", 3), ipaddress.ip_address("192.0.2.1"))


def test_a_channel_that_is_forgotten_closes_its_socket() -> None:
    script = ScriptedSocket(good)
    channel = netlink.Channel(script.open)
    channel.dump(GETROUTE, b"")
    del channel
    assert script.closed == 1


@settings(max_examples=300)
@given(damaged([b"".join(good(1)), refused(1, errno.ENODEV), *EVERY_DATAGRAM]))
def test_whatever_the_kernel_answers_a_question_ends(datagram: bytes) -> None:
    script = ScriptedSocket(lambda _: [datagram, datagram])
    try:
        netlink.Channel(script.open).dump(GETROUTE, b"")
    except OSError:
        assert len(script.sent) <= 5


def network(*found: Route, up: bool = True, running: bool = True) -> Network:
    addresses = tuple(InterfaceAddress(ipaddress.ip_address(a), 24) for a in ("10.2.0.2", "fd10:2::2"))
    eth0 = Interface("eth0", 3, up=up, running=running, addresses=addresses)
    tun0 = Interface("tun0", 4, InterfaceKind.TUNNEL, addresses=addresses)
    refused = [(3, V4)] if any(route.kind is RouteKind.UNREACHABLE for route in found) else []
    return tabulated({3: eth0, 4: tun0}, found, refused=refused)


def default(interface: int | None, *, gateway: str | None = None, six: bool = False, **more: Any) -> Route:
    destination = ipaddress.ip_network("::/0" if six else "0.0.0.0/0")
    return Route(destination, interface, None if gateway is None else ipaddress.ip_address(gateway), **more)


@pytest.mark.parametrize(
    ("seen", "destination", "expected"),
    [
        (network(default(4)), "192.0.2.1", "tun0 has taken the default route and left none by eth0"),
        (network(default(4)), "192.0.2.1", "`ip route add default via GATEWAY dev eth0 metric 9999`"),
        (network(default(4, six=True)), "2001:db8::1", "`ip -6 route add default via GATEWAY dev eth0 metric 9999`"),
        (network(), "192.0.2.1", "there is no default route by eth0"),
        (network(), "::ffff:192.0.2.1", "no route to 192.0.2.1 leaves by eth0"),
        (
            network(default(3, gateway="10.2.0.1"), default(None, table=7, kind=RouteKind.UNREACHABLE)),
            "192.0.2.1",
            "(table 7 ends in `unreachable default`); add `ip route add default via GATEWAY dev eth0 metric 9999`",
        ),
        (network(up=False), "192.0.2.1", "the interface is down"),
        (network(running=False), "192.0.2.1", "no carrier"),
        (Network(), "192.0.2.1", "the interface is gone"),
        (Network({3: Interface("eth0", 3)}), "192.0.2.1", "the interface has no IPv4 address"),
    ],
)
def test_a_cure_is_as_concrete_as_what_is_known(seen: Network, destination: str, expected: str) -> None:
    eth0 = Interface("eth0", 3)
    assert expected in route_hint.hint(seen, eth0, ipaddress.ip_address(destination))


def test_a_cure_leads_to_the_table_that_a_vpn_hides() -> None:
    seen = network(default(4), default(3, gateway="10.2.0.1"), default(None, table=7, kind=RouteKind.UNREACHABLE))
    own = Lookup(default(3, gateway="10.2.0.1", table=77))
    sentence = route_hint.hint(seen, Interface("eth0", 3), ipaddress.ip_address("192.0.2.1"), None, own)
    assert "(table 7 ends in `unreachable default`); add `ip rule add pref 100 oif eth0 lookup 77`" in sentence


def test_a_cure_names_the_gateway_that_is_known() -> None:
    eth0 = Interface("eth0", 3)
    for destination, gateway, expected in (
        ("192.0.2.1", "10.2.0.1", "`ip route add default via 10.2.0.1 dev eth0 metric"),
        ("2001:db8::1", "fe80::1", "`ip -6 route add default via fe80::1 dev eth0 metric"),
        ("192.0.2.1", "fe80::1", "`ip route add default via inet6 fe80::1 dev eth0 metric"),
    ):
        sentence = route_hint.hint(network(default(4)), eth0, ipaddress.ip_address(destination), ipaddress.ip_address(gateway))
        assert expected in sentence


def test_a_cure_quotes_a_name_that_a_shell_would_misread() -> None:
    odd = Interface("a;reboot", 3, addresses=network().interfaces[3].addresses)
    sentence = route_hint.hint(Network({3: odd}), odd, ipaddress.ip_address("192.0.2.1"))
    assert "dev 'a;reboot' metric" in sentence
