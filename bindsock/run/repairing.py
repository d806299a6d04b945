"""Repairs routes beside a program, for as long as it runs: the program itself needs no privilege for it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from bindsock.factory import TransportFactory

if TYPE_CHECKING:
    from types import TracebackType

    from bindsock.run.policy import RunPolicy


class RepairThread:
    """Watches the network and repairs in a thread while the ``with`` block lasts; the first look is over when it begins.

    :raises UnsupportedSystem: the system has no policy rules
    """

    def __init__(self, policy: RunPolicy) -> None:
        self._policy = policy
        self._watching: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="bindsock run --repair-routes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._watching.result()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        loop, ended = self._watching.result()
        loop.call_soon_threadsafe(ended.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as error:
            if self._watching.done():
                raise
            self._watching.set_exception(error)

    async def _watch(self) -> None:
        ended = asyncio.Event()
        policy = self._policy
        async with TransportFactory(policy.preferences, interface=policy.interface, repair_routes=True):
            self._watching.set_result((asyncio.get_running_loop(), ended))
            await ended.wait()
