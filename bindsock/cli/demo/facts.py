"""The facts that the demonstration must show. Each one held or not, and has the numbers that tell why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bindsock.cli.demo.measuring import TUNNEL
from bindsock.cli.demo.scenario import BINDSOCK, BY_HAND, PLAIN, milliseconds
from bindsock.errors import InterfaceChanged

if TYPE_CHECKING:
    from bindsock.cli.demo.loop import LoopResult
    from bindsock.cli.demo.measuring import Observation
    from bindsock.model.decision import Decision

_DATAGRAM_LIMIT = 1.0
"""The longest time allowed from the kernel's event to the first datagram, in seconds. It usually takes milliseconds; but a busy
machine may stop any program for some hundred milliseconds, and this is no benchmark."""
_REPORT_LIMIT = 3.0
"""The longest time allowed to the first report, in seconds. A connection that loses its carrier is ended after one second."""
_LOSS_LIMIT = 0.005
"""The largest share of datagrams that may be lost without being counted: answers that were on their way to a failing interface.
What the interface had accepted before a busy machine let the program run again is counted."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement that the demonstration checks."""

    name: str
    held: bool
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


def of_routes(plain: str, bound: str, decision: Decision, uplink: str) -> list[Fact]:
    """
    :param plain: the interface by which a datagram of a plain socket left
    :param bound: the interface by which a datagram of a socket that bindsock bound left
    :param decision: bindsock's decision for the destination of both
    :param uplink: the expected interface
    """
    chosen = decision.interface.name if decision.interface is not None else None
    return [
        Fact("the VPN owns the default route", plain == TUNNEL, f"an unbound datagram left by {plain}", {"interface": plain}),
        Fact(
            "bindsock bypasses the VPN",
            chosen == bound == uplink and TUNNEL in decision.tunnels,
            f"{chosen}, bypassing {', '.join(decision.tunnels) or 'nothing'}; a datagram bound to it left by {bound}",
            {"interface": chosen, "tunnels": list(decision.tunnels), "left_by": bound},
        ),
    ]


def of_loop(unbound: LoopResult, bound: LoopResult) -> list[Fact]:
    def numbers(result: LoopResult) -> dict[str, Any]:
        return {"reentered": result.reentered, "sent": result.sent, "answered": result.answered, "on_tunnel": result.on_tunnel}

    return [
        Fact(
            "unbound, the VPN client loops into its own tunnel",
            unbound.stopped and unbound.answered == 0,
            f"{unbound.reentered:,} of its own packets came back to it; {unbound.answered} of {unbound.sent} pings answered",
            numbers(unbound),
        ),
        Fact(
            "bound with bindsock, it flows",
            bound.reentered == 0 and bound.answered == bound.sent,
            f"{bound.reentered} packets came back to it; {bound.answered} of {bound.sent} pings answered",
            numbers(bound),
        ),
    ]


def of_cling(seen: Observation) -> list[Fact]:
    return [
        Fact("every packet was seen", seen.missed == 0, f"the tap missed {seen.missed}", {"missed": seen.missed}),
        *_of_bindsock(seen),
        *_of_plain(seen),
        *_of_by_hand(seen),
    ]


