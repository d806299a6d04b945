"""Loop classes that bind, derived from asyncio's and from uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from bindsock.eventloop import BoundLoop, loop_factory
from tests.integrations.conftest import servers

__all__ = ["servers"]

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.Loop], ids=["asyncio", "uvloop"])
def base(request: pytest.FixtureRequest) -> type[asyncio.AbstractEventLoop]:
    """The base class of the loop."""
    base: type[asyncio.AbstractEventLoop] = request.param
    return base


@pytest.fixture
def run(base: type[asyncio.AbstractEventLoop]) -> Run[Any]:
    """Run a coroutine on a loop that binds."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=loop_factory(base)) as runner:
            return runner.run(main)

    return run


def running() -> BoundLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, BoundLoop)
    return loop
