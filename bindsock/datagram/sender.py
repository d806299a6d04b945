"""Sends by the socket that is current, and knows what to do when it is refused.

A send that is refused because the path is gone is held, the network is looked at again, and what is held goes out by the new
interface, in order. A refusal that has another reason (a peer's ICMP, a destination that is unreachable while the path is not)
is an error to be told to the protocol, as asyncio does.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bindsock.datagram.backlog import Backlog, Outcome, Waiting
from bindsock.errors import InterfaceChanged

if TYPE_CHECKING:
    from bindsock.datagram.mover import DatagramMover
    from bindsock.dial.resolving import SockAddr
    from bindsock.model.statistics import Statistics
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

logger = logging.getLogger("bindsock")

HELD_FOR = 5.0
"""Seconds for which a datagram waits for a path."""
DOUBTED_FOR = 0.5
"""Seconds after which a refusal is the destination's fault, if the path still looks intact: the network has been read by then."""
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


class Sender:
    """The sending half of a datagram transport.

    :param remote: the destination of what is sent without one
    """

    def __init__(
        self,
        runtime: Runtime,
        mover: DatagramMover,
        statistics: Statistics,
        owner: Owner,
        remote: SockAddr | None,
    ) -> None:
        self.backlog = Backlog()
        self.errors: list[OSError] = []
        """What the protocol is still to be told."""
        self._runtime = runtime
        self._mover = mover
        self._statistics = statistics
        self._owner = owner
        self._remote = remote
        self._writing: socket.socket | None = None
        self._full = False
        self._timer: Timer | None = None
        self._delay = _FIRST_TICK
        self._recheck_due = False
        self._refusal: OSError | None = None
        self._complained = False
        self._unreachable: set[object] = set()
        self._stopped = False

    def send(self, data: Data, addr: Any) -> None:
        """Send now, or when it is possible.

        :param addr: ``None`` for the only destination there is
        """
        now = self._runtime.time()
        if self._mover.no_path or self._writing is not None or self.backlog.waits_for(addr):
            self._wait(data, addr, now, held=self._mover.no_path or self._writing is None)
            return
        outcome = self._attempt(data, addr, now)
        if outcome is Outcome.FULL:
            self._add_writer()
            self._wait(data, addr, now, held=False)
        elif outcome is Outcome.REFUSED:
            self._wait(data, addr, now, held=True)
            self._recheck_soon()
        elif self.errors:
            self._owner.settled()

    def path_found(self) -> None:
        """The current socket may be another one, and can send."""
        if self._writing is not self._mover.sock:
            self._remove_writer()
        self._unreachable.clear()
        self._refusal = None
        self._complained = False
        self._delay = _FIRST_TICK
        self._flush()

    def stop(self) -> None:
        """Send no more. What waits is lost."""
        self._stopped = True
        self._remove_writer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._statistics.lost += self.backlog.clear()

    def _transmit(self, data: Data, addr: Any) -> None:
        mover = self._mover
        if mover.peer is not None:
            mover.sock.send(data)
        else:
            destination: Any = addr if addr is not None else self._remote
            mover.sock.sendto(data, destination)

    def _attempt(self, data: Data, addr: Any, now: float) -> Outcome:
        drops = self._mover.in_place.drops
        if now >= drops.due:
            drops.look(now, self._mover.sock)
        try:
            self._transmit(data, addr)
        except (BlockingIOError, InterruptedError):
            return Outcome.FULL
        except OSError as exc:
            return self._refused(exc, data, addr)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 - as asyncio: whatever it is, it ends the transport
            self._owner.broken(exc)
            return Outcome.FAILED
        drops.sent()
        return Outcome.SENT

    def _refused(self, exc: OSError, data: Data, addr: Any) -> Outcome:
        if exc.errno in _PENDING:
            try:
                self._transmit(data, addr)
            except (BlockingIOError, InterruptedError):
                self.errors.append(exc)
                return Outcome.FULL
            except OSError as again:
                if again.errno in _PATH_GONE and self._mover.followed and addr not in self._unreachable:
                    self._refusal = again
                    return Outcome.REFUSED
                exc = again
            else:
                self.errors.append(exc)
                self._mover.in_place.drops.sent()
                return Outcome.SENT
        self.errors.append(exc)
        return Outcome.FAILED

    def _wait(self, data: Data, addr: object, now: float, *, held: bool) -> None:
        self._statistics.lost += self.backlog.add(bytes(data), addr, now, held=held)
        if held:
            self._arm()
        self._owner.settled()

    def _flush(self) -> None:
        self._send_waiting()
        self._settle()

    def _send_waiting(self) -> None:
        if not self.backlog or self._mover.no_path:
            return
        now = self._runtime.time()
        self._full = False
        self.backlog.send(lambda waiting: self._attempt_waiting(waiting, now), now)
        if self._full:
            self._add_writer()
        else:
            self._remove_writer()

    def _attempt_waiting(self, waiting: Waiting, now: float) -> Outcome:
        outcome = self._attempt(waiting.data, waiting.address, now)
        if outcome is Outcome.FULL:
            self._full = True
        elif waiting.held and outcome is Outcome.SENT:
            self._statistics.held += 1
        elif waiting.held and outcome is Outcome.FAILED:
            self._statistics.lost += 1
        return outcome

    def _settle(self) -> None:
        if self._stopped:
            return
        if self.backlog.holds:
            self._arm()
        self._owner.settled()

    def _recheck_soon(self) -> None:
        """Have the network read, but not inside the program's call of sendto()."""
        if not self._recheck_due:
            self._recheck_due = True
            self._runtime.call_soon(self._recheck)

    def _recheck(self) -> None:
        self._recheck_due = False
        if not self._stopped:
            self._mover.recheck()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._runtime.call_later(self._delay, self._tick)
            self._delay = min(2 * self._delay, _LAST_TICK)

    def _tick(self) -> None:
        self._timer = None
        self._send_waiting()
        self._expire()
        if self.backlog.holds:
            self._mover.recheck()
        self._settle()

    def _expire(self) -> None:
        no_path = self._mover.no_path
        expired = self.backlog.expire(self._runtime.time() - (HELD_FOR if no_path else DOUBTED_FOR))
        if not expired:
            return
        self._statistics.lost += len(expired)
        if not no_path:
            # The path is intact, so it is these destinations: from now on each refusal is told at once, until something changes.
            self._unreachable.update(waiting.address for waiting in expired)
        elif self._complained:
            return
        self._complained = no_path
        interface = self._mover.interface
        text = f"no interface has taken over from {interface}" if interface is not None else "no interface may be used"
        self.errors.append(self._refusal or InterfaceChanged(f"{text}, {len(expired)} datagrams are lost", interface=interface))

    def _writable(self) -> None:
        # Begun anew each time: where there is an error to be read, libuv stops watching (src/unix/poll.c, uv__poll_io).
        self._remove_writer()
        self._flush()

    def _add_writer(self) -> None:
        if self._writing is None:
            self._writing = self._mover.sock
            self._runtime.add_writer(self._writing, self._writable)

    def _remove_writer(self) -> None:
        if self._writing is not None:
            self._runtime.remove_writer(self._writing)
            self._writing = None
