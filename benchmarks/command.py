"""The command line: which benchmarks run, how long, and where the results go."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import isolated, picture
from .report import Report, as_markdown, as_text, this_machine
from .setting import Size
from .suite import BENCHMARKS, Benchmark, chosen

_QUICK = {"rounds": 10, "many": 2_000}
_FULL = {"rounds": 30, "many": 10_000}
_EPILOG = """\
Each figure is a median with its 10th and 90th percentiles. The software that it is compared with was
measured in the same run, in turn, so that other load affects both; the ratio is computed for each round.
Ratios are costs: above 1, bindsock is more expensive.

exit status: 0 if all has been measured, 1 if a benchmark failed, 130 after Ctrl-C, 2 for wrong usage
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what bindsock costs, in network namespaces of this machine (Linux; root or user namespaces).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the main rows, in less than a minute")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="benchmarks to run, such as 'm*' (repeatable)"
    )
    parser.add_argument("--list", action="store_true", help="name the benchmarks, and run none")
    parser.add_argument("--rounds", metavar="N", type=_at_least_two, help="of what takes milliseconds (30; quick: 10)")
    parser.add_argument("--many", metavar="N", type=_at_least_two, help="the large number of endpoints (10,000; quick: 2,000)")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=1800.0, help="the time limit of a benchmark (%(default)g)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="save the results")
    parser.add_argument("--table", metavar="FILE", type=Path, help="save the table of the documentation, in Markdown")
    parser.add_argument(
        "--picture", metavar="DIRECTORY", type=Path, help="save ratios.svg and ratios-dark.svg there (needs matplotlib)"
    )
    parser.add_argument("--show", metavar="FILE", type=Path, help="take the results from a file instead of measuring")
    parser.add_argument(
        "--bindsock", metavar="CHECKOUT", type=Path, help="measure the bindsock of another checkout, with these benchmarks"
    )
    parser.add_argument(
        "--urgent", action="store_true", help="take priority over all other processes, on a shared machine (root)"
    )
    return parser


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise ValueError(text)
    return number


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    benchmarks = chosen(arguments.only, quick=arguments.quick)
    if not benchmarks:
        parser.error(f"no benchmark is called {' or '.join(arguments.only)}: there are {', '.join(b.name for b in BENCHMARKS)}")
    if arguments.list:
        for benchmark in benchmarks:
            print(f"{benchmark.name:<12} {benchmark.title}")
        return 0
    if arguments.urgent and os.geteuid() != 0:
        parser.error("--urgent needs root")
    signal.signal(signal.SIGTERM, isolated.interrupt)
    status = 0
    if arguments.show is not None:
        try:
            report = Report.load(arguments.show)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            parser.error(f"{arguments.show}: {exc}")
        for title, rows in report.groups.items():
            print(f"\n{title}")
            for row in rows:
                print(f"  {as_text(row)}")
    else:
        report = Report(this_machine())
        defaults = _QUICK if arguments.quick else _FULL
        size = Size(arguments.quick, arguments.rounds or defaults["rounds"], arguments.many or defaults["many"])
        try:
            status = _measure(benchmarks, size, report, arguments)
        except KeyboardInterrupt:
            print("interrupted; what has been measured so far is kept", file=sys.stderr)
            status = 130
    if report.groups:
        _save(report, arguments)
    return status


def _measure(benchmarks: list[Benchmark], size: Size, report: Report, arguments: argparse.Namespace) -> int:
    status = 0
    begun = time.monotonic()
    for number, benchmark in enumerate(benchmarks, start=1):
        began = time.monotonic()
        print(f"[{number}/{len(benchmarks)}] {benchmark.name}: {benchmark.title}", file=sys.stderr, flush=True)
        rows = report.groups.setdefault(benchmark.title, [])
        print(f"\n{benchmark.title}", flush=True)
        try:
            measured = isolated.run(
                benchmark, size, timeout=arguments.timeout, bindsock=arguments.bindsock, urgent=arguments.urgent
            )
            with contextlib.closing(measured):
                for row in measured:
                    rows.append(row)
                    print(f"  {as_text(row)}", flush=True)
        except isolated.Failed as exc:
            print(f"  {exc}", file=sys.stderr, flush=True)
            status = 1
        finally:
            if not rows:
                del report.groups[benchmark.title]
        took, all_in_all = time.monotonic() - began, time.monotonic() - begun
        print(f"      {took:.0f} s; {all_in_all:.0f} s so far", file=sys.stderr, flush=True)
    return status


def _save(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        report.save(arguments.json)
    if arguments.table is not None:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(as_markdown(report), encoding="utf-8")
    if arguments.picture is not None:
        arguments.picture.mkdir(parents=True, exist_ok=True)
        try:
            picture.draw(report, arguments.picture)
        except (ImportError, ValueError) as exc:
            print(f"there is no picture: {exc}", file=sys.stderr)
