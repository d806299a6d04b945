"""Text for people: aligned columns, and some colour if the output is a terminal and rich is installed."""

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

# Colours that people with red-green blindness can distinguish. The text always says the same.
GOOD, BAD, WARN, DIM = "cyan", "red", "yellow", "dim"

_LEAST_WIDTH = 20
_HANGING = re.compile(r" *(?:[+-] +\S+ +)?")
"""The part of a line that determines the indent of its continuation."""

NEEDS_RICH = 'for colour and a live display: pip install "bindsock[cli]"'


def terminal(file: TextIO) -> Console | None:
    """A rich console for the file; ``None`` if it is no terminal, the terminal is dumb, or rich is not installed."""
    if not file.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=file, highlight=False, markup=False, emoji=False)


class Printer:
    """Prints lines, with a style if the file is a terminal.

    :param file: the file; standard output by default
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file if file is not None else sys.stdout
        self.console: Any | None = terminal(self._file)

    @property
    def width(self) -> int | None:
        """The present width of the terminal; ``None`` if the file is no terminal."""
        return _width(self._file) if self._file.isatty() else None

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line and flush it.

        :param style: a style of rich
        """
        if self.console is None:
            print(text, file=self._file, flush=True)
        else:
            self.console.print(text, style=style or None, soft_wrap=True)

    def entry(self, text: str, style: str = "") -> None:
        """Print one line, wrapped to the present width if the file is a terminal.

        :param style: a style of rich
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
    """The present width of a terminal. An exported ``COLUMNS`` would be wrong after a resize."""
    try:
        return os.get_terminal_size(file.fileno()).columns or shutil.get_terminal_size().columns
    except OSError:  # it has no descriptor
        return shutil.get_terminal_size().columns


def document(value: Any, file: TextIO | None = None) -> None:
    """Print one JSON document.

    :param file: the file; standard output by default
    """
    print(json.dumps(value, indent=2, ensure_ascii=False), file=file)


def json_line(value: Any) -> None:
    """Print a JSON document on one line, and flush it."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Align the cells of rows, which must have the same number of cells.

    :param right: the numbers of the columns that are aligned to the right
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
