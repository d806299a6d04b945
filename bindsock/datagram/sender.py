"""Sends by the socket that is current, and knows what to do when it is refused.

A send that is refused because the path is gone is held, the network is looked at again, and what is held goes out by the new
interface: the oldest first, :data:`RATE` a second, since a burst of several seconds' datagrams would overflow the next queue on
its way. A refusal that has another reason (a peer's ICMP, a destination that is unreachable while the path is not) is an error to
be told to the protocol, as asyncio does.

Every datagram that is accepted is counted once (see :class:`bindsock.model.statistics.Statistics`): when the system takes it, or
when it is given up; until then it waits.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bindsock.datagram.backlog import Backlog, Outcome, Waiting
from bindsock.dial.refusal import datagram_error
from bindsock.errors import InterfaceChanged
from bindsock.model.statistics import Loss
from bindsock.netmon.backoff import Retry

if TYPE_CHECKING:
    from bindsock.datagram.drop_counter import DropCounter
    from bindsock.datagram.mover import DatagramMover
    from bindsock.dial.resolving import SockAddr
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

HELD_FOR = 5.0
"""Seconds for which a datagram waits for a path."""
DOUBTED_FOR = 0.5
"""Seconds after which a refusal is the destination's fault, if the path still looks intact: the network has been read by then."""
RATE = 1000.0
"""Held datagrams that are sent in a second, and one more for each that the program adds meanwhile."""
TURN = 0.01
"""Seconds between two turns of sending held datagrams."""
LONGEST_TURN = 0.1
"""Seconds that a turn counts for, however late it comes."""
_FIRST_TICK = 0.05
_LAST_TICK = 0.5

_PATH_GONE = frozenset(
    getattr(errno, name)
    for name in ("ENETUNREACH", "ENETDOWN", "ENODEV", "ENXIO", "EADDRNOTAVAIL", "EHOSTUNREACH", "ENONET", "EPIPE")
    if hasattr(errno, name)
)
"""What send() says when the interface, its address or its route is gone; EPIPE of a socket that was silenced."""
_PENDING = _PATH_GONE | {errno.ECONNREFUSED}
"""What send() says, too, on account of an earlier datagram: an ICMP error is reported once, by whatever call comes next."""

Data: TypeAlias = bytes | bytearray | memoryview


class Owner(Protocol):
    """Whose datagrams are sent."""

    def settled(self) -> None:
        """The backlog has changed, or there are errors to be told."""

    def broken(self, exc: BaseException) -> None:
        """The socket raised what no socket should."""


class _Trouble:
    """What is known of refusals since there was a path last."""

    __slots__ = ("complained", "recheck_due", "refusal", "unreachable")

    def __init__(self) -> None:
        self.refusal: OSError | None = None
        """The latest one."""
        self.complained = False
        """The protocol has been told that there is no path."""
        self.unreachable: set[object] = set()
        """Destinations whose refusals are told at once, until something changes."""
        self.recheck_due = False

    def clear(self) -> None:
        self.refusal = None
        self.complained = False
        self.unreachable.clear()


class _Pace:
    """How what was held is sent, in turns."""

    __slots__ = ("allowance", "began", "timer")

    def __init__(self) -> None:
        self.timer: Timer | None = None
        """The next turn, if one is to come."""
        self.began = 0.0
        self.allowance = 0
        """How many held datagrams may be sent before the next turn."""

    def allow(self, seconds: float = TURN) -> None:
        """Let a turn's datagrams be sent."""
        self.allowance = int(RATE * min(max(seconds, TURN), LONGEST_TURN))


_NO_PACE = _Pace()
"""The pace of a sender that has held nothing yet."""


