"""``bindsock explain``: by which interface a connection would leave, and why; or what to do so that it can."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from bindsock.cli import documents, routes
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_json, factory, families, no_such_interface
from bindsock.cli.output import BAD, DIM, GOOD, WARN, Printer, document
from bindsock.cli.values import why_no_host
from bindsock.dial.resolving import address_of
from bindsock.dial.waiting import interruptible
from bindsock.factory import connector_of
from bindsock.kernel import Kernel
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Route, family_of, unmapped
from bindsock.model.policy import table_name
from bindsock.routing.effective import Decider
from bindsock.routing.usable import why_unusable

_EPILOG = """\
The system resolves names, and every address is explained; without a HOST, the default
route of each family. Interfaces marked + are taken, those marked - are refused.

examples:
  bindsock explain example.com
  bindsock explain 192.0.2.1 2001:db8::1
  bindsock explain --tunnels split intranet.example.com
  bindsock explain --json example.com | jq '.hosts[].addresses[].decision.interface'

exit status: 0 if every host can be reached by an interface (or is this machine itself),
1 if one cannot, or a name has no address
"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation for one address, or for one family's default route."""

    decision: Decision
    advice: str | None
    """Why a connection is not possible and what to do; ``None`` if it is possible."""
    routes: tuple[str, ...] | None = None
    """The matching routes of all tables; ``None`` unless they were asked for."""

    @property
    def reachable(self) -> bool:
        return self.decision.unbound or (self.decision.interface is not None and self.advice is None)


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="by which interface a connection to a host would leave, and why",
        description="Explain by which interface a connection to a host would leave, and why.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("hosts", metavar="HOST", nargs="*", help="a name or an address (default: the default routes)")
    parser.add_argument(
        "--routes", action="store_true", help="also list the matching routes of all tables; this reads the routing tables"
    )
    add_json(parser)
    add_decision_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    asked = factory(arguments)
    wanted = families(arguments)
    kernel = asked.kernel
    # Resolve names first: it may take seconds, in which the network can change.
    resolved = {host: _resolve(host, wanted) for host in arguments.hosts}
    with connector_of(asked).asking() as decider:
        tables = {family: kernel.routes(family) for family in wanted} if arguments.routes else None
        defaults = [explain(kernel, decider, family, tables) for family in wanted] if not resolved else []
        answers = {
            host: [explain(kernel, decider, address, tables) for address in addresses]
            if isinstance(addresses, list)
            else addresses
            for host, addresses in resolved.items()
        }
        marks = exempt_marks(kernel)
    if not resolved:
        reachable = any(e.reachable for e in defaults)
        if arguments.json:
            document({"defaults": [_document(e) for e in defaults]})
        else:
            _show(Printer(), defaults)
            if not any(e.reachable or e.advice for e in defaults):
                print("  advice: name a host to see what to do: bindsock explain example.com")
        return Exit.OK if reachable else Exit.NO
    if arguments.json:
        document(
            {
                "hosts": [
                    {
                        "host": host,
                        "error": answer if isinstance(answer, str) else None,
                        "addresses": [] if isinstance(answer, str) else [_document(e) for e in answer],
                    }
                    for host, answer in answers.items()
                ],
                "exempt_marks": marks,
            }
        )
    else:
        _show_hosts(answers)
        if not arguments.mark and any(isinstance(answer, list) for answer in answers.values()):
            Printer().lines((f"note: {note}" for note in marks), "dim")
    reachable = all(not isinstance(answer, str) and any(e.reachable for e in answer) for answer in answers.values())
    return Exit.OK if reachable else Exit.NO


