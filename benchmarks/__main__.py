"""``make bench-quick``: the first figures, in the laboratory, with the VPN up."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable

from bindsock.testing.lab import Lab, available

from . import connecting, datagrams, reading, recovery, streams
from .acting import Actor
from .figures import Figure


def _loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs of each recovery; connects and readings are 10 times as many")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    arguments = parser.parse_args()
    obstacle = available()
    if obstacle is not None:
        print(f"the laboratory cannot run here: {obstacle}", file=sys.stderr)
        return 3

    result: dict[str, list[Figure]] = {}

    def report(title: str, figures: list[Figure]) -> None:
        result[title] = figures
        if not arguments.json:
            print(f"\n{title}")
            for line in figures:
                print(f"  {line}", flush=True)

    with Lab() as lab, lab.inside():
        report("reading", reading.measure(lab.server.ipv4, arguments.runs * 10))
        lab.vpn_up("metric")
        lab.client_ssl_context()
        with Actor(lab) as actor:
            for name, loop_factory in _loops().items():
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    report(f"recovery on {name}, VPN up", runner.run(recovery.measure(lab, actor, arguments.runs)))
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    report(f"datagrams on {name}, VPN up", runner.run(datagrams.measure(lab, actor, arguments.runs)))
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    report(f"streams on {name}, VPN up", runner.run(streams.measure(lab, actor, arguments.runs)))
        lab.vpn_down()
        for name, loop_factory in _loops().items():
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                report(f"connecting on {name}", runner.run(connecting.measure(lab, arguments.runs * 10)))
    if arguments.json:
        json.dump({title: [dataclasses.asdict(f) for f in figures] for title, figures in result.items()}, sys.stdout, indent=2)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
