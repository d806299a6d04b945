"""The results of a benchmark: rows of figures, each with the figure that it is compared with."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, and their spread."""

    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1.0) -> Self:
        """The median and the 10th and 90th percentiles.

        :raises ValueError: fewer than two rounds
        """
        scaled = sorted(v * scale for v in values)
        if len(scaled) < 2:
            raise ValueError("a spread needs at least two rounds")
        deciles = statistics.quantiles(scaled, n=10, method="inclusive")
        return cls(statistics.median(scaled), deciles[0], deciles[-1], len(scaled))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    name: str
    """What was measured, and with how large a network or program."""
    unit: str
    ours: Spread | None = None
    beside: str = ""
    """What it is compared with."""
    theirs: Spread | None = None
    ratio: Spread | None = None
    """Our figure divided by the other one, for each round, since a busy machine slows both halves of a round."""
    rate: bool = False
    """Whether a larger figure is better, such as connections a second."""
    ratio_limit: float | None = None
    """The aim for the median of the ratio, as an upper limit."""
    limit: float | None = None
    """The aim for the median of our figure, as an upper limit."""
    skipped: str = ""
    """Why there are no figures."""

    @property
    def cost(self) -> Spread | None:
        """The ratio as a cost: above 1, bindsock is more expensive, also for rates."""
        if self.ratio is None or not self.rate:
            return self.ratio
        return Spread(1 / self.ratio.median, 1 / self.ratio.high, 1 / self.ratio.low, self.ratio.rounds)

    @property
    def within(self) -> bool | None:
        """Whether the limits are kept; ``None`` if there are none or no figures."""
        if self.ours is None or (self.ratio_limit is None and self.limit is None):
            return None
        kept = self.limit is None or self.ours.median <= self.limit
        return kept and (self.ratio_limit is None or (self.cost is not None and self.cost.median <= self.ratio_limit))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        spreads = {key: Spread(**document[key]) for key in ("ours", "theirs", "ratio") if document[key] is not None}
        return cls(**{**document, **spreads})


def alone(
    name: str, unit: str, values: Sequence[float], *, scale: float = 1.0, limit: float | None = None, rate: bool = False
) -> Row:
    """A row without a comparison."""
    return Row(name, unit, Spread.of(values, scale), limit=limit, rate=rate)


def compared(
    name: str,
    unit: str,
    ours: Sequence[float],
    beside: str,
    theirs: Sequence[float],
    *,
    scale: float = 1.0,
    rate: bool = False,
    ratio_limit: float | None = None,
    limit: float | None = None,
) -> Row:
    """A row with a comparison, from rounds in which both were measured in turn.

    :param scale: the factor that converts the values to the unit
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(name, unit, Spread.of(ours, scale), beside, Spread.of(theirs, scale), Spread.of(ratios), rate, ratio_limit, limit)


def skipped(name: str, reason: str) -> Row:
    """A row that could not be measured here."""
    return Row(name, "", skipped=reason)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1g}"
