"""One stable datagram transport over whatever sockets the network makes necessary.

To its protocol it is asyncio's own datagram transport, on any event loop: it needs ``add_reader``, ``add_writer``, ``call_soon``
and ``call_later`` and nothing else. What is different is what happens to a send that is refused because the path is gone: it is
held, the network is looked at again, and it goes out by the new interface, in order. A refusal that has another reason (a peer's
ICMP, a destination that is unreachable while the path is not) is reported to ``error_received()``, as asyncio does.
"""

from __future__ import annotations

import asyncio
import asyncio.trsock
import errno
import logging
import socket
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from bindsock.errors import InterfaceChanged, NoRoute
from bindsock.resolving import address_of
from bindsock.transports.backlog import Backlog, Outcome, Waiting

if TYPE_CHECKING:
    from bindsock.effective import Decider
    from bindsock.resolving import SockAddr
    from bindsock.statistics import Statistics
    from bindsock.transports.moving import Mover

logger = logging.getLogger("bindsock")

HELD_FOR = 5.0
"""Seconds for which a datagram waits for a path."""
DOUBTED_FOR = 0.5
"""Seconds after which a refusal is the destination's fault, if the path still looks intact: the network has been read by then."""
_TICK = 0.05
_SLOWEST_TICK = 0.5
_BATCH = 16
"""Datagrams read from one socket before others have their turn."""
_MAX_DATAGRAM = 1 << 16
_LAST_BATCHES = 64
_MAX_LOCAL = 1024
_WARN_AFTER = 5
"""Sends after the end that are not worth a word."""

_PATH_GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ENETUNREACH",
        "ENETDOWN",
        "ENODEV",
        "ENXIO",
        "EADDRNOTAVAIL",
        "EHOSTUNREACH",
        "ENONET",
        "EPIPE",
    )
    if hasattr(errno, name)
)
"""What send() says when the interface, its address or its route is gone; EPIPE of a socket that was silenced."""
_PENDING = _PATH_GONE | {errno.ECONNREFUSED}
"""What send() says, too, on account of an earlier datagram (an ICMP error is reported once, by whatever call comes next)."""


