"""Servers for tests, in a thread inside the laboratory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from bindsock.testing.lab import Lab


def serve_inside(lab: Lab, serve: Callable[[], Coroutine[Any, Any, None]], ready: Future[Any]) -> None:
    """Run servers in the server's namespace until they end. The future gets the error if they cannot start."""
    with lab.inside("server"):
        try:
            asyncio.run(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)
