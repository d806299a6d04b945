"""One real connection of a stable transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from bindsock.errors import InterfaceChanged
from bindsock.stream.guard import end_transport

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress
    from bindsock.netmon.runtime import Runtime
    from bindsock.stream.follower import PathFollower

T = TypeVar("T")

_EARLY = 2**16
"""Bytes that are buffered before the hook starts. Then reading pauses."""
_CLOSING = 1.0
"""Seconds that closing TLS may take."""


class Dialled(Protocol):
    """The result of a dial: a connected socket, with its peer and its path."""

    @property
    def sock(self) -> socket.socket: ...

    @property
    def address(self) -> IPAddress:
        """The address of the peer."""

    @property
    def path(self) -> Path | None:
        """The path; ``None`` if the socket is unbound."""


class Dial(Protocol):
    """Dials, calls ``rest`` with the result, and starts over if the path changes. See ``Dialer.complete``."""

    def __call__(self, rest: Callable[[Dialled], Awaitable[T]], /) -> Awaitable[T]: ...


Attach: TypeAlias = Callable[[asyncio.BaseProtocol, socket.socket], Awaitable[asyncio.Transport]]
"""Makes a transport for a connected socket, with TLS or without. If it fails, it closes the socket."""


CloseMode: TypeAlias = Literal["orderly", "abrupt", "reset"]
"""How to end a connection: with a ``close_notify`` if it uses TLS, at once, or at once with a reset for the peer."""


class ConnectionOwner(Protocol):
    """The owner of a connection, which is called for its events."""

    def connection_finished(self, connection: Connection) -> None:
        """Handle the peer's end of file. Set ``connection.keep_open`` to the result for ``eof_received()``."""

    def connection_ended(self, connection: Connection) -> None:
        """Handle the end of the connection; ``connection.error`` is the reason."""

    def connection_full(self, connection: Connection) -> None:
        """Handle a change of ``connection.full``."""


