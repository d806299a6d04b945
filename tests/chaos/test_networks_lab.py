"""The networks of chaos, and how they are described when something fails."""

from __future__ import annotations

import shutil

import pytest

from bindsock.testing.lab import Lab
from tests.chaos.networks import described

pytestmark = pytest.mark.lab


def test_a_network_is_described(lab: Lab) -> None:
    host, router = described(lab).split("router, ip -brief address:")
    addresses, _, others = host.partition("host, ip neighbour:")
    assert lab.address("wifi0") in addresses
    assert "default via" in others
    assert " table local " not in others
    assert "ip neighbour:" in router
    assert shutil.which("ss") is None or "host, ss --tcp" in router
    assert "Error" not in host + router
