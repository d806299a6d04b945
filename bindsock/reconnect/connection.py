"""One real connection beneath a stable transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from bindsock.errors import InterfaceChanged
from bindsock.stream.guard import end_transport

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress
    from bindsock.stream.follower import PathFollower

logger = logging.getLogger("bindsock")

_EARLY = 2**16
"""Bytes that a new connection may bring before its hook begins; then it has to wait."""


class Dialled(Protocol):
    """A connected socket, and on what it rests: what a dial returns."""

    @property
    def sock(self) -> socket.socket: ...

    @property
    def address(self) -> IPAddress:
        """The peer's."""

    @property
    def path(self) -> Path | None:
        """``None`` where the socket is bound to no interface."""


Dial: TypeAlias = Callable[[], Awaitable[Dialled]]
"""Connects anew: names resolved again, the socket bound to whatever interface is effective then."""
Attach: TypeAlias = Callable[[asyncio.BaseProtocol, socket.socket], Awaitable[asyncio.Transport]]
"""Makes a transport of a connected socket, with TLS or without. If it fails, it closes the socket."""


CloseMode: TypeAlias = Literal["kind", "none", "reset"]
"""How a connection is left: with a ``close_notify`` where there is TLS; at once; or with a reset, since it is of no use."""


class ConnectionOwner(Protocol):
    """Who is told what happens to a leg."""

    def leg_finished(self, leg: Connection) -> bool | None:
        """The peer has sent its end of file. The return value is that of ``eof_received()``."""

    def leg_ended(self, leg: Connection) -> None:
        """The connection is over; ``leg.error`` says why."""

    def leg_full(self, leg: Connection, full: bool) -> None:
        """The transport's write buffer is full, or no longer."""


class Connection(asyncio.Protocol):
    """The protocol of one real transport; it passes on what comes, or keeps it until somebody wants it."""

    def __init__(self, owner: ConnectionOwner, dialled: Dialled) -> None:
        self.sock = dialled.sock
        self.address = dialled.address
        self.path = dialled.path
        self.standing: PathFollower | None = None
        self.transport: asyncio.Transport
        self.finished = False
        self.ended = False
        self.error: Exception | None = None
        self.full = False
        self.received = 0
        """How often data came."""
        self.upgrading = False
        """TLS is being started over the transport: for that time it is the TLS protocol's."""
        self._owner: ConnectionOwner | None = owner
        self._sink: Callable[[bytes], object] | None = None
        self._early = bytearray()
        self._reading = True

    @property
    def interface(self) -> str | None:
        """The name of the interface that it uses."""
        if self.standing is not None:
            return self.standing.place.interface
        return self.path.interface if self.path is not None else None

    @property
    def dropped(self) -> bool:
        """Whether it has been forgotten, and ends."""
        return self._owner is None

    @property
    def encrypted(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    # asyncio calls these

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
        keep_open = self._owner.leg_finished(self) if self._owner is not None else None
        # Over TLS there is no half of a connection, and asyncio warns of the attempt.
        return keep_open and not self.encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended:
            return
        self.ended = True
        self.error = exc
        if self._owner is not None:
            self._owner.leg_ended(self)

    def pause_writing(self) -> None:
        self.full = True
        if self._owner is not None:
            self._owner.leg_full(self, True)

    def resume_writing(self) -> None:
        self.full = False
        if self._owner is not None:
            self._owner.leg_full(self, False)

    # The owner calls these

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
            # The other protocol may have paused it, and asyncio does not mind if it has not.
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
            # Of a handshake that fails asyncio does not tell the protocol.
            self.connection_lost(error if isinstance(error, Exception) else None)
            raise
        finally:
            self.upgrading = False
        assert transport is not None
        self.transport = transport

    def half_close(self) -> bool:
        """Send what is buffered and then an end of file.

        :return: whether that can be: not over TLS
        """
        if not self.transport.can_write_eof():
            return False
        with contextlib.suppress(OSError, RuntimeError):  # half-closed by the application before, or just lost
            self.transport.write_eof()
        return True

    def rest(self) -> bytes:
        """What the kernel has received and nobody has read, because reading was paused. Over TLS it cannot be had."""
        rest = self.early()
        if self._reading or self.ended or self.encrypted:
            return rest
        with contextlib.suppress(OSError):
            while data := self.sock.recv(2**16):
                rest += data
        return rest

    def drop(self, kernel: Kernel, farewell: CloseMode, loop: asyncio.AbstractEventLoop, *, soon: bool = False) -> None:
        """Forget the connection, and end it.

        :param soon: end it in the next turn of the loop only: what comes instead is not to wait for that
        """
        dropped = self.dropped
        self._owner = self._sink = None
        if self.standing is not None:
            self.standing.close()
        if self.ended or dropped:
            return
        if not self.upgrading:
            self.transport.set_protocol(asyncio.Protocol())
        if soon:
            loop.call_soon(self._end, kernel, farewell, loop)
        else:
            self._end(kernel, farewell, loop)

    def _end(self, kernel: Kernel, farewell: CloseMode, loop: asyncio.AbstractEventLoop) -> None:
        if self.upgrading:
            end_transport(self.transport, InterfaceChanged("the connection was replaced while TLS was being started on it"))
        elif farewell == "kind" and self.encrypted:
            self.transport.close()
            loop.call_later(1.0, self.transport.abort)
            return
        else:
            self.transport.abort()
        if farewell == "reset" and self.sock.fileno() != -1:
            with contextlib.suppress(OSError):
                kernel.abort(self.sock)
