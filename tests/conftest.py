"""Every asynchronous test runs on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

from bindsock.testing.lab import LabUnavailable, enter_user_namespace
from bindsock.testing.lab.fixtures import lab

__all__ = ["lab"]

with contextlib.suppress(LabUnavailable):
    enter_user_namespace()  # for users who are not root; only a process that has no other threads yet can


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """For tests that run a loop of their own."""
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    return factory


@pytest.fixture
def descriptors() -> Any:
    """Fail the test if it leaves descriptors open: yields nothing, compares before and after."""
    import gc
    import os

    gc.collect()
    before = set(os.listdir("/dev/fd"))
    yield
    gc.collect()
    after = set(os.listdir("/dev/fd"))
    assert after - before == set() or len(after) <= len(before)
