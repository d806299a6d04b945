"""A proxy for the programs that a program starts and that are not Python, named to them by the usual variables."""

from __future__ import annotations

import asyncio
import secrets
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from bindsock.proxy import Proxy

if TYPE_CHECKING:
    from types import TracebackType

    from bindsock.run.policy import RunPolicy

_USER = "bindsock"


class ProxyThread:
    """Runs the proxy in a thread while the ``with`` block lasts.

    :ivar url: where it is, with what it asks for
    """

    def __init__(self, policy: RunPolicy) -> None:
        self._policy = policy
        self._secret = secrets.token_urlsafe(24)
        self._listening: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
        self._thread = threading.Thread(target=self._run, name="bindsock run --proxy", daemon=True)
        self.url: str = ""

    def __enter__(self) -> Self:
        self._thread.start()
        _, _, port = self._listening.result()
        self.url = f"http://{_USER}:{self._secret}@127.0.0.1:{port}"
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        loop, ended, _ = self._listening.result()
        loop.call_soon_threadsafe(ended.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._listening.done():
                raise
            self._listening.set_exception(error)

    async def _serve(self) -> None:
        ended = asyncio.Event()
        async with self._policy.factory() as factory, Proxy(factory, credentials={_USER: self._secret}) as proxy:
            _, port = await proxy.listen("127.0.0.1", 0)
            self._listening.set_result((asyncio.get_running_loop(), ended, port))
            await ended.wait()
