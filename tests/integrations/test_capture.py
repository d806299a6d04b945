"""The table of docs/capture.md and of the README, measured again."""

from __future__ import annotations

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import capture
from tests.integrations.probes import PROBES, Probe
from tests.integrations.servers import Servers

pytestmark = pytest.mark.lab

OUT_OF_REACH = ("aiodns", "aiomqtt", "grpc.aio", "blocking sockets")
"""What makes its sockets where no event loop has a say."""


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.run.__name__)
def test_each_row_of_the_capture_table_is_what_is_measured(lab: Lab, servers: Servers, probe: Probe) -> None:
    results = {loop: capture.measure(lab, servers, probe, loop) for loop in capture.LOOPS}
    for loop, result in results.items():
        if "bindsock" not in loop or probe.name.startswith(OUT_OF_REACH):
            assert result in ("leaks", "n/a"), loop
        else:
            assert result == ("n/a" if "uvloop" in loop and "sock_sendto" in probe.name else "bound"), loop
    for text in capture.written():
        assert capture.row(probe, results) in text.splitlines()


def test_the_capture_tables_have_a_row_for_each_library_and_count_them() -> None:
    written = capture.written()
    assert written == [capture.table(capture.read(written[0]))] * len(capture.TABLES)
