"""``bindsock watch``: prints path changes as they happen."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from socket import AddressFamily
from typing import Any

from bindsock.cli import documents, values
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_json, factory, families
from bindsock.cli.output import BAD, DIM, GOOD, Printer, json_line
from bindsock.factory import TransportFactory
from bindsock.model.change import Change, FamilyChange
from bindsock.model.decision import Decision, Path
from bindsock.model.network import family_name

_EPILOG = """\
The first entry is the state at the start. Each further entry is a change of path: another
interface, or another address or gateway of the same interface. Interfaces marked + are
taken, those marked - are refused. A lost path is announced after some seconds, a new one
at once.

examples:
  bindsock watch
  bindsock watch --count 1 && systemctl --user restart some-tunnel
  bindsock watch --json | jq -r 'select(.event == "change") | .ipv4.to.interface'

exit status: 0 after --count changes, 130 after Ctrl-C
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "watch",
        help="print changes as they happen",
        description="Show the changes of the effective interface as they happen, and why each interface is taken or refused.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--count", metavar="N", type=values.whole_number, help="end after N changes")
    add_json(parser, "print one JSON document in each line instead of text")
    add_decision_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    asked = factory(arguments)
    reporter = (JsonReporter if arguments.json else TextReporter)(families(arguments))
    try:
        asyncio.run(_watch(asked, reporter, arguments.count))
    except KeyboardInterrupt:
        reporter.end()
        raise
    return Exit.OK


async def _watch(asked: TransportFactory, reporter: JsonReporter | TextReporter, count: int | None) -> None:
    async with asked:
        changes = asked.changes()
        async with contextlib.aclosing(changes):
            reporter.state([asked.explain(family) for family in reporter.families])
            seen = 0
            async for change in changes:
                if any(change.of(family).moved for family in reporter.families):
                    reporter.change(change)
                    seen += 1
                if seen == count:
                    return


class JsonReporter:
    """Prints one JSON document for each change, in one line."""

    def __init__(self, families: Sequence[AddressFamily]) -> None:
        self.families = families

    def state(self, decisions: Sequence[Decision]) -> None:
        effective = {family_name(d.family).lower(): {"decision": documents.decision(d)} for d in decisions}
        json_line({"event": "state", "time": _now().isoformat(), **effective})

    def change(self, change: Change) -> None:
        parts = {family_name(f).lower(): documents.family_change(change.of(f)) for f in self.families}
        head = {"event": "change", "time": _moment(change).isoformat(), "number": change.number, "cause": str(change.cause)}
        json_line({**head, **parts})

    def end(self) -> None:
        """Print nothing after Ctrl-C: a reader of JSON sees the end of the output."""


class TextReporter:
    """Prints a paragraph for each change."""

    def __init__(self, families: Sequence[AddressFamily]) -> None:
        self.families = families
        self._printer = Printer()
        self._changes = 0

    def state(self, decisions: Sequence[Decision]) -> None:
        self._printer.line(f"{_clock(_now())}  watching; end with Ctrl-C", DIM)
        for decision in decisions:
            name = decision.interface.name if decision.interface is not None else "no effective interface"
            self._family(f"{family_name(decision.family)}: {name}", decision)

    def change(self, change: Change) -> None:
        self._changes += 1
        self._printer.line(f"{_clock(_moment(change))}  change {change.number} ({change.cause})", DIM)
        for family in self.families:
            part = change.of(family)
            if part.moved:
                self._family(f"{family_name(family)}: {_transition(part)}", part.new_decision)

    def end(self) -> None:
        if sys.stdout.isatty():
            changes = {0: "no change", 1: "1 change"}.get(self._changes, f"{self._changes} changes")
            self._printer.line(f"\r{_clock(_now())}  ended after {changes}", DIM)  # over the ^C that the terminal shows

    def _family(self, text: str, decision: Decision) -> None:
        bypassed = f", bypassing {', '.join(decision.tunnels)}" if decision.tunnels and decision.interface is not None else ""
        self._printer.entry(f"  {text}{bypassed}", f"bold {GOOD if decision.interface is not None else BAD}")
        width = max((len(c.interface) for c in decision.candidates), default=0)
        for candidate in decision.candidates:
            sign, style = ("+", GOOD) if candidate.taken else ("-", DIM)
            self._printer.entry(f"    {sign} {candidate.interface:<{width}}  {candidate.reason}", style)


def _transition(change: FamilyChange) -> str:
    """The old and the new interface; if it is the same interface, what has changed."""
    old, new = change.old_path, change.new_path
    if old is None or new is None or old.interface != new.interface:
        return f"{_name(old)} → {_name(new)}"
    if old.index != new.index:
        return f"{new.interface}, created anew (index {old.index} → {new.index})"
    differences = []
    if old.addresses != new.addresses:
        differences.append(f"address {_addresses(old)} → {_addresses(new)}")
    if old.gateway != new.gateway:
        differences.append(f"gateway {old.gateway or 'none'} → {new.gateway or 'none'}")
    return f"{new.interface}, {', '.join(differences)}"


def _name(path: Path | None) -> str:
    return path.interface if path is not None else "none"


def _addresses(path: Path) -> str:
    return " ".join(sorted(map(str, path.addresses))) or "none"


def _now() -> datetime:
    return datetime.now().astimezone()


def _moment(change: Change) -> datetime:
    """The wall-clock time of a change."""
    return datetime.fromtimestamp(time.time() - (asyncio.get_running_loop().time() - change.time)).astimezone()


def _clock(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03}"
