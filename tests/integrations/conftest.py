"""The laboratory with the VPN up, and real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bindsock.testing.lab import Lab
from tests.integrations.servers import Servers


@pytest.fixture
def servers(lab: Lab) -> Iterator[Servers]:
    """The servers. The test's thread is in the laboratory's host, where a VPN has the default route."""
    lab.vpn_up("metric")
    with Servers(lab) as running:
        yield running
