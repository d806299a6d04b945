"""Code with an event loop reads the loop's clock, so that a test can control it. Only code without a loop reads the system's."""

from __future__ import annotations

import ast
from pathlib import Path

import bindsock

PACKAGE = Path(bindsock.__file__).parent
CLOCKS = frozenset({"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"})

WITHOUT_LOOP = {
    "netmon/loop.py": "it defines the clock of a loop",
    "netmon/turns.py": "it measures the processor's time, which a test's clock does not show",
    "blocking/lingering_close.py": "blocking sockets belong to threads without a loop",
    "blocking/sockets.py": "blocking sockets belong to threads without a loop",
    "dial/lingering_close.py": "the loop has ended",
    "kernel/linux/mptcp/path_manager.py": "the process ends",
}
MEASURING = ("cli/demo/", "testing/lab/")
"""Modules that run in several processes, which need a common clock."""


def reads_the_clock(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS and ast.unparse(node.value) == "time":
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "time" and CLOCKS & {name.name for name in node.names}:
            return True
    return False


def test_only_what_has_no_event_loop_reads_the_systems_clock() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if reads_the_clock(path)}
    assert {name for name in found if not name.startswith(MEASURING)} == set(WITHOUT_LOOP)
