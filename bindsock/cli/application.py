"""The argument parser, and the entry point, which turns errors into one line on standard error and an exit status."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bindsock.cli.completion import SHELLS, PrintCompletion
from bindsock.cli.formatting import HelpFormatter
from bindsock.cli.options import Exit, fail
from bindsock.errors import NoEffectiveInterface, UnsupportedSystem

COMMANDS = ("status", "explain", "watch", "doctor", "repair", "run", "proxy", "demo")
"""Each is a module of this package with a function ``add_parser()``."""
_EPILOG = """\
exit status:
  0    success: there is an effective interface, every fact held
  1    failure: no interface may be used, a name has no address, a fact failed
  2    wrong usage
  3    this system is not supported, or a system call failed
  130  ended by Ctrl-C
  141  the reader of the output has closed it

examples:
  bindsock status                      the interfaces, and which one is effective
  bindsock explain example.com         by which interface a connection would leave, and why
  bindsock watch --json                one line of JSON for each change
  bindsock doctor                      what is wrong, for a bug report
  bindsock repair                      add a route where a VPN has left none (Linux)
  bindsock run -- python app.py        run an unmodified program, bypassing the VPN
  bindsock proxy                       SOCKS5 and HTTP for programs that do not use bindsock
  bindsock demo                        a demonstration, in network namespaces of its own

completion: put  source <(bindsock --print-completion bash)  into ~/.bashrc; it needs
pip install "bindsock[completion]"
"""


def parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line.

    :param names: its commands; the modules of others are not imported, which would take longer than most commands
    """
    result = _Parser(
        prog="bindsock",
        description="Connections that leave by the effective network interface, bypassing VPN tunnels, and stay on it.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    result.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    result.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        help="print a script that completes the command line, and exit",
    )
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f"bindsock.cli.{name}").add_parser(commands)
    for command_parser in commands.choices.values():
        command_parser.set_defaults(command_parser=command_parser)
    return result


def refuse_unknown(command: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """End the process with an error that names the nearest option.

    :param command: the parser of the command
    :param unknown: the arguments that it does not know
    """
    message = f"unrecognized arguments: {' '.join(unknown)}"
    options = [option for action in command._actions for option in action.option_strings]
    nearest = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
    command.error(f"{message}; did you mean {nearest[0]}?" if nearest else message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    :param argv: the arguments; those of the process by default
    :return: the exit status
    :raises SystemExit: for ``--help``, ``--version`` and usage errors, as argparse does
    """
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows shows question marks
    if argv is None:
        argv = sys.argv[1:]
    arguments, unknown = parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS).parse_known_args(argv)
    if unknown:
        refuse_unknown(arguments.command_parser, unknown)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output again when it exits, which would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except UnsupportedSystem as error:
        return fail(error.message, Exit.SYSTEM)
    except NoEffectiveInterface as error:
        return fail(error.message, Exit.NO)
    except OSError as error:
        return fail(str(error), Exit.SYSTEM)
    return status


def _open_missing_streams() -> None:
    """Replace standard streams that were closed at the start by the null device, whose descriptors no socket can then get."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, it stays open


class _Parser(argparse.ArgumentParser):
    """Names the nearest choice to one that is unknown, as argparse itself does since Python 3.15."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1)
            if nearest and not getattr(self, "suggest_on_error", False):
                error.message += f"; did you mean {nearest[0]}?"
            raise


class _Version(argparse.Action):
    """Prints the version. It is only looked up here, since that takes longer than everything else."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"bindsock {version('bindsock')}")
        parser.exit()