class Sender:
    """The sending half of a datagram transport.

    :param remote: the destination of what is sent without one
    """

    __slots__ = (
        "_counted",
        "_drops",
        "_followers",
        "_mover",
        "_owner",
        "_pace",
        "_remote",
        "_runtime",
        "_statistics",
        "_stopped",
        "_ticks",
        "_time",
        "_trouble",
        "_writing",
        "backlog",
        "errors",
    )

    def __init__(
        self,
        runtime: Runtime,
        mover: DatagramMover,
        statistics: Statistics,
        owner: Owner,
        remote: SockAddr | None,
    ) -> None:
        self.backlog: Backlog = Backlog()
        self.errors: list[OSError] = []
        """What the protocol is still to be told."""
        self._runtime = runtime
        self._mover = mover
        # Looked up for each datagram.
        self._time = runtime.time
        self._drops = mover.in_place.drops
        self._followers = mover.followers
        self._statistics = statistics
        self._owner = owner
        self._remote = remote
        self._writing: socket.socket | None = None
        """The socket that takes no more for now."""
        self._ticks: Retry | None = None
        self._pace = _NO_PACE
        self._trouble: _Trouble | None = None
        self._counted = 0
        """How many of the statistics' waiting datagrams are this one's."""
        self._stopped = False

    def send(self, data: Data, addr: Any) -> None:
        """Send now, or when it is possible.

        :param addr: ``None`` for the only destination there is
        """
        mover, drops = self._mover, self._drops
        now = self._time()
        if (
            addr is None
            and now < drops.due
            and mover.seen == self._followers.reading
            and not (self._counted or mover.no_path or mover.peer is None)
        ):
            # The usual case, without a call that can be saved.
            try:
                mover.sock.send(data)
            except Exception as exc:  # noqa: BLE001 - every kind is told apart
                outcome = self._failed(exc, mover.sock, drops, data, addr)
            else:
                drops.sent()
                return
        else:
            if now >= mover.used_until:
                mover.used(now)
            if mover.seen != self._followers.reading:
                mover.catch_up()
            if self._writing is not None or (self.backlog and self.backlog.waits_for(addr)):
                self._queue(data, addr, now)
                return
            outcome = self._attempt(data, addr, now)
        if outcome is Outcome.SENT or outcome is Outcome.FAILED:
            if self.errors:
                self._owner.settled()
        elif outcome is Outcome.FULL:
            self._wait(Waiting(bytes(data), addr, now, held=False))
        elif outcome is Outcome.NO_PATH:
            self._wait(Waiting(bytes(data), addr, now, held=True))
        else:
            self._wait(Waiting(bytes(data), addr, now, held=True, refused_since=now))
            self._recheck_soon()

    def path_found(self) -> None:
        """The current socket may be another one, and can send."""
        mover = self._mover
        if self._writing is not mover.sock and (mover.ways is None or (self._writing and self._writing.fileno() == -1)):
            self._remove_writer()
        if self._trouble is not None:
            self._trouble.clear()
        if self._ticks is not None:
            self._ticks.reset()
        if self._pace.timer is None and self.backlog:
            self._own_pace().allow()
            self._flush()

    def stop(self) -> None:
        """Send no more. What waits is lost."""
        self._stopped = True
        self._remove_writer()
        if self._ticks is not None:
            self._ticks.cancel()
        if self._pace.timer is not None:
            self._pace.timer.cancel()
            self._pace.timer = None
        self._statistics.lose(self.backlog.clear(), Loss.CLOSED)
        self._count_waiting()

    def refuse(self) -> None:
        """A datagram was accepted after the end."""
        self._statistics.lose(1, Loss.CLOSED)

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
                return self._no_way(exc)
            if way is None:
                return Outcome.NO_PATH
            sock, drops = way
        if now >= drops.due:
            drops.look(now, sock)
        try:
            self._transmit(sock, data, addr)
        except Exception as exc:  # noqa: BLE001 - every kind is told apart
            return self._failed(exc, sock, drops, data, addr)
        drops.sent()
        return Outcome.SENT

    def _queue(self, data: Data, addr: Any, now: float) -> None:
        """Send it after those that wait already."""
        self._wait(Waiting(bytes(data), addr, now, held=self._writing is None))
        if self._pace.timer is not None:
            self._pace.allowance += 1
            self._flush()

    def _failed(self, exc: Exception, sock: socket.socket, drops: DropCounter, data: Data, addr: Any) -> Outcome:
        """What becomes of a datagram that the socket did not take."""
        if isinstance(exc, BlockingIOError | InterruptedError):
            return self._full(sock)
        if isinstance(exc, OSError):
            return self._refused(exc, sock, drops, data, addr)
        # As asyncio: whatever it is, it ends the transport.
        self._statistics.lose(1, Loss.REFUSED)
        self._owner.broken(exc)
        return Outcome.FAILED

    def _transmit(self, sock: socket.socket, data: Data, addr: Any) -> None:
        if self._mover.peer is not None:
            sock.send(data)
        else:
            destination: Any = addr if addr is not None else self._remote
            sock.sendto(data, destination)

    def _no_way(self, exc: OSError) -> Outcome:
        """No socket could be made for the destination."""
        if exc.errno in _PATH_GONE:
            self._troubled().refusal = exc
            return Outcome.REFUSED
        self.errors.append(exc)
        self._statistics.lose(1, Loss.REFUSED)
        return Outcome.FAILED

    def _refused(self, exc: OSError, sock: socket.socket, drops: DropCounter, data: Data, addr: Any) -> Outcome:
        if exc.errno in _PENDING:
            try:
                self._transmit(sock, data, addr)
            except (BlockingIOError, InterruptedError):
                self.errors.append(exc)
                return self._full(sock)
            except OSError as again:
                if again.errno in _PATH_GONE and self._mover.followed and not self._is_unreachable(addr):
                    self._troubled().refusal = again
                    return Outcome.REFUSED
                exc = again
            else:
                self.errors.append(exc)
                drops.sent()
                return Outcome.SENT
        self.errors.append(datagram_error(exc, self._mover.interface))
        self._statistics.lose(1, Loss.REFUSED)
        return Outcome.FAILED

    def _is_unreachable(self, addr: object) -> bool:
        return self._trouble is not None and addr in self._trouble.unreachable

    def _troubled(self) -> _Trouble:
        if self._trouble is None:
            self._trouble = _Trouble()
        return self._trouble

    def _wait(self, waiting: Waiting) -> None:
        self._statistics.lose(self.backlog.add(waiting), Loss.TOO_MANY)
        self._count_waiting()
        if waiting.held:
            self._tick_later()
        self._owner.settled()

    def _count_waiting(self) -> None:
        self._statistics.waiting += len(self.backlog) - self._counted
        self._counted = len(self.backlog)

    def _flush(self) -> None:
        self._send_waiting()
        self._settle()

    def _send_waiting(self) -> None:
        if not self.backlog:
            return
        now = self._runtime.time()
        ended = self.backlog.send(lambda waiting: self._attempt_waiting(waiting, now), now)
        if ended is not Outcome.FULL:
            self._remove_writer()
        pace = self._pace
        if ended is Outcome.LATER and pace.timer is None:
            pace = self._own_pace()
            pace.began, pace.timer = now, self._runtime.call_later(TURN, self._next_turn)

    def _attempt_waiting(self, waiting: Waiting, now: float) -> Outcome:
        if waiting.held and not self._pace.allowance:
            return Outcome.LATER
        outcome = self._attempt(waiting.data, waiting.address, now)
        if waiting.held and outcome is Outcome.SENT:
            self._pace.allowance -= 1
            self._statistics.held += 1
        return outcome

    def _own_pace(self) -> _Pace:
        if self._pace is _NO_PACE:
            self._pace = _Pace()
        return self._pace

    def _next_turn(self) -> None:
        self._pace.timer = None
        # On a busy loop the turn comes late.
        self._pace.allow(self._runtime.time() - self._pace.began)
        self._expire()
        self._flush()

    def _settle(self) -> None:
        if self._stopped:
            return
        self._count_waiting()
        if self.backlog.holds:
            self._tick_later()
        self._owner.settled()

    def _recheck_soon(self) -> None:
        """Have the network read, but not inside the program's call of sendto()."""
        trouble = self._troubled()
        if not trouble.recheck_due:
            trouble.recheck_due = True
            self._runtime.call_soon(self._recheck)

    def _recheck(self) -> None:
        self._troubled().recheck_due = False
        if not self._stopped:
            self._mover.recheck()

    def _tick_later(self) -> None:
        if self._ticks is None:
            self._ticks = Retry(self._runtime, self._tick, _FIRST_TICK, _LAST_TICK, jitter=0.0)
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
        """Give up what has waited for too long."""
        now, no_path = self._runtime.time(), self._mover.no_path
        # If the path is intact, it is the destinations of those that are refused.
        old, refused = self.backlog.expire(now - HELD_FOR, now - (HELD_FOR if no_path else DOUBTED_FOR))
        self._statistics.lose(len(old), Loss.TOO_OLD)
        self._statistics.lose(len(refused), Loss.UNREACHABLE)
        trouble = self._troubled()
        if refused and not no_path:
            trouble.unreachable.update(waiting.address for waiting in refused)
        elif no_path and not trouble.complained and (old or refused):
            trouble.complained = True
        else:
            return
        interface, lost = self._mover.interface, len(old) + len(refused)
        text = f"no interface has taken over from {interface}" if interface is not None else "no interface may be used"
        self.errors.append(trouble.refusal or InterfaceChanged(f"{text}, {lost} datagrams are lost", interface=interface))

    def _full(self, sock: socket.socket) -> Outcome:
        if self._writing is None:
            self._writing = sock
            self._runtime.add_writer(sock, self._writable)
        return Outcome.FULL

    def _writable(self) -> None:
        # Begun anew each time: where there is an error to be read, libuv stops watching (src/unix/poll.c, uv__poll_io).
        self._remove_writer()
        self._flush()

    def _remove_writer(self) -> None:
        if self._writing is not None:
            self._runtime.remove_writer(self._writing)
            self._writing = None
