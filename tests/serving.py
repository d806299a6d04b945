"""Servers for tests, in a thread inside the laboratory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeAlias

from bindsock.testing.lab import Lab

Talk: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Conversations:
    """The conversations of a server with its clients, all of which are closed when the server ends."""

    def __init__(self) -> None:
        self._talking: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    def by(self, talk: Talk) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        """What :func:`asyncio.start_server` calls, to talk to a client in this way."""

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the client's uplink is down, or it has ended
                    await talk(reader, writer)
            finally:
                del self._talking[writer]
                writer.close()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._talking[writer] = asyncio.get_running_loop().create_task(converse(reader, writer))

        return begin

    async def end(self) -> None:
        """End those that still go on: a server never hears of the end of a client whose uplink went away."""
        for writer in self._talking:
            writer.transport.abort()
        await asyncio.gather(*self._talking.values(), return_exceptions=True)


def serve_inside(lab: Lab, serve: Callable[[], Coroutine[Any, Any, None]], ready: Future[Any]) -> None:
    """Run servers in the server's namespace until they end. The future gets the error if they cannot start."""
    with lab.inside("server"):
        try:
            asyncio.run(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)