class Connection(asyncio.Protocol):
    """The protocol of one real transport. It passes on the received data, or buffers it until there is a receiver."""

    def __init__(self, owner: ConnectionOwner, dialled: Dialled) -> None:
        self.dialled = dialled
        self.follower: PathFollower | None = None
        self.transport: asyncio.Transport
        self.finished: bool = False
        """The peer has sent its end of file."""
        self.keep_open: bool | None = True
        """Whether the transport stays open for writing after the peer's end of file."""
        self.ended: bool = False
        self.error: Exception | None = None
        self.full: bool = False
        """The write buffer of the transport is full."""
        self.received: int = 0
        """How often data was received."""
        self.upgrading: bool = False
        """TLS is being started; meanwhile the TLS protocol owns the transport."""
        self._owner: ConnectionOwner | None = owner
        self._sink: Callable[[bytes], object] | None = None
        self._early = bytearray()
        self._reading = True

    @property
    def sock(self) -> socket.socket:
        return self.dialled.sock

    @property
    def interface(self) -> str | None:
        """The name of the interface in use."""
        if self.follower is not None:
            return self.follower.place.interface
        path = self.dialled.path
        return path.interface if path is not None else None

    @property
    def dropped(self) -> bool:
        """Whether :meth:`drop` was called."""
        return self._owner is None

    @property
    def encrypted(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.received += 1
        if self._sink is not None:
            self._sink(data)
            return
        self._early += data
        if len(self._early) > _EARLY and self._reading:
            self.read(False)

    def eof_received(self) -> bool | None:
        self.finished = True
        if self._owner is None:
            return None
        self._owner.connection_finished(self)
        # TLS cannot be half-closed, and asyncio logs a warning for the attempt.
        return self.keep_open and not self.encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended:
            return
        self.ended = True
        self.error = exc
        if self._owner is not None:
            self._owner.connection_ended(self)

    def pause_writing(self) -> None:
        self.full = True
        if self._owner is not None:
            self._owner.connection_full(self)

    def resume_writing(self) -> None:
        self.full = False
        if self._owner is not None:
            self._owner.connection_full(self)

    def deliver_to(self, sink: Callable[[bytes], object]) -> None:
        """Pass the buffered data to a receiver, and from now on all data that is received."""
        self._sink = sink
        self.read(True)
        early = self.early()
        if early:
            sink(early)

    def early(self) -> bytes:
        """Take the buffered data."""
        early = bytes(self._early)
        self._early.clear()
        return early

    def read(self, on: bool) -> None:
        """Resume or pause reading."""
        if on is not self._reading and not self.ended:
            self._reading = on
            if on:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def lend(self, protocol: asyncio.StreamReaderProtocol) -> None:
        """Lend the transport to another protocol."""
        protocol.connection_made(self.transport)
        if self.ended:
            protocol.connection_lost(self.error)
            return
        self.transport.set_protocol(protocol)
        self.read(True)
        early = self.early()
        if early:
            protocol.data_received(early)
        if self.finished:
            protocol.eof_received()

    def take_back(self, transport: asyncio.Transport) -> None:
        """Take the transport back. It may use TLS now."""
        if self.ended or self._owner is None:
            return
        self.transport = transport
        transport.set_protocol(self)
        if not transport.is_closing():
            # The other protocol may have paused reading. Otherwise asyncio ignores this call.
            transport.resume_reading()
            self._reading = True

    async def start_tls(
        self, start_tls: Callable[..., Awaitable[asyncio.Transport | None]], sslcontext: ssl.SSLContext, **options: Any
    ) -> None:
        """Start TLS on the transport.

        :param start_tls: the method of the event loop
        """
        self.upgrading = True
        try:
            transport = await start_tls(self.transport, self, sslcontext, **options)
        except BaseException as error:
            # asyncio does not report a failed handshake to the protocol.
            self.connection_lost(error if isinstance(error, Exception) else None)
            raise
        finally:
            self.upgrading = False
        assert transport is not None
        self.transport = transport

    def half_close(self) -> bool:
        """Send the buffered data and then an end of file.

        :return: whether that is possible; it is not with TLS
        """
        if not self.transport.can_write_eof():
            return False
        with contextlib.suppress(OSError, RuntimeError):  # the program has half-closed it, or it has just been lost
            self.transport.write_eof()
        return True

    def read_rest(self) -> bytes:
        """Read the received data that is still unread because reading was paused. With TLS, the kernel's part is not included."""
        rest = self.early()
        if self._reading or self.ended or self.encrypted:
            return rest
        with contextlib.suppress(OSError):
            while data := self.sock.recv(2**16):
                rest += data
        return rest

    def drop(self, kernel: Kernel, mode: CloseMode, runtime: Runtime, *, soon: bool = False) -> None:
        """Ignore the events of the connection from now on, and end it.

        :param mode: how to end it
        :param soon: end it in the next iteration of the loop, so that more urgent work comes first
        """
        dropped = self.dropped
        self._owner = self._sink = None
        if self.follower is not None:
            self.follower.close()
        if self.ended or dropped:
            return
        if not self.upgrading:
            self.transport.set_protocol(asyncio.Protocol())
        if soon:
            runtime.call_soon(self._end, kernel, mode, runtime)
        else:
            self._end(kernel, mode, runtime)

    def _end(self, kernel: Kernel, mode: CloseMode, runtime: Runtime) -> None:
        if self.upgrading:
            end_transport(self.transport, InterfaceChanged("the connection was replaced while TLS was being started on it"))
        elif mode == "orderly" and self.encrypted:
            if not self.transport.is_closing():  # early 3.11 cannot abort what was closed twice
                self.transport.close()
            runtime.call_later(_CLOSING, self.transport.abort)
            return
        else:
            self.transport.abort()
        if mode == "reset" and self.sock.fileno() != -1:
            with contextlib.suppress(OSError):
                kernel.abort(self.sock)