class DatagramTransport(asyncio.DatagramTransport):
    """A datagram transport that stays on the effective interface. Made by ``create_datagram_endpoint()``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.DatagramProtocol,
        mover: Mover,
        statistics: Statistics,
        *,
        remote: SockAddr | None = None,
        strict: bool = True,
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        """
        :param remote: the only destination there is
        :param strict: whether naming another one is an error, rather than ignored
        :param waiter: gets a result when the protocol knows its transport
        """
        super().__init__()
        self._loop = weakref.ref(loop)
        self._protocol: asyncio.DatagramProtocol | None = protocol
        self._mover = mover
        self._statistics = statistics
        self._remote = remote
        self._strict = strict
        self._backlog = Backlog()
        self._writing: socket.socket | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tick_delay = _TICK
        self._poking = False
        self._full = False
        self._refusal: OSError | None = None
        self._complained = False
        self._unreachable: set[object] = set()
        self._errors: list[OSError] = []
        self._is_local_to: dict[object, bool] = {}
        self._local_by: Decider | None = None
        self._high_water = self._low_water = 0
        self._paused = False
        self._closing = False
        self._lost = 0
        self.set_write_buffer_limits()
        loop.call_soon(protocol.connection_made, self)
        loop.call_soon(mover.start_reading)
        if waiter is not None:
            loop.call_soon(_fulfil, waiter)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "waiting" if self._mover.stranded else "open"
        return f"<{type(self).__name__} {state} fd={self._mover.sock.fileno()} interface={self._mover.interface}>"

    def __del__(self) -> None:
        mover: Mover | None = getattr(self, "_mover", None)
        if mover is not None and mover.sock.fileno() != -1:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            mover.close()

    # What asyncio's transports have

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``"socket"``, ``"sockname"`` and ``"peername"`` as they are now, and ``"interface"``, the name of the one in use.

        A socket that was asked for may be closed after the interface has changed: ask again.
        """
        mover = self._mover
        if name == "socket":
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
        """Bytes that wait for the socket or for a path."""
        return self._backlog.size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high_water, self._low_water = high, low
        self._pause_or_resume()

    def close(self) -> None:
        """Receive no more, send what waits, then close. What waits for a path does so for 5 seconds at the most."""
        if self._closing:
            return
        self._closing = True
        self._mover.stop_reading()
        if not self._backlog:
            self._end(None)

    def abort(self) -> None:
        """Close at once. What waits is lost."""
        self._end(None)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send a datagram, or hold it until there is a path.

        :param addr: the destination; ``None`` for the remote address
        :raises NoRoute: the destination is this host, which a socket that is bound to an interface does not reach
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._remote is not None:
            if addr is not None and self._strict and tuple(addr[:2]) != self._remote[:2]:
                raise ValueError(f"Invalid address: must be None or {self._remote}")
            addr = None
        elif addr is None:
            raise ValueError("the endpoint has no remote address: the destination must be given")
        if self._lost:
            if self._lost >= _WARN_AFTER:
                logger.warning("a datagram was sent by a closed transport")
            self._lost += 1
            return
        mover = self._mover
        if addr is not None and mover.place.path is not None and self._is_local(addr):
            raise NoRoute(
                f"{addr[0]} is this host, which a socket bound to {mover.interface} cannot reach: use another endpoint for it",
                interface=mover.interface,
            )
        now = time.monotonic()
        if mover.stranded or self._writing is not None or self._backlog.waits_for(addr):
            self._wait(data, addr, now, held=mover.stranded or self._writing is None)
            return
        outcome = self._attempt(data, addr, now)
        if outcome is Outcome.FULL:
            self._add_writer()
            self._wait(data, addr, now, held=False)
        elif outcome is Outcome.REFUSED:
            self._wait(data, addr, now, held=True)
            self._poke_soon()
        if self._errors:
            self._report()

    # What the mover calls

    def readable(self, sock: socket.socket) -> None:
        """Read some."""
        self._read(sock)

    def drain(self, sock: socket.socket) -> None:
        """Read the last."""
        for _ in range(_LAST_BATCHES):
            try:
                if not self._read(sock):
                    return
            except Exception as exc:  # noqa: BLE001 - the program's own, reported as the loop would
                self._call_exception_handler(exc, "protocol.datagram_received() failed")

    def path_found(self) -> None:
        """Send what waits."""
        if self._writing is not None and self._writing is not self._mover.sock:
            self._remove_writer()
        self._unreachable.clear()
        self._refusal = None
        self._complained = False
        self._tick_delay = _TICK
        self._flush()

    def fail(self, error: OSError) -> None:
        """End with an error."""
        self._end(error)

    # Receiving

    def _read(self, sock: socket.socket) -> bool:
        """Read a batch.

        :return: whether there may be more
        """
        mover = self._mover
        for _ in range(_BATCH):
            if self._closing or sock.fileno() == -1:
                return False
            try:
                data, addr = sock.recvfrom(_MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as exc:
                # Of a socket that is on its way out nobody wants to hear.
                if sock is mover.sock:
                    self._errors.append(exc)
                    self._report()
                return False
            if mover.peer is not None and addr[:2] != mover.peer[:2] and _is_stranger(addr, mover.peer):
                # Between bind() and connect() of a socket that is moved in place, everybody can send to it.
                self._statistics.foreign += 1
            elif self._protocol is not None:
                self._protocol.datagram_received(data, addr)
        return True

    # Sending

    def _transmit(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        mover = self._mover
        if mover.peer is not None:
            mover.sock.send(data)
        else:
            destination: Any = addr if addr is not None else self._remote
            mover.sock.sendto(data, destination)

    def _attempt(self, data: bytes | bytearray | memoryview, addr: Any, now: float) -> Outcome:
        try:
            self._transmit(data, addr)
        except (BlockingIOError, InterruptedError):
            return Outcome.FULL
        except OSError as exc:
            return self._refused(exc, data, addr, now)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 - as asyncio: whatever it is, it ends the transport
            self._call_exception_handler(exc, "Fatal write error on datagram transport")
            self._end(exc)
            return Outcome.FAILED
        self._mover.record.sent(now)
        return Outcome.SENT

    def _refused(self, exc: OSError, data: bytes | bytearray | memoryview, addr: Any, now: float) -> Outcome:
        if exc.errno in _PENDING:
            try:
                self._transmit(data, addr)
            except (BlockingIOError, InterruptedError):
                self._errors.append(exc)
                return Outcome.FULL
            except OSError as again:
                if again.errno in _PATH_GONE and self._mover.followed and addr not in self._unreachable:
                    self._refusal = again
                    return Outcome.REFUSED
                exc = again
            else:
                self._errors.append(exc)
                self._mover.record.sent(now)
                return Outcome.SENT
        self._errors.append(exc)
        return Outcome.FAILED

    def _attempt_waiting(self, waiting: Waiting, now: float) -> Outcome:
        outcome = self._attempt(waiting.data, waiting.address, now)
        if outcome is Outcome.FULL:
            self._full = True
        elif waiting.held and outcome is Outcome.SENT:
            self._statistics.held += 1
        elif waiting.held and outcome is Outcome.FAILED:
            self._statistics.lost += 1
        return outcome

    def _wait(self, data: bytes | bytearray | memoryview, addr: object, now: float, *, held: bool) -> None:
        self._statistics.lost += self._backlog.add(bytes(data), addr, now, held=held)
        if held:
            self._arm()
        self._pause_or_resume()

    def _flush(self) -> None:
        self._send_waiting()
        self._settle()

    def _send_waiting(self) -> None:
        if not self._backlog or self._mover.stranded:
            return
        now = time.monotonic()
        self._full = False
        self._backlog.send(lambda waiting: self._attempt_waiting(waiting, now), now)
        if self._full:
            self._add_writer()
        else:
            self._remove_writer()

    def _settle(self) -> None:
        """What follows from a backlog that may be shorter now."""
        if self._lost:
            return
        if self._backlog.holds:
            self._arm()
        self._pause_or_resume()
        if self._errors:
            self._report()
        if self._closing and not self._backlog:
            self._end(None)

    # Without a path

    def _poke_soon(self) -> None:
        """Have the network read, but not inside the program's call of sendto()."""
        loop = self._loop()
        if not self._poking and loop is not None:
            self._poking = True
            loop.call_soon(self._poke)

    def _poke(self) -> None:
        self._poking = False
        if not self._lost:
            self._mover.poke()

    def _arm(self) -> None:
        loop = self._loop()
        if self._tick is None and loop is not None:
            self._tick = loop.call_later(self._tick_delay, self._on_tick)
            self._tick_delay = min(2 * self._tick_delay, _SLOWEST_TICK)

    def _on_tick(self) -> None:
        self._tick = None
        self._send_waiting()
        self._expire()
        if self._backlog.holds:
            self._mover.poke()
        self._settle()

    def _expire(self) -> None:
        stranded = self._mover.stranded
        expired = self._backlog.expire(time.monotonic() - (HELD_FOR if stranded else DOUBTED_FOR))
        if not expired:
            return
        self._statistics.lost += len(expired)
        if not stranded:
            # The path is intact, so it is these destinations: from now on each refusal is reported at once, until it changes.
            self._unreachable.update(waiting.address for waiting in expired)
        elif self._complained:
            return
        self._complained = stranded
        interface = self._mover.interface
        text = f"no interface has taken over from {interface}" if interface is not None else "no interface may be used"
        self._errors.append(self._refusal or InterfaceChanged(f"{text}, {len(expired)} datagrams are lost", interface=interface))

    def _is_local(self, addr: Any) -> bool:
        """Whether the destination is this host. Asked for each datagram, so the answers are kept."""
        decider = self._mover.decider
        if decider is None:
            return False
        if self._local_by is not decider or len(self._is_local_to) > _MAX_LOCAL:
            self._local_by = decider
            self._is_local_to.clear()
        key = addr[0] if len(addr) == 2 else (addr[0], addr[-1])
        local = self._is_local_to.get(key)
        if local is None:
            try:
                local = decider.is_local(address_of(addr))
            except ValueError:
                local = addr[0] in ("", "localhost")
            self._is_local_to[key] = local
        return local

    # Writability and flow control

    def _add_writer(self) -> None:
        loop = self._loop()
        if self._writing is None and loop is not None:
            self._writing = self._mover.sock
            loop.add_writer(self._writing, self._flush)

    def _remove_writer(self) -> None:
        loop = self._loop()
        if self._writing is not None:
            if loop is not None and not loop.is_closed() and self._writing.fileno() != -1:
                loop.remove_writer(self._writing)
            self._writing = None

    def _pause_or_resume(self) -> None:
        if not self._paused and self._backlog.size > self._high_water:
            self._paused = True
            self._call("pause_writing")
        elif self._paused and self._backlog.size <= self._low_water:
            self._paused = False
            self._call("resume_writing")

    # The end, and what the protocol is told

    def _end(self, exc: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = 1
        self._closing = True
        self._remove_writer()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self._statistics.lost += self._backlog.clear()
        self._mover.stop()
        loop = self._loop()
        if loop is not None:
            loop.call_soon(self._connection_lost, exc)
        else:
            self._mover.close()

    def _connection_lost(self, exc: BaseException | None) -> None:
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(exc)  # type: ignore[arg-type]  # as asyncio: whatever it was
        finally:
            self._mover.close()
            self._protocol = None

    def _report(self) -> None:
        errors, self._errors = self._errors, []
        for error in errors:
            self._call("error_received", error)

    def _call(self, name: str, *arguments: object) -> None:
        try:
            if self._protocol is not None:
                getattr(self._protocol, name)(*arguments)
        except Exception as exc:  # noqa: BLE001 - the program's own, reported as the loop would
            self._call_exception_handler(exc, f"protocol.{name}() failed")

    def _call_exception_handler(self, exc: BaseException, message: str) -> None:
        loop = self._loop()
        if loop is not None:
            context = {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
            loop.call_exception_handler(context)


def _is_stranger(addr: Any, peer: SockAddr) -> bool:
    """Whether a datagram is not the peer's; a scope may be written or not."""
    return (addr[0].partition("%")[0], addr[1]) != (peer[0].partition("%")[0], peer[1])


def _fulfil(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
