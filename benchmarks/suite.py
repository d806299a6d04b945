"""The benchmarks, in the order in which they run."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterator
from dataclasses import dataclass

from .figures import Row
from .setting import Size


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A group of rows that is measured in a process of its own.

    :param function: ``module:function``, imported when it is run: of another checkout, something that it needs may be missing
    :param quick: whether it is one of the main groups
    """

    name: str
    title: str
    function: str
    quick: bool = True

    def measure(self, size: Size) -> Iterator[Row]:
        """Measure each row in turn."""
        module, _, name = self.function.partition(":")
        rows: Iterator[Row] = getattr(importlib.import_module(f"{__package__}.{module}"), name)(size)
        return rows


BENCHMARKS = (
    Benchmark("import", "Importing", "importing:measure"),
    Benchmark("connect", "Connecting", "connecting:measure"),
    Benchmark("routes", "Connecting with many routes", "connecting:measure_routes"),
    Benchmark("reading", "Reading the network", "reading:measure"),
    Benchmark("endpoints", "Making datagram endpoints", "endpoints:measure"),
    Benchmark("datapath", "Sending and receiving", "datapath:measure"),
    Benchmark("memory", "Memory", "pieces:measure", quick=False),
    Benchmark("events", "The loop while the network changes", "events:measure"),
    Benchmark("recovery", "After a change of the network, with a VPN up", "recovery:measure"),
    Benchmark("moving", "Moving endpoints", "moving:measure"),
    Benchmark("replacing", "Thousands of streams at once", "replacing:measure", quick=False),
    Benchmark("multipath", "Multipath", "multipath:measure", quick=False),
    Benchmark("proxy", "The proxy", "proxying:measure", quick=False),
)


def chosen(patterns: list[str], *, quick: bool) -> list[Benchmark]:
    """The benchmarks whose names match a pattern, all if there are none; with ``quick`` only the main ones."""
    return [b for b in BENCHMARKS if (any(fnmatch.fnmatch(b.name, p) for p in patterns) if patterns else b.quick or not quick)]
