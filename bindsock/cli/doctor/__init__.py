"""``bindsock doctor``: a report of what is wrong, to be pasted into a bug report."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Mapping
from typing import Any

from bindsock.cli import values
from bindsock.cli.doctor.advice import advice
from bindsock.cli.doctor.examination import Examination
from bindsock.cli.doctor.probing import Target, probe
from bindsock.cli.doctor.redaction import Redaction
from bindsock.cli.doctor.showing import show
from bindsock.cli.doctor.system import usable_servers
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_decision_options, add_json, factory, families
from bindsock.cli.output import Printer, document
from bindsock.dial import waiting
from bindsock.factory import connector_of
from bindsock.model.network import family_name

_HOST = "example.com"
_MOST_PROBES = 16

_EPILOG = """\
It changes nothing and needs no privilege; the report says what only root could read. The
probe looks up HOST and connects to it by each uplink, over IPv4 and IPv6; the default HOST
is example.com. With --redact every address and HOST are replaced, each always by the same
value, so that you can show the report to others.

examples:
  bindsock doctor
  bindsock doctor --redact git.example.com > report.txt
  sudo bindsock doctor --port 22 git.example.com
  bindsock doctor --json --no-probe | jq -r '.advice[]'

exit status: 0 if a connection was made by an uplink, or by the one that --interface names
(without a probe: if there is an effective interface, or that one has a default route), 1 if not
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="report what is wrong and what to do, for a bug report",
        description="Report who has the default route and how, the uplinks, firewalls and filters, and probe each uplink.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "host",
        metavar="HOST",
        nargs="?",
        type=values.host,
        default=_HOST,
        help="a name or an address to connect to (%(default)s)",
    )
    parser.add_argument("--port", type=values.port, default=443, help="the TCP port to connect to (%(default)s)")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=values.seconds, default=5.0, help="of each step of the probe (%(default)s)"
    )
    parser.add_argument("--no-probe", action="store_true", help="do not probe, send nothing")
    parser.add_argument("--redact", action="store_true", help="replace addresses and HOST")
    add_json(parser)
    add_decision_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    asked = factory(arguments)
    with connector_of(asked).asking() as decider:
        report = Examination(asked.kernel, decider, families(arguments)).report()
    target = Target(arguments.host, arguments.port, arguments.timeout)
    probes = []
    if not arguments.no_probe:
        uplinks = _to_probe(report)
        servers = usable_servers(report["names"]["servers"])
        probes = waiting.run(probe(uplinks, target, asked.preferences, servers))
    report |= {"target": {"host": target.host, "port": target.port}, "probes": probes}
    report["advice"] = advice(report, probed=not arguments.no_probe)
    status = Exit.OK if _works(report, probed=not arguments.no_probe) else Exit.NO
    if arguments.redact:
        report = Redaction([] if target.numeric_family is not None else [target.host]).document(report)
    if arguments.json:
        document(report)
    else:
        show(Printer(), report)
    return status


def _to_probe(report: Mapping[str, Any]) -> list[tuple[str, socket.AddressFamily]]:
    numbers = {family_name(family): family for family in (socket.AF_INET, socket.AF_INET6)}
    pin = report["pinned"]
    found = [
        (uplink["name"], numbers[family["family"]])
        for uplink in report["uplinks"]
        for family in uplink["families"]
        if family["fit"] and (pin is None or pin["name"] == uplink["name"])
    ]
    return found[:_MOST_PROBES]


def _works(report: Mapping[str, Any], *, probed: bool) -> bool:
    if probed:
        return any(p["tcp"] is not None and p["tcp"]["error"] is None for p in report["probes"])
    pin = report["pinned"]
    if pin is not None:
        return any(f["usable"] for uplink in report["uplinks"] if uplink["name"] == pin["name"] for f in uplink["families"])
    return any(decision["interface"] is not None for decision in report["effective"])
