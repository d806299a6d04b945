"""Fixtures for the resolvers' tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop

from bindsock import TransportFactory
from bindsock.factory import connector_of
from bindsock.netmon.watcher import Watcher
from bindsock.testing import SimulatedKernel, interface, network
from tests.integrations.conftest import servers

__all__ = ["servers"]

WIFI = interface("2: en0 wifi 192.0.2.5/24 2001:db8:2::5/64")
WIRED = interface("3: en1 wired 198.51.100.5/24 2001:db8:3::5/64")
ON_WIFI = network(WIFI, WIRED, "default via 192.0.2.1 dev en0", "default via 2001:db8:2::1 dev en0")
ON_WIRED = network(WIFI, WIRED, "default via 198.51.100.1 dev en1", "default via 2001:db8:3::1 dev en1")
NOWHERE = network(WIFI)


@pytest.fixture
def kernel() -> SimulatedKernel:
    return SimulatedKernel(ON_WIFI)


@pytest.fixture
async def watcher(kernel: SimulatedKernel) -> AsyncIterator[Watcher]:
    async with TransportFactory(kernel=kernel) as factory:
        yield connector_of(factory).watcher


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.Loop], ids=["asyncio", "uvloop"])
def loop_factory_base(request: pytest.FixtureRequest) -> type[asyncio.AbstractEventLoop]:
    """The base class for a loop that binds."""
    base: type[asyncio.AbstractEventLoop] = request.param
    return base
