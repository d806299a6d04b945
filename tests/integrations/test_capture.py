"""The table of docs/capture.md and of the README, measured again."""

from __future__ import annotations

import pytest

from bindsock.testing.lab import Lab
from tests.integrations import capture
from tests.integrations.probes import PROBES
from tests.integrations.servers import Servers

pytestmark = pytest.mark.lab

OUT_OF_REACH = ("aiodns", "aiomqtt", "grpc.aio", "blocking sockets")
"""What makes its sockets where no event loop has a say."""


@pytest.mark.timeout(300)
def test_the_capture_table_is_what_is_measured(lab: Lab, servers: Servers) -> None:
    results = {(p.name, loop): capture.measure(lab, servers, p, loop) for p in PROBES for loop in capture.LOOPS}
    for (name, loop), result in results.items():
        if "bindsock" not in loop or name.startswith(OUT_OF_REACH):
            assert result in ("leaks", "n/a"), (name, loop)
        else:
            assert result == ("n/a" if "uvloop" in loop and "sock_sendto" in name else "bound"), (name, loop)
    assert capture.written() == [capture.table(results)] * len(capture.TABLES)
