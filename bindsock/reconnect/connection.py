"""One real connection beneath a stable transport."""

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
"""Bytes that a new connection may bring before its hook begins. Then it is not read any further."""
_CLOSING = 1.0
"""Seconds for which TLS may take to close."""


class Dialled(Protocol):
    """A connected socket, with its peer and its path: what a dial returns."""

    @property
    def sock(self) -> socket.socket: ...

    @property
    def address(self) -> IPAddress:
        """The peer's."""

    @property
    def path(self) -> Path | None:
        """``None`` where the socket is bound to no interface."""


class Dial(Protocol):
    """Dials, does the rest with what is dialled, and starts both over while the path changes. See ``Dialer.complete``."""

    def __call__(self, rest: Callable[[Dialled], Awaitable[T]], /) -> Awaitable[T]: ...


Attach: TypeAlias = Callable[[asyncio.BaseProtocol, socket.socket], Awaitable[asyncio.Transport]]
"""Makes a transport of a connected socket, with TLS or without. If it fails, it closes the socket."""


CloseMode: TypeAlias = Literal["orderly", "abrupt", "reset"]
"""How a connection is ended: with a ``close_notify`` where there is TLS; at once; or at once, and its peer gets a reset."""


class ConnectionOwner(Protocol):
    """Who is told what happens to a connection."""

    def connection_finished(self, connection: Connection) -> None:
        """The peer has sent its end of file. ``connection.keep_open`` is what ``eof_received()`` will return."""

    def connection_ended(self, connection: Connection) -> None:
        """The connection is over; ``connection.error`` says why."""

    def connection_full(self, connection: Connection) -> None:
        """``connection.full`` has changed."""


class Connection(asyncio.Protocol):
    """The protocol of one real transport. It passes on what comes, or keeps it until somebody wants it."""

    def __init__(self, owner: ConnectionOwner, dialled: Dialled) -> None:
        self.dialled = dialled
        self.follower: PathFollower | None = None
        self.transport: asyncio.Transport
        self.finished: bool = False
        """The peer has sent its end of file."""
        self.keep_open: bool | None = True
        """Whether the transport stays open for writing when the peer has finished."""
        self.ended: bool = False
        self.error: Exception | None = None
        self.full: bool = False
        """The transport's write buffer is full."""
        self.received: int = 0
        """How often data came."""
        self.upgrading: bool = False
        """TLS is being started over the transport, which is the TLS protocol's until then."""
        self._owner: ConnectionOwner | None = owner
        self._sink: Callable[[bytes], object] | None = None
        self._early = bytearray()
        self._reading = True

    @property
    def sock(self) -> socket.socket:
        return self.dialled.sock

    @property
    def interface(self) -> str | None:
        """The name of the interface that it uses."""
        if self.follower is not None:
            return self.follower.place.interface
        path = self.dialled.path
        return path.interface if path is not None else None

    @property
    def dropped(self) -> bool:
        """Whether it has been forgotten, and ends."""
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
        # TLS cannot be half-closed, and asyncio warns of the attempt.
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

    def pour(self, sink: Callable[[bytes], object]) -> None:
        """Pass on what came, and from now on what comes."""
        self._sink = sink
        self.read(True)
        early = self.early()
        if early:
            sink(early)

    def early(self) -> bytes:
        """What came and has not been passed on."""
        early = bytes(self._early)
        self._early.clear()
        return early

    def read(self, on: bool) -> None:
        """Let the transport read, or not."""
        if on is not self._reading and not self.ended:
            self._reading = on
            if on:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def lend(self, protocol: asyncio.StreamReaderProtocol) -> None:
        """Give the transport to another protocol."""
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
        """Take the transport back; it may have been wrapped in TLS meanwhile."""
        if self.ended or self._owner is None:
            return
        self.transport = transport
        transport.set_protocol(self)
        if not transport.is_closing():
            # The other protocol may have paused it. If not, asyncio ignores this.
            transport.resume_reading()
            self._reading = True

    async def start_tls(
        self, start_tls: Callable[..., Awaitable[asyncio.Transport | None]], sslcontext: ssl.SSLContext, **options: Any
    ) -> None:
        """Put TLS on top of the transport.

        :param start_tls: the event loop's own
        """
        self.upgrading = True
        try:
            transport = await start_tls(self.transport, self, sslcontext, **options)
        except BaseException as error:
            # asyncio does not tell the protocol of a handshake that fails.
            self.connection_lost(error if isinstance(error, Exception) else None)
            raise
        finally:
            self.upgrading = False
        assert transport is not None
        self.transport = transport

    def half_close(self) -> bool:
        """Send what is buffered and then an end of file.

        :return: whether that is possible: not over TLS
        """
        if not self.transport.can_write_eof():
            return False
        with contextlib.suppress(OSError, RuntimeError):  # the program has half-closed it, or it was just lost
            self.transport.write_eof()
        return True

    def rest(self) -> bytes:
        """What came and was not read since reading was paused. Over TLS the kernel's part of it cannot be had."""
        rest = self.early()
        if self._reading or self.ended or self.encrypted:
            return rest
        with contextlib.suppress(OSError):
            while data := self.sock.recv(2**16):
                rest += data
        return rest

    def drop(self, kernel: Kernel, mode: CloseMode, runtime: Runtime, *, soon: bool = False) -> None:
        """Forget the connection, and end it.

        :param soon: end it in the next turn of the loop, so that what follows need not wait for that
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
            self.transport.close()
            runtime.call_later(_CLOSING, self.transport.abort)
            return
        else:
            self.transport.abort()
        if mode == "reset" and self.sock.fileno() != -1:
            with contextlib.suppress(OSError):
                kernel.abort(self.sock)
