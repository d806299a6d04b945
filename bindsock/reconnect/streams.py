"""A stream reader and a stream writer whose connection can be replaced."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.reconnect.transport import ReplaceableTransport


class ReplaceableReader(asyncio.StreamReader):
    """An ``asyncio.StreamReader`` whose unread bytes can be taken away while a coroutine waits for more.

    A waiting ``readline()`` of the standard library's reader remembers how much of the buffer it has searched. If the buffer were
    emptied meanwhile, it would miss the first line of the new connection. So all reading methods are implemented here again, and
    a waiting search starts over when the bytes are taken.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._most = limit
        self._home = loop
        self._unread = bytearray()
        self._taken = 0
        self._finished = False
        self._failure: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._source: Any = None
        self._held_up = False
        self._greedy = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._unread)} bytes{' eof' if self._finished else ''}>"

    def take(self) -> bytes:
        """Take all unread bytes out of the buffer."""
        unread = bytes(self._unread)
        self._unread.clear()
        self._taken += 1
        self._let_flow()
        return unread

    def exception(self) -> Exception | None:
        return self._failure

    def set_exception(self, exc: Exception) -> None:
        self._failure = exc
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(exc)

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        if self._source is None:
            # Since Python 3.14 asyncio's start_tls() requires that the base class has a transport (Lib/asyncio/streams.py).
            super().set_transport(transport)
        self._source = transport

    def feed_eof(self) -> None:
        self._finished = True
        self._wake()

    def at_eof(self) -> bool:
        return self._finished and not self._unread

    def feed_data(self, data: Any) -> None:
        if not data:
            return
        self._unread += data
        self._wake()
        if self._source is not None and not self._held_up and not self._greedy and len(self._unread) > 2 * self._most:
            self._source.pause_reading()
            self._held_up = True

    async def readline(self) -> bytes:
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            # As in asyncio: the received part of a line that is too long is discarded.
            if self._unread.startswith(b"\n", error.consumed):
                self._consume(error.consumed + 1)
            else:
                self._consume(len(self._unread))
            raise ValueError(error.args[0]) from None

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        separators = _separators(separator)
        longest = len(separators[0]) if len(separators) == 1 else max(map(len, separators))
        searched, taken = 0, self._taken
        self._check()
        while True:
            if taken != self._taken:
                searched, taken = 0, self._taken
            at, length = _first(separators, self._unread, max(0, searched - longest + 1))
            if at != -1:
                if at > self._most:
                    raise asyncio.LimitOverrunError("Separator is found, but chunk is longer than limit", at)
                return self._consume(at + length)
            searched = len(self._unread)
            if searched - longest + 1 > self._most:
                raise asyncio.LimitOverrunError("Separator is not found, and chunk exceed the limit", searched - longest + 1)
            if self._finished:
                raise asyncio.IncompleteReadError(self._consume(searched), None)
            await self._more("readuntil")

    async def read(self, n: int = -1) -> bytes:
        self._check()
        if n == 0:
            return b""
        if n < 0:
            # asyncio's reader collects block by block. Here the bytes stay in the buffer until the end, so that they can be
            # taken.
            self._greedy = True
            try:
                self._let_flow()
                while not self._finished:
                    await self._more("read")
            finally:
                self._greedy = False
            return self._consume(len(self._unread))
        while not self._unread and not self._finished:
            await self._more("read")
        return self._consume(min(n, len(self._unread)))

    async def readexactly(self, n: int) -> bytes:
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        self._check()
        while len(self._unread) < n:
            if self._finished:
                raise asyncio.IncompleteReadError(self._consume(len(self._unread)), n)
            self._greedy = n > self._most
            try:
                self._let_flow()
                await self._more("readexactly")
            finally:
                self._greedy = False
        return self._consume(n)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _consume(self, n: int) -> bytes:
        if n == len(self._unread):
            data = bytes(self._unread)
            self._unread.clear()
        else:
            data = bytes(memoryview(self._unread)[:n])
            del self._unread[:n]
        if self._held_up:
            self._let_flow()
        return data

    def _let_flow(self) -> None:
        if self._held_up and (self._greedy or len(self._unread) <= self._most):
            self._held_up = False
            self._source.resume_reading()

    async def _more(self, reading: str) -> None:
        if self._waiting is not None:
            raise RuntimeError(f"{reading}() called while another coroutine is already waiting for incoming data")
        self._waiting = self._home.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


def _separators(separator: Any) -> Sequence[bytes]:
    separators: Sequence[bytes] = separator if isinstance(separator, tuple) else (separator,)
    if not separators or not all(separators):
        raise ValueError("Separator should be at least one-byte string")
    return separators


def _first(separators: Sequence[bytes], data: bytearray, start: int) -> tuple[int, int]:
    """The position and the length of the separator that ends first; if two end at the same position, the longer one.

    :return: the position is -1 if there is none
    """
    if len(separators) == 1:
        return data.find(separators[0], start), len(separators[0])
    found = [(at, len(s)) for s in separators if (at := data.find(s, start)) != -1]
    return min(found, key=lambda match: (match[0] + match[1], match[0]), default=(-1, 0))


class ReplaceableWriter(asyncio.StreamWriter):
    """An ``asyncio.StreamWriter`` whose ``start_tls()`` works on any event loop."""

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Upgrade to TLS. A replacement starts without TLS again, so that the hook must start it."""
        await self.drain()
        transport = cast("ReplaceableTransport", self.transport)
        loop = asyncio.get_running_loop()
        await transport.start_tls(
            loop.start_tls,
            sslcontext,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