def explain(
    kernel: Kernel,
    decider: Decider,
    target: socket.AddressFamily | IPAddress,
    tables: Mapping[socket.AddressFamily, Sequence[Route]] | None = None,
) -> Explanation:
    """Explain the decision for the target, with advice if no route leads there.

    :param tables: the routes of each family, to list those that match
    """
    decision = decider.decide(target)
    lines = None
    if tables is not None:
        plain = target if isinstance(target, socket.AddressFamily) else unmapped(target)
        found = routes.matching(tables[decision.family], plain)
        lines = tuple(routes.line(route, decider.network) for route in found)
    return Explanation(decision, _advice(kernel, decider, decision, target), lines)


def _advice(kernel: Kernel, decider: Decider, decision: Decision, target: socket.AddressFamily | IPAddress) -> str | None:
    if decider.pin is not None and not decision.unbound and decider.network.named(decider.pin) is None:
        return no_such_interface(decider.pin, decider.network)
    if decision.unbound or isinstance(target, socket.AddressFamily):
        return None
    interface = decision.interface or _nearest(decision, decider)
    if interface is None or kernel.has_route(interface, target):
        return None
    return kernel.route_hint(interface, target)


def exempt_marks(kernel: Kernel) -> list[str]:
    """The firewall marks that a policy rule exempts from a table: one sentence for each."""
    administration = kernel.administration
    try:
        rules = administration.rules() if administration is not None else ()
    except OSError:
        return []
    return list(
        dict.fromkeys(
            f"packets with the mark {rule.mark:#x} bypass table {table_name(rule.table)}, by the rule `{rule}`: "
            f"a privileged program may mark its sockets (mark={rule.mark:#x}, --mark)"
            for rule in rules
            if rule.mark and rule.action == "lookup" and rule.exempts(rule.mark)
        )
    )


def _nearest(decision: Decision, decider: Decider) -> Interface | None:
    """The interface that could be used if it had a route."""
    if decider.pin is not None:
        return decider.network.named(decider.pin)
    candidates = (decider.network.interfaces.get(c.index) for c in decision.candidates)
    return next((i for i in candidates if i is not None and why_unusable(i, decision.family, decider.preferences) is None), None)


def _resolve(host: str, wanted: tuple[socket.AddressFamily, ...]) -> list[IPAddress] | str:
    """All addresses of a host, or a message why it has none."""
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        return [address] if family_of(address) in wanted else f"{host} is an IPv{address.version} address"
    reason = why_no_host(host)
    if reason is not None:
        return reason
    try:
        family = wanted[0] if len(wanted) == 1 else socket.AF_UNSPEC
        infos = interruptible(socket.getaddrinfo, host, None, family=family, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"{host} has no address: {error.strerror}"
    return list(dict.fromkeys(address_of(info[4]) for info in infos if info[0] in wanted))


def _document(explanation: Explanation) -> dict[str, Any]:
    target = explanation.decision.target
    return {
        "address": None if isinstance(target, int) else str(target),
        "reachable": explanation.reachable,
        "advice": explanation.advice,
        "decision": documents.decision(explanation.decision),
        **({} if explanation.routes is None else {"routes": list(explanation.routes)}),
    }


def _show_hosts(answers: dict[str, list[Explanation] | str]) -> None:
    printer = Printer()
    for number, (host, answer) in enumerate(answers.items()):
        if number:
            printer.line()
        if isinstance(answer, str):
            sys.stdout.flush()
            Printer(sys.stderr).entry(f"bindsock: {answer}", BAD)
            continue
        if [str(e.decision.target) for e in answer] != [host]:
            printer.line(f"{host}:", "bold")
        _show(printer, answer)


def _show(printer: Printer, explanations: list[Explanation]) -> None:
    for explanation in explanations:
        head, *rest = str(explanation.decision).splitlines()
        printer.entry(head, f"bold {GOOD if explanation.reachable else BAD}")
        for line in rest:
            printer.entry(line, GOOD if line.startswith("  + ") else DIM if line.startswith("  - ") else "")
        for route in explanation.routes or ():
            printer.line(f"  route: {route}", DIM)
        if explanation.advice is not None:
            printer.line(f"  advice: {explanation.advice}", WARN)
