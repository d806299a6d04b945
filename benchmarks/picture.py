"""Draws the ratios: a dot for each row on a logarithmic scale, in a light and a dark version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import Row, Spread
from .report import Report

_WIDTH = 10.0
"""Inches."""
_ROW = 0.26
_LEAST = 0.02
"""The beginning of the scale; smaller ratios are drawn as an arrow."""
_HEADING = 1.4
"""The height of a group's title, in rows."""


@dataclass(frozen=True, slots=True)
class _Colours:
    text: str
    quiet: str
    background: str
    dear: str
    cheap: str
    limit: str


_THEMES = {
    "": _Colours("#1f2328", "#8c959f", "#ffffff", "#bc4c00", "#0969da", "#1a7f37"),
    "-dark": _Colours("#e6edf3", "#7d8590", "#131416", "#f0883e", "#58a6ff", "#3fb950"),
}


def draw(report: Report, directory: Path, name: str = "ratios") -> list[Path]:
    """Write ``NAME.svg`` and ``NAME-dark.svg``.

    :raises ImportError: matplotlib is not installed
    :raises ValueError: no row has a ratio
    """
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures give the same file.
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bindsock",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
        "font.size": 9,
    }
    groups = _with_ratios(report)
    if not groups:
        raise ValueError("no row has a ratio")
    paths = []
    for suffix, colours in _THEMES.items():
        with matplotlib.rc_context(settings):
            path = directory / f"{name}{suffix}.svg"
            _draw(groups, colours, path)
            paths.append(path)
    return paths


def _with_ratios(report: Report) -> list[tuple[str, list[tuple[Row, Spread]]]]:
    groups = [(title, [(row, row.cost) for row in rows if row.cost is not None]) for title, rows in report.groups.items()]
    return [(title, rows) for title, rows in groups if rows]


def _draw(groups: list[tuple[str, list[tuple[Row, Spread]]]], colours: _Colours, path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    height = sum(_HEADING + len(rows) for _, rows in groups)
    figure, axes = pyplot.subplots(figsize=(_WIDTH, height * _ROW + 0.9), facecolor=colours.background)
    axes.set_facecolor(colours.background)
    axes.set_xscale("log")
    axes.axvline(1.0, color=colours.quiet, linewidth=1)
    at, marks, words = 0.0, [], []
    for title, rows in groups:
        axes.annotate(
            title,
            (0, at + _HEADING - 1.05),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontweight="bold",
            color=colours.text,
        )
        at += _HEADING
        for row, cost in rows:
            _dot(axes, at, row, cost, colours)
            marks.append(at)
            words.append(f"{row.name.strip()}  /  {row.beside}")
            at += 1
    axes.set_yticks(marks, words, color=colours.text)
    costs = [cost for _, rows in groups for _, cost in rows]
    axes.set_xlim(max(_LEAST, min(cost.low for cost in costs) / 1.5), max(1.0, *(cost.high for cost in costs)) * 1.5)
    axes.set_ylim(at - 0.3, -0.5)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="both", colors=colours.quiet, length=0)
    axes.tick_params(axis="y", labelcolor=colours.text)
    axes.tick_params(axis="x", labelcolor=colours.text, labeltop=True)
    axes.grid(axis="x", color=colours.quiet, alpha=0.25, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(
        "cost beside its counterpart: 1× is as dear, left of it is cheaper\nline: 10th to 90th percentile; green bar: the aim",
        color=colours.text,
    )
    figure.savefig(path, bbox_inches="tight", facecolor=colours.background, metadata={"Date": None})
    pyplot.close(figure)


def _dot(axes: Any, at: float, row: Row, cost: Spread, colours: _Colours) -> None:
    colour = colours.dear if cost.median > 1.0 else colours.cheap
    beyond = cost.median < _LEAST
    axes.plot([cost.low, cost.high], [at, at], color=colour, linewidth=2, alpha=0.5, solid_capstyle="round")
    axes.plot([max(cost.median, _LEAST)], [at], marker="<" if beyond else "o", markersize=5, color=colour, clip_on=not beyond)
    if row.ratio_limit is not None:
        axes.plot([row.ratio_limit], [at], marker="|", markersize=11, markeredgewidth=2, color=colours.limit)
    axes.annotate(
        f"1/{1 / cost.median:,.0f}" if cost.median < 0.01 else f"{cost.median:.2g}×",
        (max(cost.high, row.ratio_limit or 0.0, _LEAST), at),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colours.text,
    )
