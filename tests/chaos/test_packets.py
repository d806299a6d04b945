"""The kind of each packet, and the devices by which it may leave."""

from __future__ import annotations

import dataclasses

import pytest

from bindsock.testing.lab import Packet, Server
from tests.chaos.packets import Census, Endpoints, Kind, classify

SERVER = Server()
ENDPOINTS = Endpoints(frozenset({SERVER.ipv4, SERVER.ipv6}), SERVER.udp_port, frozenset({7201}), ("10.8.0.10", 51820))


def packet(
    protocol: str,
    destination: str = SERVER.ipv4,
    port: int = 7201,
    *,
    flags: int = 0,
    payload: bytes = b"",
    interface: str = "wifi0",
    outgoing: bool = True,
) -> Packet:
    return Packet(1.0, interface, outgoing, protocol, "10.1.0.2", destination, 40000, port, 60, payload, flags)


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (packet("tcp", flags=0x02), Kind.HANDSHAKE),
        (packet("tcp", flags=0x10), Kind.ACKNOWLEDGEMENT),
        (packet("tcp", flags=0x18, payload=b"do 1\n"), Kind.DATA),
        (packet("tcp", flags=0x19, payload=b"do 1\n"), Kind.DATA),
        (packet("tcp", flags=0x11), Kind.END),
        (packet("tcp", flags=0x14), Kind.RESET),
        (packet("tcp", port=22, flags=0x02), Kind.UNKNOWN),
        (packet("tcp", "10.1.0.1", flags=0x02), Kind.UNKNOWN),
        (packet("udp", port=SERVER.udp_port), Kind.DATAGRAM),
        (packet("udp", "10.1.0.1", 9), Kind.FIRST_HOP),
        (packet("udp", "10.8.0.10", 51820), Kind.VPN),
        (packet("udp", "10.8.0.10", 0), Kind.VPN),
        (packet("udp", "10.255.255.53", 53), Kind.NAME),
        (packet("udp", port=54), Kind.UNKNOWN),
        (packet("icmp", port=0), Kind.ERROR),
        (packet("icmp6", SERVER.ipv6, 0), Kind.ERROR),
        (packet("icmp6", "ff02::1:ff00:1", 0), Kind.LINK),
        (packet("icmp6", "fd10:1::1", 0), Kind.LINK),
        (packet("icmp6", "fe80::1", 0), Kind.LINK),
        (packet("2", "224.0.0.22", 0), Kind.LINK),
    ],
)
def test_each_packet_has_a_kind(seen: Packet, kind: Kind) -> None:
    assert classify(seen, ENDPOINTS) is kind


def test_in_the_tunnel_only_what_the_kernel_says_for_no_socket_is_right() -> None:
    census = Census(ENDPOINTS)
    rightly = [packet("tcp", flags=0x14), packet("icmp", port=0)]
    wrongly = [
        packet("tcp", flags=0x10),
        packet("tcp", flags=0x02),
        packet("udp", port=SERVER.udp_port, payload=b"asyncio.udp-4 1"),
    ]
    for seen in (*rightly, *wrongly):
        census.take([packet_by(seen, "wifi0"), packet_by(seen, "tun0")])
    assert [(story[0], count) for story, count in census.take_wrong()] == [
        (packet_by(wrongly[0], "tun0"), 2),
        (packet_by(wrongly[2], "tun0"), 1),
    ]
    assert census.take_wrong() == []
    assert census.by_device()["tun0"] == {"acknowledgement": 1, "datagram": 1, "error": 1, "handshake": 1, "reset": 1}


def packet_by(seen: Packet, interface: str) -> Packet:
    return packet(
        seen.protocol, seen.destination, seen.destination_port, flags=seen.flags, payload=seen.payload, interface=interface
    )


def test_what_came_before_on_the_same_connection_is_told() -> None:
    census = Census(ENDPOINTS)
    before, other, wrong = packet("tcp", flags=0x11), packet("tcp", port=7201, flags=0x11, outgoing=False), packet("tcp", port=53)
    census.take([before, wrong, other, packet_by(before, "tun0")])
    assert census.take_wrong() == [([wrong], 1), ([packet_by(before, "tun0"), other, before], 1)]


