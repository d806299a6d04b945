"""``bindsock run``: runs an unmodified program; the connections of its Python code bypass the VPN."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, add_json, add_preferences, add_repair, fail, preferences
from bindsock.cli.output import document
from bindsock.run import ledger
from bindsock.run.beside import proxy_beside, repairs_beside
from bindsock.run.environment import UNLESS, for_children, for_others, is_refused, obstacle, refusal
from bindsock.run.policy import RunPolicy
from bindsock.run.supervising import end_like, run_child
from bindsock.run.table import PATCHES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EPILOG = """\
The program needs no change. Covered are asyncio, uvloop, blocking sockets, trio, gRPC, c-ares, and Python programs that it
starts. Servers, loopback and UNIX sockets are left alone. Not covered are libraries that connect in C, like libpq and libcurl,
and programs that are not Python; --proxy is for the latter. Python with -I, -E or -S is not started. The system resolves names.

examples:
  bindsock run -- python app.py
  bindsock run -m pip download requests
  bindsock run --interface eth0 -- uvicorn app:app
  bindsock run --report -- pytest tests
  bindsock run --proxy -- ./deploy.sh
  sudo bindsock run --repair-routes -- python app.py

exit status: that of the program; 3 if it cannot be covered, 126 or 127 if it cannot be started
"""
_CANNOT_START, _NOT_FOUND = 126, 127
"""The exit statuses that a shell uses (POSIX, 2.8.2 Exit Status for Commands)."""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run a program; the connections of its Python code bypass the VPN",
        description="Run an unmodified program; the connections of its Python code leave by the effective interface.",
        usage="bindsock run [options] [--] PROGRAM [ARGUMENT ...]\n       bindsock run [options] -m MODULE [ARGUMENT ...]",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER, help="the same as -- python -m MODULE")
    parser.add_argument("--quiet", action="store_true", help="do not print what is covered")
    parser.add_argument(
        "--report",
        action="store_true",
        help="at the end, print by which interfaces connections left, what was left alone, and why",
    )
    add_json(parser, "print the report as one JSON document")
    parser.add_argument("--proxy", action="store_true", help="also run a proxy, and set http_proxy and similar variables")
    add_repair(parser)
    add_preferences(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if arguments.module is not None:
        if not arguments.module or command:
            arguments.parser.error("-m needs the name of a module")
        command = [sys.executable, "-m", *arguments.module]
    if not command:
        arguments.parser.error("no program to run")
    if arguments.json and not arguments.report:
        arguments.parser.error("--json needs --report")
    reason = obstacle(command)
    if reason is not None and is_refused(reason):
        return fail(refusal(reason), Exit.SYSTEM)
    policy = RunPolicy(arguments.interface, preferences(arguments))
    try:
        if arguments.report or arguments.proxy or arguments.repair_routes:
            return _supervise(command, policy, arguments, reason)
        if not arguments.quiet:
            _announce(policy, reason, proxy=False)
        environment = os.environ | for_children(policy, os.environ)
        sys.stderr.flush()
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        return fail(f"{command[0]}: not found{_hint(command[0])}", _NOT_FOUND)
    except OSError as error:
        return fail(f"{command[0]}: {error.strerror or error}{_hint(command[0])}", _CANNOT_START)
    raise AssertionError("execvpe() does not return")


def _hint(program: str) -> str:
    """What to do about a program that could not be started, if it is a file for Python."""
    return f"; did you mean bindsock run -- python {program}?" if program.endswith(".py") and os.path.isfile(program) else ""


def _supervise(command: Sequence[str], policy: RunPolicy, arguments: argparse.Namespace, reason: str | None) -> int:
    with contextlib.ExitStack() as stack:
        if arguments.repair_routes:
            stack.enter_context(repairs_beside(policy))
        if not arguments.quiet:
            _announce(policy, reason, proxy=arguments.proxy)
        journal = stack.enter_context(tempfile.NamedTemporaryFile(prefix="bindsock-run-")).name if arguments.report else None
        proxy = stack.enter_context(proxy_beside(policy)) if arguments.proxy else None
        policy = dataclasses.replace(policy, proxy=proxy, journal=journal)
        environment = os.environ | for_children(policy, os.environ)
        if proxy is not None:
            environment |= for_others(proxy, os.environ)
        status = run_child(command, environment)
        if journal is not None:
            entries = ledger.read_journal(journal)
            if reason is not None:
                detail = f"{reason}; Python programs that it starts are covered, {UNLESS}"
                entries[ledger.Entry("left alone", "programs", detail)] += 1
            _report(entries, as_json=arguments.json)
    return end_like(status)


def _announce(policy: RunPolicy, reason: str | None, *, proxy: bool) -> None:
    covered = ", ".join(patch.covers for patch in PATCHES)
    try:
        way = f"connections leave by {policy.factory().effective_interface().name} now"
    except OSError as error:
        way = f"no connection can be made now ({error})"
    print(f"bindsock: {way}; covered: {covered}", file=sys.stderr)
    if reason is not None:
        what = "it has the proxy's address in http_proxy" if proxy else "its own connections are not covered (see --proxy)"
        print(f"bindsock: {reason}: {what}; Python programs that it starts are covered, {UNLESS}", file=sys.stderr)


def _report(entries: Mapping[ledger.Entry, int], *, as_json: bool) -> None:
    """Print the report on standard error, since standard output belongs to the program."""
    if as_json:
        document({"connections": ledger.document(entries)}, sys.stderr)
        return
    for line in ledger.lines(entries):
        print(f"bindsock: {line}", file=sys.stderr)
