"""The stable transport that the program holds while its connection is replaced."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.errors import InterfaceChanged
from bindsock.options import buffer_limits

if TYPE_CHECKING:
    import ssl

    from bindsock.netmon.loop import Future
    from bindsock.netmon.runtime import Runtime
    from bindsock.reconnect.connection import Connection

_HIGH = 2**16
_CHUNK = 2**16


class TransportOwner(Protocol):
    """The owner of the connections of a stable transport."""

    def close(self) -> None:
        """Close the connection, because the program closes and all that it wrote has been passed to the connection."""

    def abort(self) -> None:
        """Abort the connection, because the program aborts."""

    def refresh(self) -> None:
        """Process the newest reading of the network."""


class _Phase(enum.IntEnum):
    """The phase in the life of a transport."""

    OPEN = 0
    CLOSING = 1
    OVER = 2
    """``connection_lost()`` has been called, or will be in the next iteration of the loop."""


class _Writing(enum.Enum):
    """What happens to the data that the program writes."""

    THROUGH = enum.auto()
    """It is passed to the connection."""
    HELD = enum.auto()
    """It is held until TLS has been started."""
    CUT = enum.auto()
    """It is held until there is a new connection."""


_THROUGH, _OVER = _Writing.THROUGH, _Phase.OVER


@dataclass(slots=True)
class _Held:
    """Data that the program wrote and that has not been passed to a connection yet."""

    data: deque[bytes] = field(default_factory=deque)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.data.append(data)
        self.size += len(data)

    def take(self) -> bytes:
        """Take all of it, in order."""
        taken = b"".join(self.data)
        self.data.clear()
        self.size = 0
        return taken


@dataclass(frozen=True, slots=True)
class _Limits:
    """The limits of the write buffer, in bytes."""

    high: int = _HIGH
    low: int = _HIGH // 4
    chosen: bool = False
    """Whether the program has set them."""


class ReplaceableTransport(asyncio.Transport):
    """An asyncio transport whose connection can be replaced.

    ``get_extra_info()`` describes the present connection; ``"interface"`` is the name of its interface.
    """

    def __init__(self, runtime: Runtime, protocol: asyncio.BaseProtocol, owner: TransportOwner, connection: Connection) -> None:
        super().__init__()
        self._runtime = runtime
        self._owner = owner
        self._connection = connection
        self._phase = _Phase.OPEN
        self._writing = _Writing.THROUGH
        self._held = _Held()
        self._limits = _Limits()
        self._busy = False
        self._reading = True
        self._eof = False
        self._full = False
        self._writable: Future | None = None
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = {_Phase.OVER: "closed", _Phase.CLOSING: "closing"}.get(self._phase, "waiting" if self._holds else "open")
        return f"<{type(self).__name__} {state} over {self._connection.interface}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "interface":
            return self._connection.interface
        try:
            return self._connection.transport.get_extra_info(name, default)
        except AttributeError:  # a closed TLS transport of CPython (Lib/asyncio/sslproto.py)
            return default

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._deliver: Callable[[bytes], object]
        if isinstance(protocol, asyncio.BufferedProtocol):
            self._deliver = self._fill
        else:
            self._deliver = protocol.data_received  # type: ignore[attr-defined]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    @property
    def _holds(self) -> bool:
        return self._writing is not _Writing.THROUGH

    @property
    def _closing(self) -> bool:
        return self._phase >= _Phase.CLOSING

    @property
    def _over(self) -> bool:
        return self._phase is _Phase.OVER

    @property
    def busy(self) -> bool:
        """Whether a file is being sent or TLS is being started, so that a working connection must not be replaced."""
        return self._busy

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._connection.read(False)

    def resume_reading(self) -> None:
        self._reading = True
        if not self._closing:
            self._connection.read(True)

    def deliver(self, data: bytes) -> None:
        """Pass data of the current connection to the program's protocol."""
        self._deliver(data)

    def _fill(self, data: bytes) -> None:
        protocol = self._protocol
        assert isinstance(protocol, asyncio.BufferedProtocol)
        left = memoryview(data)
        while left:
            buffer = memoryview(protocol.get_buffer(len(left))).cast("B")
            taken = min(len(buffer), len(left))
            if not taken:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:taken] = left[:taken]
            protocol.buffer_updated(taken)
            left = left[taken:]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        # Called for every piece of data: the properties would take as long as all the rest.
        if self._writing is not _THROUGH:
            self._hold(data)
        elif self._phase is not _OVER:
            self._connection.transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._connection.transport.can_write_eof()

    def write_eof(self) -> None:
        if self._closing or self._eof:
            return
        if not self.can_write_eof():
            raise NotImplementedError("a TLS connection cannot be half-closed")
        self._eof = True
        if not self._holds:
            self._connection.transport.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._limits = _Limits(*buffer_limits(high, low, _HIGH), chosen=True)
        self._connection.transport.set_write_buffer_limits(self._limits.high, self._limits.low)
        self.balance()

    def get_write_buffer_size(self) -> int:
        return self._held.size + (0 if self._over else self._connection.transport.get_write_buffer_size())

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._limits.low, self._limits.high

    def balance(self) -> None:
        """Pause or resume the protocol, depending on the held data and the write buffer of the connection."""
        full = self._held.size > (self._limits.low if self._full else self._limits.high) or (
            not self._holds and self._connection.full
        )
        if full is self._full or self._over:
            return
        self._full = full
        if full:
            self._protocol.pause_writing()
            return
        self._wake_writer()
        self._protocol.resume_writing()

    def _hold(self, data: bytes | bytearray | memoryview) -> None:
        held = bytes(data)
        if held and not self._over:
            self._held.add(held)
            self.balance()

    def close(self) -> None:
        if self._closing:
            return
        self._phase = _Phase.CLOSING
        if not self._held.data:
            self._owner.close()

    def abort(self) -> None:
        self._phase = max(self._phase, _Phase.CLOSING)
        self._owner.abort()

    async def start_tls(
        self,
        start_tls: Callable[..., Awaitable[asyncio.Transport | None]],
        sslcontext: ssl.SSLContext,
        **options: Any,
    ) -> None:
        """Upgrade to TLS.

        :param start_tls: the method of the event loop
        :param options: the keywords of ``loop.start_tls()``
        :raises InterfaceChanged: the connection is being replaced, or was lost during the handshake
        """
        connection = self._connection
        self._occupy("start TLS")
        self._writing = _Writing.HELD
        try:
            await connection.start_tls(start_tls, sslcontext, **options)
        finally:
            self._busy = False
        if self._writing is _Writing.CUT:
            raise InterfaceChanged("the connection was lost while TLS was being started", interface=connection.interface)
        if self._connection is not connection or self._over:
            return
        self.release()
        self._owner.refresh()

    async def sendfile(
        self,
        sendfile: Callable[..., Awaitable[int]],
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool = True,
    ) -> int:
        """Send a file.

        :param sendfile: the method of the event loop
        :return: how many bytes were sent
        :raises InterfaceChanged: the connection is being replaced
        :raises OSError: the connection was lost; it is unknown how much has arrived
        """
        connection = self._connection
        self._occupy("send a file")
        try:
            try:
                return await sendfile(connection.transport, file, offset, count, fallback=fallback)
            except NotImplementedError:  # uvloop has no sendfile()
                if not fallback:
                    raise
            return await self._send_in_chunks(connection, file, offset, count)
        finally:
            self._busy = False
            self._owner.refresh()

    async def _send_in_chunks(self, connection: Connection, file: Any, offset: int, count: int | None) -> int:
        if offset:
            file.seek(offset)
        sent = 0
        while count is None or sent < count:
            size = _CHUNK if count is None else min(_CHUNK, count - sent)
            data = await asyncio.get_running_loop().run_in_executor(None, file.read, size)
            if not data:
                break
            if self._connection is not connection or self._holds or self._over:
                raise InterfaceChanged("the connection was lost while a file was sent", interface=connection.interface)
            connection.transport.write(data)
            sent += len(data)
            if self._full:
                self._writable = self._runtime.create_future()
                await self._writable
        return sent

    def _wake_writer(self) -> None:
        """Wake :meth:`_send_in_chunks`, which waits for room in the buffer."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _occupy(self, purpose: str) -> None:
        if self._closing:
            raise RuntimeError(f"cannot {purpose}: the transport is closing")
        if self._busy:
            raise RuntimeError(f"cannot {purpose}: a file is being sent or TLS is being started already")
        if self._holds:
            raise InterfaceChanged(f"cannot {purpose}: the connection is being replaced", interface=self._connection.interface)
        self._busy = True

    def cut(self) -> None:
        """Hold the data that the program writes from now on."""
        self._writing = _Writing.CUT
        self._wake_writer()
        self.balance()

    def replace(self, connection: Connection, data: bytes) -> None:
        """Use another connection from now on.

        :param data: the data that the program reads first
        """
        self._connection = connection
        self.release()
        if data:
            self._deliver(data)
        connection.deliver_to(self.deliver)
        if not self._reading:
            connection.read(False)

    def release(self) -> None:
        """Set the buffer limits on the connection's transport, and pass it the held data in order."""
        transport = self._connection.transport
        if self._limits.chosen:
            transport.set_write_buffer_limits(self._limits.high, self._limits.low)
        self._writing = _Writing.THROUGH
        held = self._held.take()
        if held:
            transport.write(held)
        if self._eof:
            self._connection.half_close()
        self.balance()
        if self._closing:
            self._owner.close()

    def finish(self) -> bool | None:
        """Call ``eof_received()`` of the protocol.

        :return: whether the transport stays open for writing
        """
        return self._protocol.eof_received()  # type: ignore[attr-defined,no-any-return]

    def end(self, error: Exception | None) -> None:
        """Call ``connection_lost()`` of the protocol in the next iteration of the loop."""
        if self._over:
            return
        self._phase = _Phase.OVER
        self._held.take()
        self._wake_writer()
        self._runtime.call_soon(self._protocol.connection_lost, error)
