"""A byte stream that is dialled again when its path is gone.

There is no background task. The end of the old connection wakes the task that receives, which then dials; a task that sends
waits for the new connection. An unused stream is dialled again only when it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio.abc import ByteStream

from bindsock.anyio._draining import ENDS, DrainableStream
from bindsock.netmon.backoff import Backoff
from bindsock.options import DRAIN_TIMEOUT, RECONNECT_TIMEOUT, check_hook, known_keywords_only

if TYPE_CHECKING:
    from bindsock.errors import InterfaceChanged
    from bindsock.stream.guard import StreamGuard

OnReconnect: TypeAlias = Callable[[ByteStream, bytes], Awaitable[bytes | None]]
"""Called with the new connection, before anything else is sent on it, and with the data of the old connection that was not
received. (The stream does not read ahead, but a ``send()`` that waits for the new connection receives the data in flight on the
old one.) The bytes that it returns are received first."""

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
"""Seconds between two dials."""


class ReconnectingStream(ByteStream):
    """A stream whose connection is replaced when its interface is gone. ``on_reconnect`` can log in again on the new connection.

    A connection that still works, but is replaced for a better path, is half-closed first, and its data in flight is received.

    A pending ``receive()`` stays pending and returns the data of the new connection. A pending ``send()`` is repeated as a whole
    on the new connection, after the hook. So a hook that sends unacknowledged data again should only send what completed
    ``send()`` calls have sent.

    :param connect: dials, and does the TLS handshake
    :param on_reconnect: called with each new connection
    :param timeout: seconds within which a new connection must be made
    :param drain_timeout: seconds to wait for data in flight on the old connection when it is replaced for a better path
    :raises TypeError: ``on_reconnect`` cannot be called with a stream and bytes
    """

    @known_keywords_only
    def __init__(
        self,
        connect: Callable[[], Awaitable[tuple[ByteStream, StreamGuard | None]]],
        on_reconnect: OnReconnect,
        *,
        timeout: float = RECONNECT_TIMEOUT,
        drain_timeout: float = DRAIN_TIMEOUT,
    ) -> None:
        check_hook(on_reconnect, "stream", "unread")
        self._connect = connect
        self._on_reconnect = on_reconnect
        self._timeout = timeout
        self._drain_timeout = drain_timeout
        self._stream: DrainableStream
        self._lock = anyio.Lock()
        self._unread = b""
        self._sent_eof = False
        self._closed = False
        self._failure: anyio.BrokenResourceError | None = None
        self.reconnections: int = 0
        """How often the connection has been replaced."""

    async def open(self) -> None:
        """Make the first connection.

        :raises OSError: it could not be made
        """
        self._stream = DrainableStream(*await self._connect(), self._drain_timeout)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            if self._unread:
                data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
                return data
            stream = self._stream
            try:
                return await stream.receive(max_bytes)
            except ENDS:
                if not await self._replaced(stream):
                    raise

    async def send(self, item: bytes) -> None:
        while True:
            stream = self._stream
            try:
                return await stream.send(item)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                if not await self._replaced(stream):
                    raise

    async def send_eof(self) -> None:
        self._sent_eof = True
        stream = self._stream
        try:
            await stream.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            if not await self._replaced(stream):
                raise

    async def aclose(self) -> None:
        self._closed = True
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes

    async def _replaced(self, stream: DrainableStream) -> bool:
        """Replace a failed connection if its path is gone.

        :return: whether there is a new connection
        :raises BrokenResourceError: no new connection could be made
        """
        async with self._lock:
            if self._closed:
                return False
            if self._stream is not stream:
                return True
            if self._failure is not None:
                raise anyio.BrokenResourceError(str(self._failure)) from self._failure.__cause__
            reason = stream.guard.error if stream.guard is not None else None
            if reason is None:
                return False
            self._unread += await stream.drain()
            await anyio.aclose_forcefully(stream)
            await self._replace(reason)
            return True

    async def _replace(self, reason: InterfaceChanged) -> None:
        backoff = Backoff(_FIRST_DELAY, _LONGEST_DELAY)
        cause: BaseException = reason
        with anyio.move_on_after(self._timeout):
            while True:
                try:
                    stream, guard = await self._connect()
                except OSError as error:
                    error.__context__ = reason
                    cause = error
                    await anyio.sleep(backoff.next())
                    continue
                unread, self._unread = self._unread, b""
                try:
                    self._unread = await self._on_reconnect(stream, unread) or b""
                    if self._sent_eof:
                        await stream.send_eof()
                except BaseException as error:
                    self._unread = unread
                    with anyio.CancelScope(shield=True):
                        await anyio.aclose_forcefully(stream)
                    if guard is not None and guard.error is not None and isinstance(error, Exception):
                        cause = error  # the network has changed again
                        continue
                    if not isinstance(error, Exception):
                        raise
                    self._failure = anyio.BrokenResourceError(f"on_reconnect failed: {error!r}")
                    raise self._failure from error
                if self._closed:
                    await anyio.aclose_forcefully(stream)
                    return
                self._stream = DrainableStream(stream, guard, self._drain_timeout)
                self.reconnections += 1
                return
        self._failure = anyio.BrokenResourceError(f"no new connection within {self._timeout:g} s: {cause}")
        raise self._failure from cause