def _of_bindsock(seen: Observation) -> list[Fact]:
    udp, tcp = seen.flow(BINDSOCK, "UDP"), seen.flow(BINDSOCK, "TCP")
    moves = seen.moves()
    on_tunnel, total = udp.on_tunnel() + tcp.on_tunnel(), len(udp.packets) + len(tcp.packets) + sum(tcp.others.values())
    datagrams = [udp.delay(switch, until) for switch, until in moves]
    reports = [tcp.delay(switch, until) for switch, until in moves]
    woken = [tcp.woken(switch, until) for switch, until in moves]
    last, _ = moves[-1]
    expensive = moves[-2][0].effective
    paid = sum(t >= last.event + _DATAGRAM_LIMIT and i == expensive for t, i in (*udp.packets, *tcp.packets))
    silence = tcp.silence(seen.start, seen.end)
    counted = seen.statistics
    return [
        Fact(
            f"{BINDSOCK}: nothing goes into the tunnel",
            on_tunnel == 0 and total > 0,
            f"{on_tunnel} of {total:,} packets left by {TUNNEL}"
            + (f"; the kernel sent {tcp.resets} resets there, for sockets that are gone" if tcp.resets else ""),
            {"on_tunnel": on_tunnel, "packets": total, "resets": tcp.resets},
        ),
        Fact(
            f"{BINDSOCK}: the UDP stream moves each time",
            all(d is not None and d <= _DATAGRAM_LIMIT for d in datagrams),
            f"first datagram on the new interface after {_times(datagrams)}",
            {"seconds": datagrams},
        ),
        Fact(
            f"{BINDSOCK}: next to no datagram is lost",
            len(udp.lost) <= max(_LOSS_LIMIT * len(udp.sent), counted.lost_on_device),
            f"{len(udp.lost)} of {len(udp.sent):,} not answered, {len(moves)} switches; "
            f"{counted.held} held meanwhile, {counted.lost_on_device} dropped by a dying device",
            {"sent": len(udp.sent), "lost": len(udp.lost), "held": counted.held, "lost_on_device": counted.lost_on_device},
        ),
        Fact(
            f"{BINDSOCK}: the TCP reader is woken, the program goes on",
            all(w is not None for w in woken)
            and all(r is not None and r <= _REPORT_LIMIT for r in reports)
            and not tcp.lost
            and {error for _, error in tcp.endings} == {InterfaceChanged.__name__},
            f"woken after {_times(woken)} by {', '.join(sorted({error for _, error in tcp.endings}))}; "
            f"next report after {_times(reports)}; {len(tcp.lost)} reports not answered",
            {"woken": woken, "seconds": reports, "silence": silence, "lost": len(tcp.lost), "connections": tcp.connections},
        ),
        Fact(
            f"{BINDSOCK}: it leaves the expensive interface when a cheaper one returns",
            paid == 0,
            f"{paid} packets by {expensive} later than {_DATAGRAM_LIMIT:g} s after {last.effective} was back",
            {"expensive": expensive, "packets": paid},
        ),
    ]


def _of_plain(seen: Observation) -> list[Fact]:
    flows = [seen.flow(PLAIN, "UDP"), seen.flow(PLAIN, "TCP")]
    inside, total = sum(f.by_interface()[TUNNEL] for f in flows), sum(len(f.packets) for f in flows)
    return [
        Fact(
            f"{PLAIN}: all of it goes into the tunnel",
            inside == total > 0,
            f"{inside:,} of {total:,} packets left by {TUNNEL}",
            {"on_tunnel": inside, "packets": total},
        )
    ]


def _of_by_hand(seen: Observation) -> list[Fact]:
    udp = seen.flow(BY_HAND, "UDP")
    (first, back), (last, end) = seen.moves()[0], seen.moves()[-1]
    away = sum(first.event <= t < back for t in udp.sent)
    answered = sum(first.event + _DATAGRAM_LIMIT <= t < back for t in udp.answered)
    stayed = sum(last.event + _DATAGRAM_LIMIT <= t < end and i == seen.moves()[-2][0].effective for t, i in udp.packets)
    moved = sum(last.event <= t < end and i == last.effective for t, i in udp.packets)
    return [
        Fact(
            f"{BY_HAND}: silent while its interface is away, with another one there",
            away > 0 and answered == 0,
            f"{answered} of {away:,} datagrams answered in {back - first.event:.1f} s",
            {"sent": away, "answered": answered},
        ),
        Fact(
            f"{BY_HAND}: clings to the expensive interface beside a cheaper one",
            stayed > 0 and moved == 0,
            f"{stayed:,} datagrams by {seen.moves()[-2][0].effective}, {moved} by {last.effective}",
            {"stayed": stayed, "moved": moved},
        ),
    ]


def _times(delays: list[float | None]) -> str:
    return ", ".join(milliseconds(d) if d is not None else "never" for d in delays)
