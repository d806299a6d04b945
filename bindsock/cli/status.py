"""``bindsock status``: the interfaces, and which one is effective."""

from __future__ import annotations

import argparse
from typing import Any

from bindsock.cli import documents
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_json, factory, families
from bindsock.cli.output import Printer, columns, document
from bindsock.factory import connector_of
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, InterfaceAddress, Network, family_name
from bindsock.model.preferences import Preferences, is_expensive

_EPILOG = """\
The first line names the effective interface: the uplink that carries the traffic of the
VPN that has the default route. An asterisk marks it in the table.

examples:
  bindsock status
  bindsock status --exclude 'docker*' --cost never
  bindsock status --json | jq -r .effective_interface

exit status: 0 if there is an effective interface, 1 if there is none
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "status",
        help="the interfaces, and which one is effective",
        description="Show the machine's interfaces, and which one is effective for IPv4 and for IPv6.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_json(parser)
    add_decision_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    asked = factory(arguments)
    # One reading for everything, since two readings could differ.
    with connector_of(asked).asking() as decider:
        network = decider.network
        decisions = [decider.decide(family) for family in families(arguments)]
    chosen = next((d.interface for d in decisions if d.interface is not None), None)
    if arguments.json:
        document(
            {
                "effective_interface": chosen.name if chosen is not None else None,
                "effective": {family_name(d.family).lower(): documents.decision(d) for d in decisions},
                "interfaces": [documents.interface(i, network, asked.preferences) for i in network.interfaces.values()],
            }
        )
    else:
        show(Printer(), network, decisions, asked.preferences)
    return Exit.OK if chosen is not None else Exit.NO


def show(printer: Printer, network: Network, decisions: list[Decision], preferences: Preferences) -> None:
    """Print the effective interface, the decision for each family, and all interfaces."""
    chosen = next((d.interface for d in decisions if d.interface is not None), None)
    printer.line(f"effective interface: {chosen.name if chosen is not None else 'none'}", "bold green" if chosen else "bold red")
    printer.line()
    for line, decision in zip(columns([_summary(d) for d in decisions]), decisions, strict=True):
        printer.entry(line, "" if decision.interface is not None else "red")
        if decision.interface is None:
            for reason in columns([("     ", "-", c.interface, c.reason) for c in decision.candidates]):
                printer.entry(reason, "dim")
    if chosen is None:
        printer.line("to see what to do: bindsock doctor", "dim")
    printer.line()
    effective = {d.interface.index for d in decisions if d.interface is not None}
    rows: list[tuple[str, ...]] = [("", "interface", "kind", "state", "mtu", "addresses")]
    styles = ["dim"]
    for interface in network.interfaces.values():
        details = [*map(_address, interface.addresses), *_remarks(interface, network, preferences)] or [""]
        mark = "*" if interface.index in effective else ""
        rows.append((mark, interface.name, str(interface.kind), _state(interface), str(interface.mtu), details[0]))
        rows.extend(("", "", "", "", "", detail) for detail in details[1:])
        style = "green" if mark else "" if interface.up and interface.running else "dim"
        styles.extend([style] * len(details))
    lines = columns(rows, right=(4,))
    if printer.width is not None and max(map(len, lines)) > printer.width:
        lines, styles = [_narrow(*row) for row in rows[1:]], styles[1:]
    for line, style in zip(lines, styles, strict=True):
        printer.line(line, style)


def _narrow(mark: str, name: str, kind: str, state: str, mtu: str, detail: str) -> str:
    """A row of the table for a narrow terminal: an interface, with its addresses below it."""
    head = f"{mark or ' '} {name}  {kind}, {state}, mtu {mtu}\n" if name else ""
    return f"{head}    {detail}".rstrip()


def _summary(decision: Decision) -> tuple[str, str, str, str]:
    family = family_name(decision.family)
    through = f"bypassing {', '.join(decision.tunnels)}" if decision.tunnels else ""
    if decision.interface is None:
        return family, "none", "", through
    via = f"via {decision.gateway} " if decision.gateway is not None else ""
    return family, decision.interface.name, f"{via}({decision.basis})", through


def _state(interface: Interface) -> str:
    if not interface.up:
        return "down"
    return "up" if interface.running else "no carrier"


def _address(address: InterfaceAddress) -> str:
    flags = [name for name in ("tentative", "deprecated", "temporary") if getattr(address, name)]
    return " ".join([f"{address.address}/{address.prefix_length}", *flags])


def _remarks(interface: Interface, network: Network, preferences: Preferences) -> list[str]:
    remarks = []
    if interface.delegate is not None:
        delegate = network.interfaces.get(interface.delegate)
        remarks.append(f"delegate: {delegate.name if delegate is not None else f'index {interface.delegate}, which is gone'}")
    if is_expensive(interface, preferences):
        remarks.append("expensive")
    if interface.constrained:
        remarks.append("constrained")
    return remarks