END = Packet(1.0, "wifi0", False, "tcp", SERVER.ipv6, "fd10:1::2", 7201, 40000, 72, b"", flags=0x11, sequence=2**32 - 1)
BY_UPLINK = Packet(1.0, "wifi0", True, "tcp", "fd10:1::2", SERVER.ipv6, 40000, 7201, 72, b"", flags=0x10, acknowledgement=0)
BY_TUNNEL = dataclasses.replace(BY_UPLINK, interface="tun0")
BEFORE = dataclasses.replace(BY_UPLINK, acknowledgement=2**32 - 1)
OVERTAKEN = dataclasses.replace(END, flags=0x10)


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        ([END, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 1}),
        ([BEFORE, END, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 1}),
        ([END, BY_UPLINK, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 1}),
        ([END, BY_TUNNEL, END, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 2}),
        ([END, BY_TUNNEL, END, BY_UPLINK, END, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 2}),
        ([END, END, BY_TUNNEL, END, BY_TUNNEL], {Kind.LATE: 2}),
        ([BEFORE, END, BEFORE, END, BY_TUNNEL], {Kind.LATE: 1}),
        ([END, BY_UPLINK, END, BY_TUNNEL, END, BY_TUNNEL], {Kind.REPEATED: 2}),
        ([END, END, BY_UPLINK, BY_TUNNEL], {Kind.REPEATED: 1}),
        ([END, BY_UPLINK, OVERTAKEN, BY_TUNNEL], {Kind.REPEATED: 1}),
        ([OVERTAKEN, END, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 1}),
        ([END, OVERTAKEN, BY_TUNNEL], {Kind.ACKNOWLEDGEMENT: 1}),
    ],
)
def test_only_what_comes_after_the_end_may_be_answered_by_the_routes(seen: list[Packet], kinds: dict[Kind, int]) -> None:
    census = Census(ENDPOINTS)
    census.take(seen)
    assert census.by_device()["tun0"] == kinds
    assert sum(count for _, count in census.take_wrong()) == kinds.get(Kind.ACKNOWLEDGEMENT, 0)


def test_an_end_may_come_with_more_data_than_the_tap_keeps() -> None:
    census = Census(ENDPOINTS)
    end = dataclasses.replace(END, flags=0x19, sequence=2**32 - 939, payload=b"x" * 350, payload_length=938)
    census.take([end, BY_UPLINK, end, BY_TUNNEL])
    assert census.by_device()["tun0"] == {Kind.REPEATED: 1}


def test_over_ipv4_no_end_may_be_acknowledged_by_the_routes() -> None:
    end = dataclasses.replace(END, source=SERVER.ipv4, destination="10.1.0.2")
    answers = [dataclasses.replace(seen, source="10.1.0.2", destination=SERVER.ipv4) for seen in (BY_UPLINK, BY_TUNNEL)]
    census = Census(ENDPOINTS)
    census.take([end, answers[0], end, answers[1]])
    assert [count for _, count in census.take_wrong()] == [1]


def test_datagrams_are_counted_by_program_and_device() -> None:
    census = Census(ENDPOINTS)
    census.take([packet("udp", port=SERVER.udp_port, payload=b"uvloop.udp-4 17")] * 3)
    census.take([packet("udp", port=SERVER.udp_port, payload=b"uvloop.udp-4 17", outgoing=False)])
    assert census.left == {("uvloop", "wifi0"): 3}


def test_the_last_packets_of_a_port_are_kept() -> None:
    census = Census(ENDPOINTS)
    asked, answered = packet("tcp", flags=0x02), dataclasses.replace(packet("tcp", flags=0x12, outgoing=False), source_port=7201)
    other = dataclasses.replace(packet("tcp", flags=0x02), source_port=40001)
    census.take([asked, other, dataclasses.replace(answered, destination_port=40000), packet("udp", port=SERVER.udp_port)])
    assert [(p.protocol, p.flags) for p in census.last(40000)] == [("udp", 0), ("tcp", 0x12), ("tcp", 0x02)]
    assert census.last(40002) == []
