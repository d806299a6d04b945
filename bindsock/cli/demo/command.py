"""``bindsock demo``: runs its three acts, and tells whether every fact held."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsock import kernel as kernels
from bindsock.cli import documents, routes, values
from bindsock.cli.completion import FILE, completed_by
from bindsock.cli.demo import facts, loop, machine, report
from bindsock.cli.demo.rendering import Display
from bindsock.cli.demo.scenario import DURATION, PREFERENCES, STEPS, UPLINKS, cling
from bindsock.cli.demo.timeline import svg
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_json, fail
from bindsock.cli.output import NEEDS_RICH, Printer, document
from bindsock.dial import waiting
from bindsock.factory import TransportFactory
from bindsock.model.network import MAIN_TABLE, Network
from bindsock.testing.lab import Lab, LabUnavailable, available, enter_user_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.cli.demo.facts import Fact

_NAMESPACES = Path("/proc/self/ns/net")
_EPILOG = """\
Without a HOST, on Linux: the demonstration runs in network namespaces of its own and does
not touch this machine's network. It needs root, or a user who may create user namespaces,
and takes about half a minute.

With a HOST, and on other systems: it shows the machine's own interfaces, the decision, and
a connection to the host by bindsock and by asyncio.

examples:
  bindsock demo
  bindsock demo --svg timeline.svg
  bindsock demo --json | jq '.facts[] | select(.held | not)'
  bindsock demo example.com --port 443

exit status: 0 if every fact held; 1 if one did not; 3 if it cannot run here; 130 after
Ctrl-C
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="a demonstration",
        description="Show what bindsock does: a VPN has the default route, uplinks come and go, connections bypass the VPN.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "host", metavar="HOST", nargs="?", type=values.host, help="connect to this host, with the machine's own network"
    )
    parser.add_argument("--port", type=values.port, default=443, help="TCP port of the host (default: 443)")
    picture = parser.add_argument("--svg", metavar="FILE", type=_writable, help="save the timeline as a picture")
    completed_by(picture, FILE)
    add_json(parser, "print the facts and all numbers as one JSON document; progress goes to standard error")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    display = Display(sys.stderr if arguments.json else sys.stdout)
    if arguments.host is not None or not _NAMESPACES.exists():
        if arguments.svg is not None:
            return fail("--svg needs the laboratory: Linux, and no HOST", Exit.USAGE)
        printer = Printer(sys.stderr if arguments.json else sys.stdout)
        shown, found = waiting.run(machine.show(printer, arguments.host, arguments.port))
    else:
        try:
            enter_user_namespace()
            obstacle = available(vpn=True)
            if obstacle is not None:
                raise LabUnavailable(obstacle)
            with Lab(uplinks=UPLINKS) as lab, lab.inside():
                shown, found = asyncio.run(_acts(lab, display, arguments.svg))
        except LabUnavailable as unavailable:
            return fail(f"{unavailable}; `bindsock demo HOST` shows a connection without a laboratory", Exit.SYSTEM)
    held = all(fact.held for fact in shown)
    if arguments.json:
        document({**report.facts_document(shown), **found})
    else:
        _show_facts(display, shown)
    return Exit.OK if held else Exit.NO


async def _acts(lab: Lab, display: Display, picture: Path | None) -> tuple[list[Fact], dict[str, Any]]:
    if not display.live and sys.stdout.isatty():
        display.tell(NEEDS_RICH, "dim")
    shown: list[Fact] = []
    found: dict[str, Any] = {}
    display.title("1. A VPN owns the default route")
    shown += await _routes(lab, display, found)
    display.title("2. The loop: the VPN client's own socket")
    shown += await _loop(lab, display, found)
    display.title("3. The cling: uplinks come and go, the VPN stays")
    shown += await _cling(lab, display, found, picture)
    return shown, found


