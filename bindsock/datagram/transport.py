"""One stable datagram transport, whose sockets change with the network.

To its protocol it behaves like asyncio's own datagram transport, on any event loop. :mod:`bindsock.datagram.mover` manages its
sockets, and :mod:`bindsock.datagram.sender` handles refused sends.
"""

from __future__ import annotations

import asyncio
import asyncio.trsock
import logging
import socket
import warnings
from typing import TYPE_CHECKING, Any

from bindsock.datagram.drop_counter import SAMPLE_INTERVAL
from bindsock.datagram.sender import Data, Sender
from bindsock.dial.refusal import reported_error
from bindsock.options import buffer_limits

if TYPE_CHECKING:
    from bindsock.datagram.mover import DatagramMover
    from bindsock.dial.resolving import SockAddr
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.loop import Future
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

_BATCH = 16
"""How many datagrams are read from one socket before other callbacks run."""
_SINGLES = 8
"""After a datagram that came alone, so many are read one at a time: a read without a result takes 2 µs."""
_MAX_DATAGRAM = 1 << 16
_HIGH_WATER = 64 * 1024
_LAST_BATCHES = 64
_WARN_AFTER = 5
"""Sends on a closed transport before a warning is logged."""


class DatagramTransport(asyncio.DatagramTransport):
    """A datagram transport that moves with the effective interface. ``create_datagram_endpoint()`` returns it."""

    __slots__ = (
        "__weakref__",
        "_closing",
        "_high_water",
        "_lost",
        "_low_water",
        "_mover",
        "_paused",
        "_protocol",
        "_remote",
        "_runtime",
        "_sender",
        "_singles",
        "_statistics",
        "_strict",
        "_used_until",
    )

    def __init__(
        self,
        runtime: Runtime,
        protocol: asyncio.DatagramProtocol,
        mover: DatagramMover,
        statistics: Statistics,
        *,
        remote: SockAddr | None = None,
        strict: bool = True,
        waiter: Future | None = None,
    ) -> None:
        """
        :param remote: the only destination, if there is a single one
        :param strict: whether another destination is an error; otherwise it is ignored
        :param waiter: a future that completes when ``connection_made()`` has been called
        """
        super().__init__()
        self._runtime = runtime
        self._protocol: asyncio.DatagramProtocol | None = protocol
        self._mover = mover
        self._statistics = statistics
        self._remote = remote
        self._strict = strict
        self._sender = Sender(mover, self, remote)
        self._high_water, self._low_water = _HIGH_WATER, _HIGH_WATER // 4
        self._paused = False
        self._singles = 0
        self._used_until = 0.0
        self._closing = False
        self._lost = 0
        runtime.call_soon(self._begin, protocol, waiter)

    def _begin(self, protocol: asyncio.DatagramProtocol, waiter: Future | None) -> None:
        """Call ``connection_made()``, start to read, and complete the waiter, all in one callback to save time."""
        try:
            protocol.connection_made(self)
        finally:
            self._mover.start_reading()
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "waiting" if self._mover.no_path else "open"
        return f"<{type(self).__name__} {state} fd={self._mover.sock.fileno()} interface={self._mover.interface}>"

    def __del__(self) -> None:
        mover: DatagramMover | None = getattr(self, "_mover", None)
        if mover is not None and not mover.closed:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            mover.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The present ``"socket"``, ``"sockname"`` and ``"peername"``, and ``"interface"``, the name of the interface in use.

        The returned socket may be closed after the interface has changed; then ask for it again.
        """
        mover = self._mover
        if name == "socket":
            mover.in_place.handed_out = True
            return asyncio.trsock.TransportSocket(mover.sock)
        if name == "sockname":
            return mover.sockname
        if name == "peername":
            return mover.peer if mover.peer is not None else default
        if name == "interface":
            return mover.interface if mover.interface is not None else default
        return default

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[return-value]

    def get_write_buffer_size(self) -> int:
        """The bytes that wait for the socket or for a path."""
        return self._sender.backlog.size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_water, self._low_water = buffer_limits(high, low, _HIGH_WATER)
        self._pause_or_resume()

    def close(self) -> None:
        """Stop receiving, send the waiting datagrams, then close. Datagrams wait for a path for at most 5 seconds."""
        if self._closing:
            return
        self._closing = True
        self._mover.stop_reading()
        if not self._sender.backlog:
            self._end(None)

    def abort(self) -> None:
        """Close at once. Waiting datagrams are lost."""
        self._end(None)

    def sendto(self, data: Data, addr: Any = None) -> None:
        """Send a datagram, or hold it until there is a path.

        :param addr: the destination; ``None`` for the remote address
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._remote is not None:
            if addr is not None and self._strict and tuple(addr[:2]) != self._remote[:2]:
                raise ValueError(f"Invalid address: must be None or {self._remote}")
            addr = None
        elif addr is None:
            raise ValueError("the endpoint has no remote address: give a destination")
        if self._lost:
            if self._lost >= _WARN_AFTER:
                _logger.warning("a program sends datagrams on a closed transport")
            self._lost += 1
            self._sender.refuse()
            return
        self._sender.send(data, addr)

    def readable(self, sock: socket.socket) -> None:
        """Read a batch of datagrams."""
        now = self._runtime.time()
        if now >= self._used_until:
            self._used_until = now + SAMPLE_INTERVAL
            self._mover.followers.used(self._mover)
        if self._singles:
            self._singles -= 1
            self._read(sock, 1)
        else:
            self._read(sock, _BATCH)

    def drain(self, sock: socket.socket) -> None:
        """Read the remaining datagrams of a socket that is about to be closed."""
        for _ in range(_LAST_BATCHES):
            try:
                if not self._read(sock, _BATCH):
                    return
            except Exception as exc:  # noqa: BLE001 - an error of the program's protocol, reported as the loop would
                self._call_exception_handler(exc, "protocol.datagram_received() failed")

    def path_found(self) -> None:
        """Send the waiting datagrams."""
        self._sender.path_found()

    def fail(self, error: OSError) -> None:
        """End with an error."""
        self._end(error)

    def settled(self) -> None:
        """Check flow control, report errors to the protocol, and finish a close that waited for the backlog."""
        if self._lost:
            return
        self._pause_or_resume()
        self._report(self._sender.errors)
        if self._closing and not self._sender.backlog:
            self._end(None)

    def broken(self, exc: BaseException) -> None:
        """End with an unexpected exception, as asyncio does."""
        self._call_exception_handler(exc, "Fatal write error on datagram transport")
        self._end(exc)

    def _read(self, sock: socket.socket, most: int) -> bool:
        """Read datagrams until there are no more.

        :param most: how many to read at most
        :return: whether there may be more
        """
        mover = self._mover
        for count in range(most):
            if self._closing or sock.fileno() == -1:
                return False
            try:
                data, addr = sock.recvfrom(_MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                if count == 0:
                    mover.read_on(sock)
                elif count == 1:
                    self._singles = _SINGLES
                return False
            except OSError as exc:
                mover.read_on(sock)
                # Errors of old sockets are of no interest to the protocol.
                if sock is mover.sock:
                    self._call("error_received", reported_error(exc, mover.interface))
                return False
            peer = mover.peer
            if peer is not None and addr != peer and _is_stranger(addr, peer):
                # During an in-place move the socket is not connected for a moment, so anybody can send to it.
                self._statistics.foreign += 1
            elif self._protocol is not None:
                self._protocol.datagram_received(data, addr)
        return True

    def _pause_or_resume(self) -> None:
        if not self._paused and self._sender.backlog.size > self._high_water:
            self._paused = True
            self._call("pause_writing")
        elif self._paused and self._sender.backlog.size <= self._low_water:
            self._paused = False
            self._call("resume_writing")

    def _end(self, exc: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = 1
        self._closing = True
        self._sender.stop()
        self._mover.stop()
        if self._runtime.closed:
            self._mover.close()
        else:
            self._runtime.call_soon(self._connection_lost, exc)

    def _connection_lost(self, exc: BaseException | None) -> None:
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(exc)  # type: ignore[arg-type]  # any exception, as in asyncio
        finally:
            self._mover.close()
            self._protocol = None

    def _report(self, errors: list[OSError]) -> None:
        while errors:
            self._call("error_received", errors.pop(0))

    def _call(self, name: str, *arguments: object) -> None:
        try:
            if self._protocol is not None:
                getattr(self._protocol, name)(*arguments)
        except Exception as exc:  # noqa: BLE001 - an error of the program's protocol, reported as the loop would
            self._call_exception_handler(exc, f"protocol.{name}() failed")

    def _call_exception_handler(self, exc: BaseException, message: str) -> None:
        context = {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        self._runtime.call_exception_handler(context)


def _is_stranger(addr: Any, peer: SockAddr) -> bool:
    """Whether a datagram comes from another address than the peer's. Scopes are ignored, because not all addresses have one."""
    return (addr[0].partition("%")[0], addr[1]) != (peer[0].partition("%")[0], peer[1])
