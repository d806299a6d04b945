"""Shell completion, by scripts that shtab generates."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bindsock.extras import needs

SHELLS = ("bash", "zsh", "tcsh")
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""The ``how`` of :func:`completed_by` for a file name."""
INTERFACE = {"bash": "_bindsock_interfaces", "zsh": "_net_interfaces"}
"""The ``how`` of :func:`completed_by` for the name of an interface."""
_PREAMBLE = {"bash": '_bindsock_interfaces() { compgen -W "$(ls /sys/class/net 2>/dev/null || ifconfig -l)" -- "$1"; }\n'}


def completed_by(action: argparse.Action, how: Mapping[str, str]) -> None:
    """Let the shell complete the value of an option.

    :param how: the name of the completing function for each shell
    """
    action.complete = how  # type: ignore[attr-defined]


class PrintCompletion(argparse.Action):
    """Prints the completion script for a shell. shtab is only imported here."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        try:
            with needs("completion"):
                import shtab
        except ModuleNotFoundError as error:
            parser.exit(3, f"bindsock: {error}\n")
        print(shtab.complete(parser, shell=values, preamble=_PREAMBLE.get(values, "")))
        parser.exit()
