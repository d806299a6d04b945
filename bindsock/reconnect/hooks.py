"""Runs the program's hook on a new connection, so that it can log in again before the old conversation goes on.

:mod:`bindsock.reconnect.machine` decides what happens when a hook raises.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bindsock.reconnect.streams import ReplaceableReader

if TYPE_CHECKING:
    from bindsock.reconnect.connection import Connection
    from bindsock.reconnect.transport import ReplaceableTransport

OnReconnect: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[bytes | None]]
"""``async def on_reconnect(reader, writer, unread)``: logs in again, and sends again what was not acknowledged.

The reader and the writer belong to the new connection, and to the hook until it returns. ``unread`` has the bytes of the old
connection that the program has not read. The program reads the bytes that the hook returns first, before the data of the new
connection.
"""


class Hook(Protocol):
    """Runs on a new connection."""

    async def run(self, connection: Connection, transport: ReplaceableTransport, unread: bytes) -> bytes:
        """Let the program send and receive.

        :param unread: the data of the old connection that was not delivered
        :return: the data to deliver first
        """


class StreamHook:
    """Calls ``on_reconnect`` with another reader and writer.

    They use the event loop's own transport, so the hook can do everything that is possible with a new connection, for example
    start TLS. Meanwhile the program's reader and writer wait.
    """

    def __init__(self, on_reconnect: OnReconnect, reader: ReplaceableReader, limit: int) -> None:
        self._on_reconnect = on_reconnect
        self._reader = reader
        self._limit = limit
        self._unread = b""

    async def run(self, connection: Connection, transport: ReplaceableTransport, unread: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        # If a hook is cancelled, the next one gets the same unread bytes.
        self._unread += self._reader.take()
        reader = ReplaceableReader(self._limit, loop)
        protocol = _HookProtocol(reader, connection, loop)
        connection.lend(protocol)
        writer = _HookWriter(connection.transport, protocol, reader, loop)
        try:
            first = await self._on_reconnect(reader, writer, self._unread + unread)
        finally:
            connection.take_back(writer.transport)  # type: ignore[arg-type]
        self._unread = b""
        return (first or b"") + reader.take()


class _HookProtocol(asyncio.StreamReaderProtocol):
    """Passes events to the connection while the hook uses the transport."""

    def __init__(self, reader: asyncio.StreamReader, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._connection = connection

    def eof_received(self) -> bool | None:
        super().eof_received()
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.connection_lost(exc)


class _HookWriter(asyncio.StreamWriter):
    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.StreamReaderProtocol,
        reader: ReplaceableReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._hook_reader = reader

    async def start_tls(self, sslcontext: ssl.SSLContext, **options: Any) -> None:
        """Start TLS, and let the reader pause the TLS transport from then on."""
        await super().start_tls(sslcontext, **options)
        self._hook_reader.set_transport(self.transport)

    def __del__(self) -> None:
        """Leave the connection open when the writer is freed. asyncio's writer would close it."""


class ProtocolHook:
    """Calls a protocol's ``connection_replaced(transport, unread)``, coroutine method or not.

    The data of the new connection goes to the protocol's ``data_received()``. What the protocol writes to the given transport is
    sent before the held data.
    """

    async def run(self, connection: Connection, transport: ReplaceableTransport, unread: bytes) -> bytes:
        protocol: Any = transport.get_protocol()
        handle = HookTransport(transport, connection)
        try:
            result = protocol.connection_replaced(handle, unread)
            if inspect.isawaitable(result):
                # The method reaches its first await before the protocol gets the first byte.
                asyncio.get_running_loop().call_soon(connection.deliver_to, transport.deliver)
                await result
        finally:
            handle.hook_is_done()
        return b""


class HookTransport(asyncio.Transport):
    """A transport for the hook: it uses the new connection while the hook runs, and the stable transport afterwards."""

    def __init__(self, stable: ReplaceableTransport, connection: Connection) -> None:
        super().__init__()
        self._stable = stable
        self._connection: Connection | None = connection

    def hook_is_done(self) -> None:
        """Use the stable transport from now on."""
        self._connection = None

    @property
    def _now(self) -> asyncio.Transport:
        return self._stable if self._connection is None else self._connection.transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "interface" and self._connection is not None:
            return self._connection.interface
        return self._now.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._now.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._now.writelines(list_of_data)

    def can_write_eof(self) -> bool:
        return self._now.can_write_eof()

    def write_eof(self) -> None:
        self._stable.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._now.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._stable.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._stable.set_write_buffer_limits(high, low)

    def is_reading(self) -> bool:
        return self._stable.is_reading()

    def pause_reading(self) -> None:
        self._stable.pause_reading()
        if self._connection is not None:
            self._connection.read(False)

    def resume_reading(self) -> None:
        self._stable.resume_reading()
        if self._connection is not None:
            self._connection.read(True)

    async def start_tls(
        self, start_tls: Callable[..., Awaitable[asyncio.Transport | None]], sslcontext: ssl.SSLContext, **options: Any
    ) -> None:
        """See :meth:`ReplaceableTransport.start_tls`."""
        await (self._stable if self._connection is None else self._connection).start_tls(start_tls, sslcontext, **options)

    async def sendfile(self, sendfile: Callable[..., Awaitable[int]], file: Any, *args: Any, **options: Any) -> int:
        """See :meth:`ReplaceableTransport.sendfile`."""
        if self._connection is None:
            return await self._stable.sendfile(sendfile, file, *args, **options)
        return await sendfile(self._connection.transport, file, *args, **options)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._stable.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._stable.get_protocol()

    def is_closing(self) -> bool:
        return self._stable.is_closing()

    def close(self) -> None:
        self._stable.close()

    def abort(self) -> None:
        self._stable.abort()
