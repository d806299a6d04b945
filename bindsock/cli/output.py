"""Text for people: aligned columns, and a little colour where there is a terminal, rich is installed and nobody objects."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Told apart by people who do not tell red from green; what they say stands in the text as well.
GOOD, BAD, WARN, DIM = "cyan", "red", "yellow", "dim"

_LEAST_WIDTH = 20
_HANGING = re.compile(r" *(?:[+-] \S+ +)?")
"""What continued lines are indented by: a reason goes on beneath its beginning."""

NEEDS_RICH = 'for colour and a live display: pip install "bindsock[cli]"'


def terminal(file: TextIO) -> Console | None:
    """A rich console on the file, ``None`` if it is no terminal that can do more than print, or rich is not installed."""
    if not file.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=file, highlight=False, markup=False, emoji=False)


class Printer:
    """Prints lines, with a style where the file is a terminal.

    :param file: where to
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file if file is not None else sys.stdout
        self.console: Any | None = terminal(self._file)

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line, and let whoever reads it have it at once.

        :param style: what rich calls a style
        """
        if self.console is None:
            print(text, file=self._file, flush=True)
        else:
            self.console.print(text, style=style or None, soft_wrap=True)

    def entry(self, text: str, style: str = "") -> None:
        """Print one line, broken between words to the present width where the file is a terminal.

        :param style: what rich calls a style
        """
        if self._file.isatty():
            hanging = _HANGING.match(text)
            indent = hanging.end() if hanging is not None else 0
            width = max(_width(self._file), indent + _LEAST_WIDTH)
            text = textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        self.line(text, style)

    def lines(self, lines: Iterable[str], style: str = "") -> None:
        for line in lines:
            self.line(line, style)


def _width(file: TextIO) -> int:
    """The present width of a terminal, which an exported ``COLUMNS`` does not know after it was resized."""
    try:
        return os.get_terminal_size(file.fileno()).columns or shutil.get_terminal_size().columns
    except OSError:  # it has no descriptor
        return shutil.get_terminal_size().columns


def document(value: Any, file: TextIO | None = None) -> None:
    """Print one JSON document.

    :param file: where to; standard output unless given
    """
    print(json.dumps(value, indent=2, ensure_ascii=False), file=file)


def json_line(value: Any) -> None:
    """Print a JSON document on a line of its own, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Align the cells of rows that have the same number of them.

    :param right: the columns that are aligned at their right
    """
    if not rows:
        return []
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
