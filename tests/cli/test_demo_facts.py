"""The facts on scripted observations: each must fail when its claim was not observed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import ip_address
from xml.etree import ElementTree

import pytest

from bindsock.cli.demo import facts, report
from bindsock.cli.demo.loop import LoopResult
from bindsock.cli.demo.measuring import Flow, Observation, Switch, observe
from bindsock.cli.demo.programs import PlainSockets, Program
from bindsock.cli.demo.timeline import svg
from bindsock.model.statistics import Statistics
from bindsock.routing.effective import decide
from bindsock.testing import network
from bindsock.testing.lab import Packet

from .conftest import beneath_vpn

START = 1000.0
SWITCHES = (
    Switch("wifi0 off", "wifi0", False, 1003.0, 1003.001, "eth0", True),
    Switch("wifi0 back", "wifi0", True, 1006.0, 1006.001, "wifi0", True),
    Switch("eth0 unplugged", "eth0", False, 1008.0, 1008.001, "wifi0", False),
    Switch("wifi0 lost", "wifi0", False, 1010.0, 1010.001, "wwan0", True),
    Switch("eth0 back", "eth0", True, 1014.0, 1014.001, "eth0", True),
)
END = 1018.0


def effective(moment: float) -> str:
    return [name for at, name in [(START, "wifi0"), *((s.event, s.effective) for s in SWITCHES)] if at <= moment][-1]


def by_hand(moment: float) -> str | None:
    """wifi0 while it is there; from second 12 on it is bound to wwan0."""
    if moment >= 1012.0:
        return "wwan0"
    return "wifi0" if effective(moment) == "wifi0" else None


def flow(program: str, protocol: str, interface_at: Callable[[float], str | None]) -> Flow:
    moments = [START + n / 100 for n in range(1800)]
    packets = tuple((t, i) for t in moments if (i := interface_at(t)) is not None)
    answered = tuple(t + 0.001 for t, _ in packets)
    lost = tuple(t for t in moments if interface_at(t) is None)
    endings = tuple((s.event + 0.002, "InterfaceChanged") for s in SWITCHES if s.moves) if program == "bindsock" else ()
    return Flow(program, protocol, tuple(moments), answered, lost, packets, {}, len(endings) + 1, endings)


def observation() -> Observation:
    """The observations when all goes well."""
    flows = (
        flow("bindsock", "UDP", effective),
        flow("bindsock", "TCP", effective),
        flow("plain asyncio", "UDP", lambda _: "tun0"),
        flow("plain asyncio", "TCP", lambda _: "tun0"),
        flow("bound by hand", "UDP", by_hand),
        flow("bound by hand", "TCP", by_hand),
    )
    return Observation(START, END, flows, SWITCHES, (1012.0,), {}, 0, Statistics())


def with_flow(seen: Observation, changed: Flow) -> Observation:
    same = (changed.program, changed.protocol)
    return dataclasses.replace(seen, flows=tuple(changed if (f.program, f.protocol) == same else f for f in seen.flows))


def failing(seen: Observation) -> list[str]:
    return [fact.name for fact in facts.of_cling(seen) if not fact.held]


def test_all_facts_hold_when_all_went_well() -> None:
    assert failing(observation()) == []


def test_one_packet_in_the_tunnel_is_too_many() -> None:
    seen = observation()
    udp = seen.flow("bindsock", "UDP")
    leaked = dataclasses.replace(udp, packets=(*udp.packets, (1005.0, "tun0")))
    assert failing(with_flow(seen, leaked)) == ["bindsock: nothing goes into the tunnel"]


def test_a_handshake_in_the_tunnel_is_too_many_as_well() -> None:
    seen = observation()
    leaked = dataclasses.replace(seen.flow("bindsock", "TCP"), others={"tun0": 1})
    assert failing(with_flow(seen, leaked)) == ["bindsock: nothing goes into the tunnel"]


def test_the_kernels_resets_for_sockets_that_are_gone_are_told_and_are_no_leak() -> None:
    seen = observation()
    answered = dataclasses.replace(seen.flow("bindsock", "TCP"), resets=6)
    assert failing(with_flow(seen, answered)) == []
    (fact,) = (f for f in facts.of_cling(with_flow(seen, answered)) if f.name == "bindsock: nothing goes into the tunnel")
    assert fact.text.endswith("; the kernel sent 6 resets there, for sockets that are gone")


def test_a_stream_that_does_not_move_fails() -> None:
    seen = observation()
    clung = flow("bindsock", "UDP", lambda t: "wwan0" if t >= 1014.0 else effective(t))
    assert failing(with_flow(seen, clung)) == [
        "bindsock: the UDP stream moves each time",
        "bindsock: it leaves the expensive interface when a cheaper one returns",
    ]


def test_a_stream_that_moves_late_fails() -> None:
    seen = observation()
    late = flow("bindsock", "UDP", lambda t: None if 1003.0 <= t < 1005.0 else effective(t))
    assert failing(with_flow(seen, late)) == [
        "bindsock: the UDP stream moves each time",
        "bindsock: next to no datagram is lost",
    ]


def test_what_a_dying_interface_had_accepted_is_no_fault_as_long_as_it_is_counted() -> None:
    seen = observation()
    paused = with_flow(seen, flow("bindsock", "UDP", lambda t: None if 1003.0 <= t < 1003.2 else effective(t)))
    number = len(paused.flow("bindsock", "UDP").lost)
    assert number > 1
    for counted, wrong in ((number, []), (number - 1, ["bindsock: next to no datagram is lost"])):
        assert failing(dataclasses.replace(paused, statistics=Statistics(lost_on_device=counted))) == wrong


def test_a_report_that_was_never_answered_fails() -> None:
    seen = observation()
    stuck = dataclasses.replace(seen.flow("bindsock", "TCP"), lost=(1015.0,))
    assert failing(with_flow(seen, stuck)) == ["bindsock: the TCP reader is woken, the program goes on"]


def test_a_reader_that_was_not_woken_fails() -> None:
    seen = observation()
    asleep = dataclasses.replace(seen.flow("bindsock", "TCP"), endings=seen.flow("bindsock", "TCP").endings[1:])
    assert failing(with_flow(seen, asleep)) == ["bindsock: the TCP reader is woken, the program goes on"]


def test_a_reader_that_was_woken_by_something_else_fails() -> None:
    seen = observation()
    tcp = seen.flow("bindsock", "TCP")
    reset = dataclasses.replace(tcp, endings=(*tcp.endings[1:], (tcp.endings[0][0], "ConnectionResetError")))
    assert failing(with_flow(seen, reset)) == ["bindsock: the TCP reader is woken, the program goes on"]


def test_a_plain_program_outside_the_tunnel_means_that_nothing_was_shown() -> None:
    seen = observation()
    outside = flow("plain asyncio", "UDP", lambda t: "wifi0" if t < 1000.5 else "tun0")
    assert failing(with_flow(seen, outside)) == ["plain asyncio: all of it goes into the tunnel"]


def test_a_hand_bound_program_that_moves_means_that_nothing_was_shown() -> None:
    seen = observation()
    assert failing(with_flow(seen, flow("bound by hand", "UDP", effective))) == [
        "bound by hand: silent while its interface is away, with another one there",
        "bound by hand: clings to the expensive interface beside a cheaper one",
    ]


def test_holes_in_what_was_seen_fail() -> None:
    assert failing(dataclasses.replace(observation(), missed=1)) == ["every packet was seen"]


@pytest.mark.parametrize(
    ("unbound", "bound", "held"),
    [
        (LoopResult(2000, 2001, 20, 0, 1.0, True), LoopResult(0, 20, 20, 20, 1.0, False), [True, True]),
        (LoopResult(0, 20, 20, 20, 1.0, False), LoopResult(0, 20, 20, 20, 1.0, False), [False, True]),
        (LoopResult(2000, 2001, 20, 0, 1.0, True), LoopResult(3, 23, 20, 20, 1.0, False), [True, False]),
        (LoopResult(2000, 2001, 20, 0, 1.0, True), LoopResult(0, 20, 20, 19, 1.0, False), [True, False]),
    ],
)
def test_the_loop_must_loop_unbound_and_flow_bound(unbound: LoopResult, bound: LoopResult, held: list[bool]) -> None:
    assert [fact.held for fact in facts.of_loop(unbound, bound)] == held


def test_the_routes_must_lead_plain_traffic_into_the_tunnel_and_ours_beneath_it() -> None:
    decision = decide(beneath_vpn(), ip_address("203.0.113.9"))
    nothing = decide(network(), ip_address("203.0.113.9"))
    assert decision.tunnels == ("utun4",)
    assert [f.held for f in facts.of_routes("tun0", "en0", decision, "en0")] == [True, False]  # observed through another tunnel
    renamed = dataclasses.replace(decision, tunnels=("tun0",))
    assert [f.held for f in facts.of_routes("tun0", "en0", renamed, "en0")] == [True, True]
    assert [f.held for f in facts.of_routes("en0", "tun0", renamed, "en0")] == [False, False]
    assert [f.held for f in facts.of_routes("tun0", "en0", nothing, "en0")] == [True, False]


def test_packets_are_told_apart_by_their_tag_and_by_the_connections_port() -> None:
    program = Program("one", "tagged", PlainSockets(), ("192.0.2.1", 7, 7))
    program.reports.connections.append(("192.0.2.5", 40000))
    program.telemetry.sent = {0: 1.0, 1: 2.0, 2: 9.0}
    program.telemetry.answered = {1: 2.1}

    def packet(protocol: str, port: int, payload: bytes) -> Packet:
        return Packet(1.0, "wifi0", True, protocol, "192.0.2.5", "192.0.2.1", port, 7, 40, payload)

    packets = [
        packet("udp", 1, b"tagged 0"),
        packet("udp", 1, b"other 0"),
        packet("tcp", 40000, b""),
        packet("tcp", 40000, b"tagged report 1\n"),
        packet("tcp", 40001, b"tagged report 1\n"),
    ]
    (udp, tcp), unknown = observe([program], packets, horizon=5.0)
    assert (udp.packets, tcp.packets, dict(tcp.others)) == (((1.0, "wifi0"),), ((1.0, "wifi0"),), {"wifi0": 1})
    assert unknown == {"wifi0": 2}
    assert udp.lost == (1.0,)  # a datagram sent after the horizon may still be answered


def test_a_reset_in_the_tunnel_is_told_apart_and_an_acknowledgement_there_is_not() -> None:
    program = Program("one", "tagged", PlainSockets(), ("192.0.2.1", 7, 7))
    program.reports.connections.append(("192.0.2.5", 40000))
    packets = [
        Packet(1.0, interface, True, "tcp", "192.0.2.5", "192.0.2.1", 40000, 7, 40, b"", flags)
        for interface, flags in (("tun0", 4), ("tun0", 16), ("wifi0", 4))
    ]
    (_, tcp), _ = observe([program], packets, horizon=5.0)
    assert (tcp.resets, dict(tcp.others)) == (1, {"tun0": 1, "wifi0": 1})


def test_a_delay_counts_from_the_kernels_event_and_ends_with_the_next_switch() -> None:
    (first, until), *_ = observation().moves()
    found = observation().flow("bindsock", "UDP").delay(first, until)
    assert found == pytest.approx(0.009)
    assert observation().flow("bound by hand", "UDP").delay(first, until) is None


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    seen = observation()
    lines = report.traffic_table(seen) + report.switch_table(seen)
    assert max(map(len, lines)) <= 80


def test_a_delay_that_an_operator_ended_is_marked() -> None:
    rows = report.switch_table(observation())
    (lost,) = [row for row in rows if row.startswith("wifi0 lost")]
    assert lost.endswith("*")
    assert rows[-1].startswith("*")


def test_the_picture_is_well_formed_and_has_each_programs_interfaces() -> None:
    root = ElementTree.fromstring(svg(observation()))
    space = "{http://www.w3.org/2000/svg}"
    drawn = [path.get("class") for path in root.iter(f"{space}path")]
    # Each program has a mark for UDP and one for TCP in the row of every interface that it used.
    assert {name: drawn.count(name) for name in ("wifi0", "eth0", "wwan0", "tun0", "lost")} == {
        "wifi0": 4,
        "eth0": 2,
        "wwan0": 4,
        "tun0": 2,
        "lost": 2,
    }
    assert drawn.count("event") == len(SWITCHES)


def test_the_picture_asks_for_nothing_from_elsewhere() -> None:
    picture = svg(observation())
    assert "http" not in picture.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "url(" not in picture
    assert "prefers-color-scheme: dark" in picture


def test_neighbouring_packets_become_one_mark() -> None:
    picture = ElementTree.fromstring(svg(observation()))
    tunnel = next(p for p in picture.iter("{http://www.w3.org/2000/svg}path") if p.get("class") == "tun0")
    assert (tunnel.get("d") or "").count("M") == 1
