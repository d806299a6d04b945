"""A stream whose data in flight is received before it is ended for a better path."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bindsock.stream.guard import StreamGuard

ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""The exceptions of a stream that receives no more data."""


class DrainableStream(ByteStream):
    """A stream that stops sending before it is replaced, and receives the data in flight.

    It is half-closed then, so that the peer ends it, too. TLS streams cannot be half-closed; they count as drained when no data
    has arrived for a quarter of the timeout.

    :param guard: the guard that follows the stream; ``None`` if it is not followed
    :param timeout: seconds after which the guard ends it in any case
    """

    def __init__(self, stream: ByteStream, guard: StreamGuard | None, timeout: float) -> None:
        self.guard = guard
        self._stream = stream
        self._timeout = timeout
        self._unread = b""
        self._sending = 0
        self._half_closed = False
        self._receiving: set[anyio.CancelScope] = set()
        self._draining = anyio.Lock()
        if guard is not None and guard.error is None:
            guard.drain(timeout, self._stop_receiving)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._leaving:
            with anyio.CancelScope() as scope:
                self._receiving.add(scope)
                try:
                    return await self._stream.receive(max_bytes)
                finally:
                    self._receiving.discard(scope)
            # The guard has cancelled this: receive the rest.
        async with self._draining:
            if not self._unread:
                return await self._receive_rest(max_bytes)
            data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
            return data

    async def send(self, item: bytes) -> None:
        if self.guard is not None and self.guard.error is not None:
            raise anyio.BrokenResourceError(str(self.guard.error)) from self.guard.error
        self._sending += 1
        try:
            await self._stream.send(item)
        finally:
            self._sending -= 1

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def drain(self) -> bytes:
        """Receive the data in flight, if the stream is about to be replaced.

        :return: the data that the program has not received
        """
        async with self._draining:
            with contextlib.suppress(*ENDS):
                while self._leaving:
                    self._unread += await self._receive_rest(65536)
            unread, self._unread = self._unread, b""
            return unread

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes

    @property
    def _leaving(self) -> bool:
        return self.guard is not None and self.guard.leaving

    def _stop_receiving(self) -> None:
        for scope in self._receiving:
            scope.cancel()

    async def _receive_rest(self, max_bytes: int) -> bytes:
        quiet = math.inf
        if not self._half_closed and not self._sending:
            try:
                await self._stream.send_eof()
                self._half_closed = True
            except NotImplementedError:  # over TLS
                quiet = self._timeout / 4
        with anyio.move_on_after(quiet):
            return await self._stream.receive(max_bytes)
        raise anyio.EndOfStream
