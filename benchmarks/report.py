"""The results as a document, as text and as a table for the documentation."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .figures import Row, Spread, number

_VERSION = 1


@dataclass(slots=True)
class Report:
    """The results of a run.

    :param machine: the machine it ran on
    :param groups: the rows, by the title of their benchmark
    """

    machine: dict[str, str]
    groups: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report that :meth:`save` wrote.

        :raises OSError: the file cannot be read
        :raises ValueError: it is no report
        """
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document.get("version") != _VERSION:
            raise ValueError(f"{path} is not a report of this version of the benchmarks")
        groups = {title: [Row.from_json(row) for row in rows] for title, rows in document["groups"].items()}
        return cls(document["machine"], groups)

    def save(self, path: Path) -> None:
        groups = {title: [row.to_json() for row in rows] for title, rows in self.groups.items()}
        document = {"version": _VERSION, "machine": self.machine, "groups": groups}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def this_machine() -> dict[str, str]:
    """The properties of the machine that matter, and its present load."""
    load = os.getloadavg()
    processors = os.cpu_count() or 1
    if sys.platform == "linux":
        processors = len(os.sched_getaffinity(0))
    release, _, _ = platform.release().partition("-")
    return {
        "system": f"{platform.system()} {release}",
        "python": platform.python_version(),
        "processors": str(processors),
        "load at the beginning": f"{load[0]:.1f}",
    }


def as_text(row: Row) -> str:
    """One line for a terminal."""
    if row.skipped:
        return f"{row.name}: skipped: {row.skipped}"
    assert row.ours is not None
    text = f"{row.name:<78} {number(row.ours.median):>8} {row.unit:<4}"
    if row.theirs is not None and row.cost is not None:
        text += f" {_times(row.cost)} of {row.beside} ({number(row.theirs.median)} {row.unit})"
    else:
        text += f" ({number(row.ours.low)} to {number(row.ours.high)})"
    return text + _verdict(row)


def _times(spread: Spread) -> str:
    return f"{number(spread.median)} × ({number(spread.low)} to {number(spread.high)})"


def _verdict(row: Row) -> str:
    if row.within is None:
        return ""
    limits = [f"{number(row.ratio_limit)} ×"] if row.ratio_limit is not None else []
    limits += [f"{number(row.limit)} {row.unit}"] if row.limit is not None else []
    return f"  [{'within' if row.within else 'OVER'} {' and '.join(limits)}]"


def as_markdown(report: Report) -> str:
    """The table for the documentation."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [f"Measured on: {machine}.", ""]
    for title, rows in report.groups.items():
        lines += [f"### {title}", "", "| | bindsock | beside it | ratio | aim |", "|---|---|---|---|---|"]
        lines += [_markdown_row(row) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(row: Row) -> str:
    if row.skipped:
        return f"| {row.name} | skipped: {row.skipped} | | | |"
    name = f"… {row.name.strip()}" if row.name.startswith(" ") else row.name
    theirs = f"{row.theirs} {row.unit}, {row.beside}" if row.theirs is not None else ""
    ratio = f"{row.cost} ×" if row.cost is not None else ""
    limits = [f"{number(row.ratio_limit)} ×"] if row.ratio_limit is not None else []
    limits += [f"{number(row.limit)} {row.unit}"] if row.limit is not None else []
    kept = {None: "", True: "≤ {}", False: "≤ {}, **missed**"}[row.within].format(" and ".join(limits))
    return f"| {name} | {row.ours} {row.unit} | {theirs} | {ratio} | {kept} |"
