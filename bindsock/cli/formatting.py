"""The layout of ``--help``."""

from __future__ import annotations

import argparse
import re
import textwrap

_STATUS = re.compile(r"  \d+ +")
"""The beginning of a line about an exit status."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps texts as they are, but wraps paragraphs and exit statuses if the terminal is narrower. Examples are never wrapped,
    since they are to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if all(len(indent + line) <= width for line in text.splitlines()):
            return super()._fill_text(text, width, indent)
        filled: list[str] = []
        paragraph: list[str] = []

        def add(line: str, hanging: int = 0) -> None:
            start, rest = indent, indent + " " * hanging
            filled.append(
                textwrap.fill(
                    line, width, initial_indent=start, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
                )
            )

        for line in [*text.splitlines(), ""]:
            if line and not line[0].isspace() and not line.endswith(":"):
                paragraph.append(line)
                continue
            if paragraph:
                add(" ".join(paragraph))
                paragraph.clear()
            status = _STATUS.match(line)
            if status is not None:
                add(line, status.end())
            else:
                filled.append(indent + line if line else "")
        return "\n".join(filled).rstrip("\n") + "\n"
