"""Services that run in a thread while ``bindsock run`` runs a program: a proxy, and the repair of routes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from bindsock.dial import waiting
from bindsock.factory import TransportFactory
from bindsock.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from bindsock.run.policy import RunPolicy

T = TypeVar("T")

_USER = "bindsock"


class Beside(Generic[T]):
    """Runs an asynchronous context manager in a thread with an event loop while the ``with`` block lasts.

    The block begins when the context manager has been entered. It gets the context manager's value and exceptions.

    :param make: makes the context manager, in the thread
    :param name: the thread's name
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], name: str) -> None:
        self._make = make
        self._entered: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, T]] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> T:
        self._thread.start()
        return self._entered.result()[2]

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        loop, ended, _ = self._entered.result()
        loop.call_soon_threadsafe(ended.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            waiting.run(self._hold())
        except BaseException as error:
            if self._entered.done():
                raise
            self._entered.set_exception(error)

    async def _hold(self) -> None:
        ended = asyncio.Event()
        async with self._make() as value:
            self._entered.set_result((asyncio.get_running_loop(), ended, value))
            await ended.wait()


def proxy_beside(policy: RunPolicy) -> Beside[str]:
    """A proxy for child processes that are not Python. The value is its URL, including the credentials."""

    @contextlib.asynccontextmanager
    async def listening() -> AsyncIterator[str]:
        secret = secrets.token_urlsafe(24)
        async with policy.factory() as factory, Proxy(factory, credentials={_USER: secret}) as proxy:
            _, port = await proxy.listen("127.0.0.1", 0)
            yield f"http://{_USER}:{secret}@127.0.0.1:{port}"

    return Beside(listening, "bindsock run --proxy")


def repairs_beside(policy: RunPolicy) -> Beside[TransportFactory]:
    """Watches the network and repairs routes, so that the program itself needs no privilege.

    The first repair is done when the block begins.

    :raises UnsupportedSystem: the system has no policy rules; raised when the block is entered
    """
    return Beside(
        lambda: TransportFactory(policy.preferences, interface=policy.interface, repair_routes=True),
        "bindsock run --repair-routes",
    )
