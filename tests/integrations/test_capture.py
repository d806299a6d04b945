"""The table of docs/capture.md, measured again."""

from __future__ import annotations

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import capture
from tests.integrations.probes import PROBES, By, Probe
from tests.integrations.servers import Servers

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.run.__name__)
def test_each_row_of_the_capture_table_is_what_is_measured(lab: Lab, servers: Servers, probe: Probe) -> None:
    if not probe.can_run:
        pytest.skip(f"{probe.needs} is not installed: make does")
    results = {loop: capture.measure(lab, servers, probe, loop) for loop in capture.LOOPS}
    for loop, result in results.items():
        binds = probe.by is By.INTEGRATION or (probe.by is By.LOOP and "bindsock" in loop)
        missing = "uvloop" in loop and "sock_sendto" in probe.name
        assert result == ("n/a" if missing else "bound" if binds else "leaks"), loop
    written = capture.read(capture.written())
    assert {loop: written[probe.name, loop] for loop in capture.LOOPS} == results


def test_the_column_of_bindsock_run_is_what_is_measured(lab: Lab, servers: Servers) -> None:
    results = capture.measure_under_run(lab, servers)
    assert [name for name, result in results.items() if result != "bound"] == [
        "psycopg, async (libpq)",
        "zeroconf, multicasts by `InterfaceChoice.Default`",
    ]
    written = capture.read(capture.written())
    assert {probe.name: written[probe.name, capture.RUN] for probe in PROBES if probe.can_run} == results


def test_the_capture_table_has_a_row_for_each_library_and_counts_them() -> None:
    written = capture.written()
    assert written == capture.table(capture.read(written))


@pytest.mark.parametrize(
    ("column", "shown"), [("`bindsock.EventLoop`", "bindsock.EventLoop"), (capture.RUN, "`bindsock run -- ")]
)
def test_the_readme_counts_what_the_table_counts(column: str, shown: str) -> None:
    results = capture.read(capture.written())
    own = [probe.name for probe in PROBES if probe.by is not By.INTEGRATION]
    bound = sum(results[name, column] == "bound" for name in own)
    (row,) = [line for line in (capture.ROOT / "README.md").read_text().splitlines() if line.startswith("|") and shown in line]
    assert f"{bound} of {len(own)}" in row
