"""The stable transport: what the application holds while the connections beneath it come and go."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.errors import InterfaceChanged

if TYPE_CHECKING:
    import ssl

    from bindsock.reconnect.connection import Connection

logger = logging.getLogger("bindsock")

_HIGH = 2**16
_CHUNK = 2**16


class TransportOwner(Protocol):
    """What stands behind a stable transport."""

    def close(self) -> None:
        """Everything that was written has been handed down, or there is nothing."""

    def abort(self) -> None: ...

    def look(self) -> None:
        """Compare with the newest reading of the network."""


class ReplaceableTransport(asyncio.Transport):
    """An asyncio transport whose connection can be replaced.

    ``get_extra_info()`` tells of the connection in use at that moment, ``"interface"`` the name of its interface.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, owner: TransportOwner, leg: Connection
    ) -> None:
        super().__init__()
        self._loop = loop
        self._owner = owner
        self._leg = leg
        self._held: deque[bytes] = deque()
        self._held_size = 0
        self._holding = False
        self._cut = False
        self._busy = False
        self._reading = True
        self._closing = False
        self._over = False
        self._eof = False
        self._full = False
        self._high, self._low = _HIGH, _HIGH // 4
        self._marks_set = False
        self._writable: asyncio.Future[None] | None = None
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "closed" if self._over else "closing" if self._closing else "waiting" if self._holding else "open"
        return f"<{type(self).__name__} {state} over {self._leg.interface}>"

    # Facts

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "interface":
            return self._leg.interface
        try:
            return self._leg.transport.get_extra_info(name, default)
        except AttributeError:  # CPython's TLS transport, once closed (Lib/asyncio/sslproto.py)
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
    def busy(self) -> bool:
        """Whether a file is being sent or TLS started: no moment to leave a connection that works."""
        return self._busy

    # Reading

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._leg.read(False)

    def resume_reading(self) -> None:
        self._reading = True
        if not self._closing:
            self._leg.read(True)

    def deliver(self, data: bytes) -> None:
        """Hand what the current connection brings to the application's protocol."""
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

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._holding:
            self._hold(data)
        elif not self._over:
            self._leg.transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._leg.transport.can_write_eof()

    def write_eof(self) -> None:
        if self._closing or self._eof:
            return
        if not self.can_write_eof():
            raise NotImplementedError("there is no half of a TLS connection")
        self._eof = True
        if not self._holding:
            self._leg.transport.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._marks_set = True
        self._leg.transport.set_write_buffer_limits(high, low)
        self.balance()

    def get_write_buffer_size(self) -> int:
        return self._held_size + (0 if self._over else self._leg.transport.get_write_buffer_size())

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def balance(self) -> None:
        """Let the protocol pause or resume, by what is held and by what the connection's own transport says."""
        full = self._held_size > (self._low if self._full else self._high) or (not self._holding and self._leg.full)
        if full is self._full or self._over:
            return
        self._full = full
        if full:
            self._protocol.pause_writing()
            return
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._protocol.resume_writing()

    def _hold(self, data: bytes | bytearray | memoryview) -> None:
        held = bytes(data)
        if held and not self._over:
            self._held.append(held)
            self._held_size += len(held)
            self.balance()

    # The end

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._held:
            self._owner.close()

    def abort(self) -> None:
        self._closing = True
        self._owner.abort()

    # Another transport in the place of the connection's own

    async def start_tls(
        self,
        start_tls: Callable[..., Awaitable[asyncio.Transport | None]],
        sslcontext: ssl.SSLContext,
        **options: Any,
    ) -> None:
        """Go on over TLS.

        :param start_tls: the event loop's own
        :param options: as ``loop.start_tls()`` has them
        :raises InterfaceChanged: the connection was being replaced, or was lost during the handshake
        """
        leg = self._leg
        self._occupy("start TLS")
        self._holding = True
        try:
            await leg.start_tls(start_tls, sslcontext, **options)
        finally:
            self._busy = False
        if self._cut:
            raise InterfaceChanged("the connection was lost while TLS was being started on it", interface=leg.interface)
        if self._leg is not leg or self._over:
            return
        if self._marks_set:
            leg.transport.set_write_buffer_limits(self._high, self._low)
        self.release()
        self._owner.look()

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

        :param sendfile: the event loop's own
        :return: how many bytes were sent
        :raises InterfaceChanged: the connection was being replaced
        :raises OSError: it was lost; how much arrived is not known
        """
        leg = self._leg
        self._occupy("send a file")
        try:
            try:
                return await sendfile(leg.transport, file, offset, count, fallback=fallback)
            except NotImplementedError:  # uvloop has none
                if not fallback:
                    raise
            return await self._send_by_hand(leg, file, offset, count)
        finally:
            self._busy = False
            self._owner.look()

    async def _send_by_hand(self, leg: Connection, file: Any, offset: int, count: int | None) -> int:
        if offset:
            file.seek(offset)
        sent = 0
        while count is None or sent < count:
            size = _CHUNK if count is None else min(_CHUNK, count - sent)
            data = await self._loop.run_in_executor(None, file.read, size)
            if not data:
                break
            if self._leg is not leg or self._holding or self._over:
                raise InterfaceChanged("the connection was lost while a file was sent", interface=leg.interface)
            leg.transport.write(data)
            sent += len(data)
            if self._full:
                self._writable = self._loop.create_future()
                await self._writable
        return sent

    def _occupy(self, purpose: str) -> None:
        if self._closing or self._over:
            raise RuntimeError(f"cannot {purpose}: the transport is closing")
        if self._busy:
            raise RuntimeError(f"cannot {purpose}: a file is being sent or TLS being started already")
        if self._holding:
            raise InterfaceChanged(f"cannot {purpose}: the connection is being replaced", interface=self._leg.interface)
        self._busy = True

    # What the owner calls

    def cut(self) -> None:
        """Write nothing to the current connection any more."""
        self._holding = self._cut = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self.balance()

    def replace(self, leg: Connection, data: bytes) -> None:
        """Go on over another connection.

        :param data: what the application is to read first
        """
        self._leg = leg
        self._cut = False
        if self._marks_set:
            leg.transport.set_write_buffer_limits(self._high, self._low)
        self.release()
        if data:
            self._deliver(data)
        leg.pour(self.deliver)
        if not self._reading:
            leg.read(False)

    def release(self) -> None:
        """Hand down what was held, in order."""
        self._holding = False
        held, self._held, self._held_size = b"".join(self._held), deque(), 0
        if held:
            self._leg.transport.write(held)
        if self._eof:
            self._leg.half_close()
        self.balance()
        if self._closing:
            self._owner.close()

    def finish(self) -> bool | None:
        """Tell the protocol of the peer's end of file."""
        return self._protocol.eof_received()  # type: ignore[attr-defined,no-any-return]

    def end(self, error: Exception | None) -> None:
        """Tell the protocol, soon, that it is over."""
        if self._over:
            return
        self._over = self._closing = True
        self._held.clear()
        self._held_size = 0
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._loop.call_soon(self._protocol.connection_lost, error)
