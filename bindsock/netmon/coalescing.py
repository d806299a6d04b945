"""When to read the network again, and which differences to announce: two pure state machines.

Theory of operation. The kernel's events only say that something changed; reading says what. One change of network is a burst
of events (a link, its addresses, their routes), and some systems never stop sending them (containers come and go, neighbours
resolve). So:

1. The first event is acted on at once. So are the next ones, while there are tokens: a sustained flood gets one reading for
   each ``QUIET`` seconds at the most, and fewer where a reading is slow.
2. When it has been quiet for ``QUIET`` seconds, or after ``LONGEST`` seconds of unrest, the network is read again: the last
   word of a burst is always heard.
3. ``VERIFY`` seconds after the last event it is read once more: some addresses and routes come late, or without an event.
4. Whatever happens, it is read every ``RECONCILE`` seconds: some changes are silent (xnu announces no IPv6 default that the
   kernel itself made; Linux no IPv4 route that a link took along).

What was *gained* is announced at once. What was *lost* is held for ``GRACE`` seconds: between one Wi-Fi and the next there is
nothing, and nobody wants to hear of it.

Time comes in as an argument, in monotonic seconds, so that all this is tested without waiting.
"""

from __future__ import annotations

from bindsock.model.change import Cause

QUIET = 0.2
LONGEST = 2.0
VERIFY = 5.0
RECONCILE = 60.0
BURST = 8
_LOAD = 50
"""A reading that took t seconds costs a pause of 50 t."""


class Coalescer:
    """Says when the network must be read again."""

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
        """Something may have changed.

        :param urgent: whether a partial reading could show it
        :return: whether to read at once; if not, :meth:`deadline` says when
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
        """The network has just been read, which took ``cost`` seconds."""
        self._last_read = now
        self._unread_since = None
        self._urgent = False
        self._refill_interval = max(QUIET, _LOAD * cost)

    def deadline(self) -> float:
        """When :meth:`due` will have something to say, unless an event comes first."""
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
        """Why the network must be read now, ``None`` if it need not be."""
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
