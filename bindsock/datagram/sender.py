"""Sends datagrams by the current socket, and holds them while there is no path.

If a send is refused because the path is gone, the datagram is held and the network is read again. Held datagrams leave by the new
interface, the oldest first and at most :data:`RATE` a second, because a burst of several seconds' datagrams would overflow the
next queue on the path. A refusal for another reason (an ICMP message of the peer, or an unreachable destination on an intact
path) is reported to the protocol, as in asyncio.

Every datagram is counted once (see :class:`bindsock.model.statistics.Statistics`): when the system accepts it, or when it is
given up. Until then it counts as waiting.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bindsock.datagram.backlog import Backlog, Outcome, Waiting
from bindsock.dial.refusal import datagram_error, reported_error
from bindsock.errors import InterfaceChanged
from bindsock.model.statistics import Loss
from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from bindsock.datagram.drop_counter import DropCounter
    from bindsock.datagram.mover import DatagramMover
    from bindsock.dial.resolving import SockAddr
    from bindsock.netmon.loop import Timer

HELD_FOR = 5.0
"""Seconds for which a datagram waits for a path."""
DOUBTED_FOR = 0.5
"""Seconds after which a refusal counts as the fault of the destination, if the network has been read again since, and the path is
still intact."""
RATE = 1000.0
"""How many held datagrams are sent per second, plus one for each that the program adds meanwhile."""
TURN = 0.01
"""Seconds between two batches of held datagrams."""
LONGEST_TURN = 0.1
"""Seconds that count at most for the size of a batch, however late it is."""
_FIRST_TICK = 0.05
_LAST_TICK = 0.5

_PATH_GONE = frozenset(
    getattr(errno, name)
    for name in ("ENETUNREACH", "ENETDOWN", "ENODEV", "ENXIO", "EADDRNOTAVAIL", "EHOSTUNREACH", "ENONET", "EPIPE")
    if hasattr(errno, name)
)
"""The errors of send() when the interface, its address or its route is gone; EPIPE after shutdown() has silenced the socket."""
_PENDING = _PATH_GONE | {errno.ECONNREFUSED, errno.EACCES, errno.EPROTO, errno.ENOPROTOOPT}
"""The errors of send() that may belong to an earlier datagram: the next call on the socket reports an ICMP error once."""

Data: TypeAlias = bytes | bytearray | memoryview


class SenderUser(Protocol):
    """The transport whose datagrams are sent."""

    def settled(self) -> None:
        """Check flow control and report errors: the backlog has changed, or there are errors for the protocol."""

    def broken(self, exc: BaseException) -> None:
        """Fail: the socket raised an error that is no :class:`OSError`."""


class _Refusals:
    """The refused sends since there was a path last."""

    __slots__ = ("latest", "recheck_due", "reported", "unreachable", "unwatched")

    def __init__(self) -> None:
        self.latest: OSError | None = None
        """The latest error."""
        self.reported = False
        """The protocol has been told that there is no path."""
        self.unreachable: set[object] = set()
        """Destinations whose refusals are reported at once, until something changes."""
        self.recheck_due = False
        self.unwatched: set[socket.socket] = set()
        """The sockets that the event loop may have stopped watching."""

    def clear(self) -> None:
        self.latest = None
        self.reported = False
        self.unreachable.clear()


class _Pace:
    """The batches in which held datagrams are sent."""

    __slots__ = ("allowance", "began", "timer")

    def __init__(self) -> None:
        self.timer: Timer | None = None
        """The next batch, if one is scheduled."""
        self.began = 0.0
        self.allowance = 0
        """How many held datagrams may be sent before the next batch."""

    def allow(self, seconds: float = TURN) -> None:
        """Allow as many datagrams as :data:`RATE` permits in so many seconds."""
        self.allowance = int(RATE * min(max(seconds, TURN), LONGEST_TURN))


_NO_PACE = _Pace()
"""The pace of a sender that has not held a datagram yet."""
_NO_BACKLOG = Backlog()
"""The backlog of a sender that has not held a datagram yet. A deque takes more memory than the rest of a sender."""


class Sender:
    """The sending half of a datagram transport.

    :param user: the transport
    :param remote: the default destination
    """

    __slots__ = (
        "_counted",
        "_drops",
        "_followers",
        "_mover",
        "_pace",
        "_refusals",
        "_remote",
        "_stopped",
        "_ticks",
        "_time",
        "_user",
        "_writing",
        "backlog",
        "errors",
    )

    def __init__(
        self,
        mover: DatagramMover,
        user: SenderUser,
        remote: SockAddr | None,
    ) -> None:
        self.backlog: Backlog = _NO_BACKLOG
        self.errors: list[OSError] = []
        """Errors that have not been reported to the protocol yet."""
        self._mover = mover
        # Cached, because every datagram needs them.
        self._time = mover.runtime.time
        self._drops = mover.in_place.drops
        self._followers = mover.followers
        self._user = user
        self._remote = remote
        self._writing: socket.socket | None = None
        """The socket whose buffer is full."""
        self._ticks: Retry | None = None
        self._pace = _NO_PACE
        self._refusals: _Refusals | None = None
        self._counted = 0
        """How many of the waiting datagrams in the statistics belong to this sender."""
        self._stopped = False

    def send(self, data: Data, addr: Any) -> None:
        """Send a datagram now, or as soon as possible.

        :param addr: the destination; ``None`` for the default one
        """
        mover, drops = self._mover, self._drops
        now = self._time()
        if (
            addr is None
            and now < drops.due
            and mover.seen == self._followers.reading
            and not (self._counted or mover.no_path or mover.peer is None)
        ):
            # The usual case, with as few calls as possible.
            try:
                mover.sock.send(data)
            except Exception as exc:  # noqa: BLE001 - _failed() distinguishes them
                outcome = self._failed(exc, mover.sock, drops, data, addr)
            else:
                drops.sent()
                return
        else:
            self._followers.used(mover)
            if mover.seen != self._followers.reading:
                mover.catch_up()
            if self._writing is not None or (self.backlog and self.backlog.waits_for(addr)):
                self._queue(data, addr, now)
                return
            outcome = self._attempt(data, addr, now)
        if outcome is Outcome.SENT or outcome is Outcome.FAILED:
            if self.errors:
                self._user.settled()
        elif outcome is Outcome.FULL:
            self._wait(Waiting(bytes(data), addr, now, held=False))
        elif outcome is Outcome.NO_PATH:
            self._wait(Waiting(bytes(data), addr, now, held=True))
        else:
            self._wait(Waiting(bytes(data), addr, now, held=True, refused_since=now))
            self._recheck_soon()

    def path_found(self) -> None:
        """Send waiting datagrams. The current socket may be another one than before."""
        mover = self._mover
        if self._writing is not mover.sock and (mover.ways is None or (self._writing and self._writing.fileno() == -1)):
            self._remove_writer()
        if self._refusals is not None:
            self._refusals.clear()
        if self._ticks is not None:
            self._ticks.reset()
        if self._pace.timer is None and self.backlog:
            self._own_pace().allow()
            self._flush()

    def stop(self) -> None:
        """Stop sending. Waiting datagrams are lost."""
        self._stopped = True
        self._remove_writer()
        if self._ticks is not None:
            self._ticks.cancel()
        if self._pace.timer is not None:
            self._pace.timer.cancel()
            self._pace.timer = None
        if self.backlog:
            self._mover.statistics.lose(self.backlog.clear(), Loss.CLOSED)
            self._count_waiting()

    def refuse(self) -> None:
        """Count a datagram that was sent after the end as lost."""
        self._mover.statistics.lose(1, Loss.CLOSED)

    def _attempt(self, data: Data, addr: Any, now: float) -> Outcome:
        mover = self._mover
        if mover.ways is None or addr is None:
            if mover.no_path:
                return Outcome.NO_PATH
            sock, drops = mover.sock, mover.in_place.drops
        else:
            try:
                way = mover.ways.to(addr)
            except OSError as exc:
                return self._way_failed(exc)
            if way is None:
                return Outcome.NO_PATH
            sock, drops = way
        if now >= drops.due:
            drops.sample(now, sock)
        try:
            self._transmit(sock, data, addr)
        except Exception as exc:  # noqa: BLE001 - _failed() distinguishes them
            return self._failed(exc, sock, drops, data, addr)
        drops.sent()
        return Outcome.SENT

    def _queue(self, data: Data, addr: Any, now: float) -> None:
        """Send a datagram after those that are already waiting."""
        self._wait(Waiting(bytes(data), addr, now, held=self._writing is None))
        if self._pace.timer is not None:
            self._pace.allowance += 1
            self._flush()

    def _failed(self, exc: Exception, sock: socket.socket, drops: DropCounter, data: Data, addr: Any) -> Outcome:
        """The outcome for a datagram that the socket did not accept."""
        if isinstance(exc, BlockingIOError | InterruptedError):
            return self._full(sock)
        if isinstance(exc, OSError):
            return self._refused(exc, sock, drops, data, addr)
        # As in asyncio, any other exception ends the transport.
        self._mover.statistics.lose(1, Loss.REFUSED)
        self._user.broken(exc)
        return Outcome.FAILED

    def _transmit(self, sock: socket.socket, data: Data, addr: Any) -> None:
        if self._mover.peer is not None:
            sock.send(data)
        else:
            destination: Any = addr if addr is not None else self._remote
            sock.sendto(data, destination)

    def _way_failed(self, exc: OSError) -> Outcome:
        """The outcome if no socket could be made for the destination."""
        if exc.errno in _PATH_GONE:
            self._own_refusals().latest = exc
            return Outcome.REFUSED
        self.errors.append(exc)
        self._mover.statistics.lose(1, Loss.REFUSED)
        return Outcome.FAILED

    def _refused(self, exc: OSError, sock: socket.socket, drops: DropCounter, data: Data, addr: Any) -> Outcome:
        self._read_on_soon(sock)
        if exc.errno in _PENDING:
            try:
                self._transmit(sock, data, addr)
            except (BlockingIOError, InterruptedError):
                self.errors.append(reported_error(exc, self._mover.interface))
                return self._full(sock)
            except OSError as again:
                if again.errno in _PATH_GONE and self._mover.followed and not self._is_unreachable(addr):
                    self._own_refusals().latest = again
                    return Outcome.REFUSED
                exc = again
            else:
                self.errors.append(reported_error(exc, self._mover.interface))
                drops.sent()
                return Outcome.SENT
        self.errors.append(datagram_error(exc, self._mover.interface))
        self._mover.statistics.lose(1, Loss.REFUSED)
        return Outcome.FAILED

    def _read_on_soon(self, sock: socket.socket) -> None:
        """Register the socket for reading again, since this call may have taken the error that was reported to libuv.

        libuv has then stopped watching the socket (src/unix/poll.c, uv__poll_io), and reading finds no error any more.
        """
        unwatched = self._own_refusals().unwatched
        if not unwatched:
            self._mover.runtime.call_soon(self._read_on)
        unwatched.add(sock)

    def _read_on(self) -> None:
        unwatched = self._own_refusals().unwatched
        while unwatched:
            sock = unwatched.pop()
            if sock.fileno() != -1:
                self._mover.read_on(sock)

    def _is_unreachable(self, addr: object) -> bool:
        return self._refusals is not None and addr in self._refusals.unreachable

    def _own_refusals(self) -> _Refusals:
        if self._refusals is None:
            self._refusals = _Refusals()
        return self._refusals

    def _wait(self, waiting: Waiting) -> None:
        if self.backlog is _NO_BACKLOG:
            self.backlog = Backlog()
        self._mover.statistics.lose(self.backlog.add(waiting), Loss.TOO_MANY)
        self._count_waiting()
        if waiting.held and waiting.refused_since is None:
            self._tick_later()
        self._user.settled()

    def _count_waiting(self) -> None:
        self._mover.statistics.waiting += len(self.backlog) - self._counted
        self._counted = len(self.backlog)

    def _flush(self) -> None:
        self._send_waiting()
        self._settle()

    def _send_waiting(self) -> None:
        if not self.backlog:
            return
        now = self._mover.runtime.time()
        ended = self.backlog.send(lambda waiting: self._attempt_waiting(waiting, now), now)
        if ended is not Outcome.FULL:
            self._remove_writer()
        pace = self._pace
        if ended is Outcome.LATER and pace.timer is None:
            pace = self._own_pace()
            pace.began, pace.timer = now, self._mover.runtime.call_later(TURN, self._next_turn)

    def _attempt_waiting(self, waiting: Waiting, now: float) -> Outcome:
        if waiting.held and not self._pace.allowance:
            return Outcome.LATER
        outcome = self._attempt(waiting.data, waiting.address, now)
        if waiting.held and outcome is Outcome.SENT:
            self._pace.allowance -= 1
            self._mover.statistics.held += 1
        return outcome

    def _own_pace(self) -> _Pace:
        if self._pace is _NO_PACE:
            self._pace = _Pace()
        return self._pace

    def _next_turn(self) -> None:
        self._pace.timer = None
        # On a busy loop this timer fires late.
        self._pace.allow(self._mover.runtime.time() - self._pace.began)
        self._expire()
        self._flush()

    def _settle(self) -> None:
        if self._stopped:
            return
        self._count_waiting()
        if self.backlog.holds:
            self._tick_later()
        self._user.settled()

    def _recheck_soon(self) -> None:
        """Read the network again, but not inside the program's call of sendto()."""
        refusals = self._own_refusals()
        if not refusals.recheck_due:
            refusals.recheck_due = True
            self._mover.runtime.call_soon(self._recheck)

    def _recheck(self) -> None:
        self._own_refusals().recheck_due = False
        if self._stopped:
            return
        try:
            self._mover.recheck()
        finally:
            if self.backlog.holds and not self._stopped:
                self._tick_later()

    def _tick_later(self) -> None:
        if self._ticks is None:
            self._ticks = Retry(self._mover.runtime, self._tick, _FIRST_TICK, _LAST_TICK, jitter=0.0)
        if not self._ticks.scheduled:
            self._ticks.schedule()

    def _tick(self) -> None:
        if self._pace.timer is None:
            self._own_pace().allow()
            self._send_waiting()
        self._expire()
        if self.backlog.holds:
            self._mover.recheck()
        self._settle()

    def _expire(self) -> None:
        """Give up datagrams that have waited for too long."""
        now, no_path = self._mover.runtime.time(), self._mover.no_path
        # If the path is intact, the destinations of the refused datagrams are unreachable. That can only be told when all changes
        # have been read.
        read = None if no_path else self._mover.up_to_date_since()
        refused_before = min(read, now - DOUBTED_FOR) if read is not None else now - HELD_FOR
        old, refused = self.backlog.expire(now - HELD_FOR, max(refused_before, now - HELD_FOR))
        self._mover.statistics.lose(len(old), Loss.TOO_OLD)
        self._mover.statistics.lose(len(refused), Loss.UNREACHABLE)
        refusals = self._own_refusals()
        if refused and not no_path:
            refusals.unreachable.update(waiting.address for waiting in refused)
        elif no_path and not refusals.reported and (old or refused):
            refusals.reported = True
        else:
            return
        interface, lost = self._mover.interface, len(old) + len(refused)
        text = f"no interface has replaced {interface}" if interface is not None else "no interface may be used"
        self.errors.append(refusals.latest or InterfaceChanged(f"{text}, {lost} datagrams are lost", interface=interface))

    def _full(self, sock: socket.socket) -> Outcome:
        if self._writing is None:
            self._writing = sock
            self._mover.runtime.add_writer(sock, self._writable)
        return Outcome.FULL

    def _writable(self) -> None:
        # Registered again each time: libuv stops watching a descriptor with a pending error (src/unix/poll.c, uv__poll_io).
        self._remove_writer()
        self._flush()

    def _remove_writer(self) -> None:
        if self._writing is not None:
            self._mover.runtime.remove_writer(self._writing)
            self._writing = None
