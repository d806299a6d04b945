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

import socket
from collections.abc import Mapping

from bindsock.network import Cause, Change, Decision, FamilyChange, Path, path_of

QUIET = 0.2
LONGEST = 2.0
VERIFY = 5.0
RECONCILE = 60.0
GRACE = 5.0
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

        :param urgent: whether a hurried reading could show it
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


class Announcer:
    """Turns readings into changes: gains at once, losses after a grace."""

    def __init__(self, decisions: Mapping[socket.AddressFamily, Decision]) -> None:
        self._decisions = dict(decisions)
        self._paths: dict[socket.AddressFamily, Path | None] = {f: path_of(d) for f, d in decisions.items()}
        self._lost_since: dict[socket.AddressFamily, float] = {}
        self._number = 0

    def update(self, now: float, cause: Cause, decisions: Mapping[socket.AddressFamily, Decision]) -> Change | None:
        """What is to be announced of a new reading.

        :param decisions: one for each family
        """
        announced = False
        changes: dict[socket.AddressFamily, FamilyChange] = {}
        for family, decision in decisions.items():
            old_decision, old_path, new_path = self._decisions[family], self._paths[family], path_of(decision)
            announce = new_path != old_path
            if not announce or new_path is not None:
                self._lost_since.pop(family, None)
            elif now < self._lost_since.setdefault(family, now) + GRACE:
                announce = False
            if announce:
                announced = True
                self._lost_since.pop(family, None)
                self._decisions[family], self._paths[family] = decision, new_path
                changes[family] = FamilyChange(old_decision, decision, old_path, new_path)
            else:
                changes[family] = FamilyChange(old_decision, old_decision, old_path, old_path)
        if not announced:
            return None
        self._number += 1
        return Change(self._number, now, cause, changes[socket.AF_INET], changes[socket.AF_INET6])

    def deadline(self) -> float | None:
        """When a loss that is being held must be announced."""
        return min(self._lost_since.values()) + GRACE if self._lost_since else None


def merged(first: Change, second: Change) -> Change | None:
    """Two changes in a row as one, ``None`` if they cancel out."""

    def family(a: FamilyChange, b: FamilyChange) -> FamilyChange:
        return FamilyChange(a.old_decision, b.new_decision, a.old_path, b.new_path)

    change = Change(second.number, second.time, second.cause, family(first.ipv4, second.ipv4), family(first.ipv6, second.ipv6))
    return change if change.ipv4.moved or change.ipv6.moved else None
