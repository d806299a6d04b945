"""An event loop in a background thread, for the proxy that gRPC connects through."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from bindsock.run.loops import background_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.integrations.grpc import Endpoint
    from bindsock.run.ledger import Ledger
    from bindsock.run.policy import RunPolicy

T = TypeVar("T")


class Background:
    """Starts the thread when it is first needed, and again in a forked child, since threads do not survive a fork."""

    def __init__(self, policy: RunPolicy, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._thread: _LoopThread | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function on the loop, and wait for its result."""
        if os.getpid() != self._process:
            self._lock = threading.Lock()
            self._process = os.getpid()
            self._thread = None
        with self._lock:
            if self._thread is None:
                self._thread = _LoopThread(self._policy, self._ledger)
        return self._thread.call(function)

    def grpc_endpoint(self) -> Endpoint:
        """The proxy that gRPC's channels connect through. It ends with the process, or with :meth:`stop`."""
        from bindsock.default import running_factory
        from bindsock.integrations.grpc import endpoint_of

        return self.call(lambda: endpoint_of(asyncio.get_running_loop(), running_factory()))

    def stop(self) -> None:
        """End the thread and close its connections."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and os.getpid() == self._process:
            thread.stop()


class _LoopThread:
    def __init__(self, policy: RunPolicy, ledger: Ledger) -> None:
        self._make_loop = functools.partial(background_loop, policy, ledger)
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="bindsock run", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except Exception as error:  # noqa: BLE001 - result() raises it in the caller
                result.set_exception(error)

        self._loop.result().call_soon_threadsafe(run)
        return result.result()

    def stop(self) -> None:
        loop = self._loop.result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._make_loop) as runner:
            loop = runner.get_loop()
            self._loop.set_result(loop)
            loop.run_forever()
