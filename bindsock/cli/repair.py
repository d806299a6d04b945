"""``bindsock repair``: shows, makes or removes routes for bound sockets where a VPN has left none."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_json, factory, fail, families, no_such_interface, preferences
from bindsock.cli.output import BAD, GOOD, Printer, document
from bindsock.model.network import family_name
from bindsock.model.preferences import Preferences
from bindsock.repair import Plan, plan
from bindsock.routing.usable import why_unusable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from bindsock.kernel import Repairs
    from bindsock.model.network import Network
    from bindsock.model.policy import Repair

_EPILOG = """\
Some VPNs delete all other default routes, or end their table with an unreachable route, so
that a socket bound to an uplink has no route. Then each uplink gets a default route in a
table of its own, and two policy rules lead sockets bound to that uplink to the table.
Nothing else is changed, and no firewall is touched. Without an option, the command prints
what it would do. Repairs made by --apply stay until --undo, which removes all repairs,
those of crashed programs, too. With --interface and --family only the repairs of that
interface and that family are made or removed.

examples:
  bindsock repair
  sudo bindsock repair --apply --exclude 'docker*'
  sudo bindsock repair --undo
  bindsock repair --json | jq -r '.make[].commands[]'

exit status: 0 if nothing needs repair, or it has been repaired; 1 if something needs
repair, or cannot be repaired; 3 if the system refused (--apply needs CAP_NET_ADMIN)
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "repair",
        help="add a route for bound sockets where a VPN has left none",
        description="Give bound sockets a route where a VPN has left none by any uplink (Linux).",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="make the repairs")
    what.add_argument("--undo", action="store_true", help="remove every repair, whoever made it")
    add_json(parser)
    add_decision_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.undo and preferences(arguments) != Preferences():
        arguments.parser.error("--undo removes repairs whatever the preferences: only --interface and --family limit it")
    asked = factory(arguments)
    wanted = families(arguments)
    administration = asked.kernel.administration
    if administration is None:
        return fail("repair needs Linux: this system has no policy rules", Exit.SYSTEM)
    repairs = administration.repairs(kept=True)
    try:
        network = asked.kernel.network()
        if arguments.undo:
            return _undo(arguments, network, repairs)
        refusal = _why_not(arguments.interface, network, asked.preferences, wanted) if arguments.interface is not None else None
        if refusal is not None:
            return fail(refusal, Exit.NO)
        planned = plan(
            network,
            asked.preferences,
            repairs.existing(),
            administration.gateway,
            interface=arguments.interface,
            families=wanted,
        )
        if arguments.apply:
            for repair in planned.remove:
                repairs.remove(repair)
            for repair in planned.make:
                repairs.make(repair)
        existing = [repair for repair in repairs.existing() if _is_asked_for(repair, arguments.interface, network, wanted)]
    except PermissionError as error:
        option = "--undo" if arguments.undo else "--apply"
        return fail(f"the system refused ({error.strerror}): {option} needs CAP_NET_ADMIN, so run it as root", Exit.SYSTEM)
    finally:
        repairs.close()
        asked.kernel.close()
    _show(arguments, planned, existing)
    undone = planned.impossible or ((planned.make or planned.remove) and not arguments.apply)
    return Exit.NO if undone else Exit.OK


def _is_asked_for(repair: Repair, name: str | None, network: Network, wanted: Sequence[socket.AddressFamily]) -> bool:
    interface = network.named(name) if name is not None else None
    return repair.family in wanted and (name is None or repair.interface == (interface.name if interface is not None else name))


def _why_not(name: str, network: Network, preferences: Preferences, wanted: Sequence[socket.AddressFamily]) -> str | None:
    """Why the only interface to use gets no repair; ``None`` if it may get one."""
    interface = network.named(name)
    if interface is None:
        return no_such_interface(name, network)
    refusals = [why_unusable(interface, family, preferences) for family in wanted]
    reasons = dict.fromkeys(refusal.reason for refusal in refusals if refusal is not None)
    return f"{name} {' and '.join(reasons)}: it gets no route" if None not in refusals else None


def _undo(arguments: argparse.Namespace, network: Network, repairs: Repairs) -> int:
    name = arguments.interface
    interface = network.named(name) if name is not None else None
    count = repairs.remove_all(interface=interface.name if interface is not None else name, families=families(arguments))
    if name is not None and interface is None and not count:
        return fail(f"there is no interface {name}, and no repair of it", Exit.NO)
    if arguments.json:
        document({"removed": count})
    else:
        Printer().line(f"removed {count} rules and routes" if count else "there was nothing to undo")
    return Exit.OK


def _show(arguments: argparse.Namespace, planned: Plan, existing: Any) -> None:
    if arguments.json:
        document(
            {
                "applied": arguments.apply,
                "make": [_document(repair) for repair in planned.make],
                "remove": [_document(repair) for repair in planned.remove],
                "impossible": [
                    {"interface": i.interface, "family": family_name(i.family), "reason": str(i)} for i in planned.impossible
                ],
                "existing": [_document(repair) for repair in existing],
            }
        )
        return
    printer = Printer()
    verb = "made" if arguments.apply else "would make"
    for repair in planned.remove:
        printer.line(f"{'removed' if arguments.apply else 'would remove'} the repair of {_named(repair)}: it is not needed now")
    for repair in planned.make:
        printer.line(f"{verb} a route for {_named(repair)}; {repair.gateway.named_by} names the gateway", GOOD)
        printer.lines((f"  {command}" for command in repair.commands()), "dim")
    for impossible in planned.impossible:
        printer.line(str(impossible), BAD)
    if not (planned.make or planned.remove or planned.impossible):
        held = f"; repairs in place: {len(existing)}" if existing else ""
        printer.line(f"nothing needs repair{held}", GOOD)
    elif planned.make and not arguments.apply:
        printer.line("nothing has been changed; to make the repairs: bindsock repair --apply")


def _named(repair: Repair) -> str:
    return f"{repair.interface} by {repair.gateway.address} ({family_name(repair.family)})"


def _document(repair: Repair) -> dict[str, Any]:
    return {
        "interface": repair.interface,
        "family": family_name(repair.family),
        "gateway": str(repair.gateway.address),
        "named_by": repair.gateway.named_by,
        "table": repair.table,
        "commands": repair.commands(),
    }
