"""The result of the demonstration as JSON and as tables."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

from bindsock.cli.demo.measuring import TUNNEL
from bindsock.cli.demo.scenario import BY_HAND, UPLINKS, milliseconds
from bindsock.cli.output import BAD, GOOD, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.cli.demo.facts import Fact
    from bindsock.cli.demo.measuring import Flow, Observation

_WIDTH = 75
_INTERFACES = (*UPLINKS, TUNNEL)


def traffic_table(seen: Observation) -> list[str]:
    """What each program sent, and by which interface."""
    rows: list[tuple[str, ...]] = [("", "", "sent", "answered", "lost", *_INTERFACES, "silence")]
    for flow in seen.flows:
        counts = flow.by_interface()
        rows.append(
            (
                flow.program if flow.protocol == "UDP" else "",
                flow.protocol,
                f"{len(flow.sent):,}",
                f"{len(flow.answered):,}",
                f"{len(flow.lost):,}",
                *(f"{counts[i]:,}" if counts[i] else "-" for i in _INTERFACES),
                milliseconds(flow.silence(seen.start, seen.end)),
            )
        )
    return columns(rows, right=range(2, 10))


def switch_table(seen: Observation) -> list[str]:
    """How long each program took to send by the new interface after each switch."""
    shown = _shown(seen)
    rows = [("", *(name if protocol == "UDP" else "its TCP" for name, protocol in shown))]
    restarted = False
    for switch, until in seen.moves():
        cells = []
        for name, protocol in shown:
            delay = seen.flow(name, protocol).delay(switch, until)
            text = milliseconds(delay) if delay is not None else "never"
            if name == BY_HAND and delay is not None and any(switch.event < r <= switch.event + delay for r in seen.restarts):
                text += "*"
                restarted = True
            cells.append(text)
        rows.append((f"{switch.label} → {switch.effective}", *cells))
    notes = ["* because its operator started it again"] if restarted else []
    return [*columns(rows, right=range(1, len(rows[0]))), *notes]


def _shown(seen: Observation) -> list[tuple[str, str]]:
    ours, *others = seen.programs()
    return [(ours, "UDP"), (ours, "TCP"), *((other, "UDP") for other in others)]


def fact_lines(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """Each fact as lines of text, with a style."""
    lines = []
    for fact in facts:
        lines.append((f"{'✓' if fact.held else '✗'} {fact.name}", GOOD if fact.held else f"bold {BAD}"))
        lines += [(f"    {part}", "" if fact.held else BAD) for part in textwrap.wrap(fact.text, _WIDTH)]
    return lines


def facts_document(facts: Sequence[Fact]) -> dict[str, Any]:
    return {
        "held": all(f.held for f in facts),
        "facts": [{"name": f.name, "held": f.held, "text": f.text, "numbers": f.numbers} for f in facts],
    }


def observation_document(seen: Observation) -> dict[str, Any]:
    """All measurements. Times are seconds from the start."""
    return {
        "seconds": seen.end - seen.start,
        "flows": [_flow_document(flow, seen) for flow in seen.flows],
        "switches": [
            {
                "what": switch.label,
                "interface": switch.interface,
                "usable": switch.usable,
                "effective": switch.effective,
                "moves": switch.moves,
                "issued": switch.issued - seen.start,
                "event": switch.event - seen.start,
                "delays": _delays(seen, switch.issued),
            }
            for switch in seen.switches
        ],
        "restarts": [t - seen.start for t in seen.restarts],
        "other_packets": dict(seen.unknown),
        "missed_by_the_tap": seen.missed,
        "statistics": dataclasses.asdict(seen.statistics),
    }


def _flow_document(flow: Flow, seen: Observation) -> dict[str, Any]:
    return {
        "program": flow.program,
        "protocol": flow.protocol,
        "sent": len(flow.sent),
        "answered": len(flow.answered),
        "lost": len(flow.lost),
        "lost_at": [t - seen.start for t in flow.lost],
        "packets": dict(flow.by_interface()),
        "packets_without_data": dict(flow.others),
        "longest_silence": flow.silence(seen.start, seen.end),
        "connections": flow.connections,
        "endings": [{"at": t - seen.start, "error": error} for t, error in flow.endings],
    }


def _delays(seen: Observation, issued: float) -> dict[str, dict[str, float | None]] | None:
    """Seconds from the event to the first packet by the new interface, by program and protocol."""
    move = next(((s, u) for s, u in seen.moves() if s.issued == issued), None)
    if move is None:
        return None
    return {program: {p: seen.flow(program, p).delay(*move) for p in ("UDP", "TCP")} for program in seen.programs()}
