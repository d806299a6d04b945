"""Every test runs on asyncio's own loop, on uvloop, on an event loop that binds, and on trio."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import uvloop

from bindsock import EventLoop
from tests.integrations.conftest import servers

__all__ = ["servers"]

Main = Callable[[], Awaitable[None]]
Run = Callable[[Main], None]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"loop_factory": asyncio.SelectorEventLoop}),
    "uvloop": ("asyncio", {"loop_factory": uvloop.Loop}),
    "bindsock": ("asyncio", {"loop_factory": EventLoop}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run an asynchronous function, which must end within a minute."""
    backend, options = BACKENDS[request.param]

    def run(main: Main) -> None:
        async def bounded() -> None:
            with anyio.fail_after(60):
                await main()

        anyio.run(bounded, backend=backend, backend_options=options)

    return run


def opens_no_more_descriptors(run: Run, main: Main) -> None:
    """Run ``main`` twice, and check that the second run leaves no more descriptors open than the first."""
    run(main)
    gc.collect()
    before = os.listdir("/dev/fd")
    run(main)
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= len(before)