async def _routes(lab: Lab, display: Display, found: dict[str, Any]) -> list[Fact]:
    server = lab.server.ipv4
    lab.vpn_up("metric")
    try:
        kernel = kernels.current()
        network = kernel.network()
        for line in _route_lines(kernel, network):
            display.tell(f"  {line}")
        factory = TransportFactory(PREFERENCES, kernel=kernel)
        decision = factory.explain(server)
        display.tell(f"\n$ bindsock explain --expensive 'wwan*' {server}", "bold")
        for line in str(decision).splitlines():
            display.tell(line)
        with lab.tap(protocol="udp", address=server) as tap:
            for bound in (False, True):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    if bound:
                        factory.bind(sock, server)
                    sock.sendto(b"which way?", (server, lab.server.udp_port))
            plain, ours = (packet.interface for packet in tap.packets)
        display.tell(f"\nA datagram of a plain socket left by {plain}, one of a socket bound with bindsock")
        display.tell(f"by {ours}.")
    finally:
        lab.vpn_down()
    found["explain"] = documents.decision(decision)
    return facts.of_routes(plain, ours, decision, UPLINKS[0])


async def _loop(lab: Lab, display: Display, found: dict[str, Any]) -> list[Fact]:
    display.tell("A VPN client sends each packet of the tunnel to the VPN server, in a datagram.")
    results = {}
    for name, run_client in (("unbound", loop.unbound), ("bound with bindsock", loop.bound)):
        result = results[name] = await run_client(lab)
        display.tell(f"  {name + ':':<20} {result.reentered:,} of its own packets came back out of the tunnel")
        gave_up = "then it gave up; " if result.stopped else ""
        display.tell(f"  {'':<20} {gave_up}{result.answered} of {result.sent} pings through the VPN were answered")
    found["loop"] = {name.partition(" ")[0]: loop.as_document(result) for name, result in results.items()}
    return facts.of_loop(*results.values())


async def _cling(lab: Lab, display: Display, found: dict[str, Any], picture: Path | None) -> list[Fact]:
    display.tell("Three times the same program: 200 datagrams a second, and reports over TCP.")
    display.tell("  bindsock        sockets by bindsock: they follow the effective interface")
    display.tell("  plain asyncio   sockets by asyncio: they follow the routes, into the tunnel")
    display.tell("  bound by hand   sockets by asyncio, bound to what is effective at the start")
    display.tell(f"The uplinks change {len(STEPS)} times in {DURATION:.0f} seconds; the VPN stays up.\n")
    with display:
        seen = await cling(lab, display)
    display.tell("\nBy which interface the packets left, and the longest time without an answer:\n")
    for line in report.traffic_table(seen):
        display.tell(line)
    display.tell("\nFrom the kernel's event to the first packet on the new interface (by UDP, unless")
    display.tell("told otherwise; a datagram is due every 5 ms):\n")
    for line in report.switch_table(seen):
        display.tell(line)
    if picture is not None:
        picture.write_text(svg(seen), encoding="utf-8")  # noqa: ASYNC240 - nothing else runs any more
        display.tell(f"\nthe timeline is in {picture}")
    found["cling"] = report.observation_document(seen)
    return facts.of_cling(seen)


def _show_facts(display: Display, shown: Sequence[Fact]) -> None:
    display.title("The facts")
    for line, style in report.fact_lines(shown):
        display.tell(line, style)
    failed = sum(not fact.held for fact in shown)
    display.tell("")
    if failed:
        display.tell(f"{failed} of {len(shown)} facts did not hold", "bold red")
    else:
        display.tell(f"all {len(shown)} facts held", "bold green")


def _route_lines(kernel: kernels.Kernel, network: Network) -> list[str]:
    """The IPv4 routes of the main table, defaults first."""
    found = kernel.routes(socket.AF_INET, MAIN_TABLE)
    return [routes.line(r, network) for r in sorted(found, key=lambda r: (not r.is_default, r.metric))]


def _writable(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: there is no such directory")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it is a directory")
    return path
