"""Decides when to read the network again: a pure state machine.

Theory of operation. A kernel event only says that something changed; a reading says what. One network change causes a burst of
events (a link, its addresses, their routes), and some systems send events all the time (containers come and go, neighbours are
resolved). So:

1. The first event causes a reading at once. So do the next ones, as long as there are tokens. A sustained flood of events gets
   at most one reading per ``QUIET`` seconds, and fewer if a reading is slow.
2. When there was no event for ``QUIET`` seconds, or after ``LONGEST`` seconds of events, the network is read again. So the last
   event of a burst is never missed.
3. ``VERIFY`` seconds after the last event, it is read once more, because some addresses and routes come late or without an event.
4. It is read at least every ``RECONCILE`` seconds, because some changes cause no event (xnu does not announce an IPv6 default
   route that the kernel itself has made; Linux does not announce the IPv4 routes that it removes with a link).

The caller passes the time, in monotonic seconds, so that tests need not wait.
"""

from __future__ import annotations

from bindsock.model.change import Cause

QUIET = 0.2
LONGEST = 2.0
VERIFY = 5.0
RECONCILE = 60.0
BURST = 8
_LOAD = 50
"""After a reading that took t seconds, the next token comes after 50 t."""


class Coalescer:
    """Decides when to read the network again."""

    def __init__(self, now: float) -> None:
        self._tokens = float(BURST)
        self._refilled = now
        self._refill_interval = QUIET
        self._last_read = now
        self._last_event: float | None = None
        self._unread_since: float | None = None
        self._settled = True
        self._verified = True
        self._urgent = False
        self._cause = Cause.EVENTS

    def event(self, now: float, cause: Cause = Cause.EVENTS, *, urgent: bool = True) -> bool:
        """Process an event.

        :param now: the time in monotonic seconds
        :param cause: the cause of the reading that follows
        :param urgent: whether a partial reading could show the change
        :return: whether to read at once; if not, :meth:`deadline` returns when to call :meth:`due`
        """
        self._refill(now)
        self._last_event = now
        self._settled = self._verified = False
        self._cause = cause
        if self._unread_since is None:
            self._unread_since = now
        self._urgent |= urgent
        if not self._urgent or self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def read(self, now: float, cost: float) -> None:
        """Record that the network has just been read, which took ``cost`` seconds."""
        self._last_read = now
        self._unread_since = None
        self._urgent = False
        self._refill_interval = max(QUIET, _LOAD * cost)

    def up_to_date_since(self) -> float | None:
        """When the network was read, in monotonic seconds; ``None`` if there has been an event since."""
        return self._last_read if self._unread_since is None else None

    def deadline(self) -> float:
        """When to call :meth:`due`, in monotonic seconds, unless an event comes first."""
        times = [self._last_read + RECONCILE]
        if self._last_event is not None:
            if not self._settled:
                times.append(self._last_event + QUIET)
            if self._unread_since is not None:
                times.append(self._unread_since + LONGEST)
            if not self._verified:
                times.append(self._last_event + VERIFY)
        return min(times)

    def due(self, now: float) -> Cause | None:
        """The cause for which the network must be read now; ``None`` if it need not be read."""
        if self._last_event is not None:
            if not self._settled and now >= self._last_event + QUIET:
                self._settled = True
                return self._cause
            if self._unread_since is not None and now >= self._unread_since + LONGEST:
                return self._cause
            if not self._verified and now >= self._last_event + VERIFY:
                self._verified = True
                return Cause.RECONCILE
        if now >= self._last_read + RECONCILE:
            return Cause.RECONCILE
        return None

    def _refill(self, now: float) -> None:
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._refilled) / self._refill_interval)
        self._refilled = now
