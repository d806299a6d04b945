"""Figures: what was measured, as medians with their spread, and ratios of pairs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    name: str
    unit: str
    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""
    runs: int
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name:<58} {self.median:>9.3g} {self.unit:<5}"
            f" ({self.low:.3g} to {self.high:.3g}, n={self.runs}){'  ' + self.note if self.note else ''}"
        )


def figure(name: str, values: Sequence[float], unit: str, *, scale: float = 1.0, note: str = "") -> Figure:
    """The median and the 10th and 90th percentiles of what was measured."""
    scaled = sorted(v * scale for v in values)
    if len(scaled) < 2:
        raise ValueError(f"{name}: a figure needs at least two runs")
    deciles = statistics.quantiles(scaled, n=10, method="inclusive")
    return Figure(name, unit, statistics.median(scaled), deciles[0], deciles[-1], len(scaled), note)


def paired(name: str, ours: Sequence[float], theirs: Sequence[float], *, note: str = "") -> Figure:
    """The ratio of runs made in turn, so that a busy machine slows both."""
    return figure(name, [a / b for a, b in zip(ours, theirs, strict=True)], "x", note=note)
