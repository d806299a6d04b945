"""A queue of datagrams that wait until the socket takes more, until there is a path again, or until it is their turn.

The datagrams to each destination stay in order. A refused destination does not hold up the others: a server with a thousand
peers must go on if one of them has become unreachable.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_HELD = 4096
"""How many datagrams are held while there is no path. If there are more, the oldest are dropped."""
MAX_HELD_BYTES = 1 << 20


class Outcome(enum.Enum):
    """The result of an attempt to send."""

    SENT = enum.auto()
    FULL = enum.auto()
    """The socket takes no more for now."""
    NO_PATH = enum.auto()
    """There is no path for now."""
    REFUSED = enum.auto()
    """The system refuses it as if there were no path, although there should be one."""
    LATER = enum.auto()
    """It is not its turn yet."""
    FAILED = enum.auto()
    """It can never be sent."""


@dataclass(slots=True)
class Waiting:
    """A datagram that waits."""

    data: bytes
    address: Hashable
    since: float
    """The time since which it is held, or waits for room, in monotonic seconds."""
    held: bool
    """Whether it waits for a path; if false, it waits for room in the socket's buffer."""
    refused_since: float | None = None
    """The time since which the system refuses it, in monotonic seconds."""


_NOTHING: deque[Waiting] = deque(maxlen=0)
"""The queue of every backlog that has not been used yet. An empty deque of its own takes 600 bytes."""


class Backlog:
    """The waiting datagrams of one transport."""

    __slots__ = ("_counts", "_queue", "_unheld", "size")

    def __init__(self) -> None:
        self._queue = _NOTHING
        self._counts: dict[Hashable, int] = {}
        self._unheld = 0
        """How many of them wait for room, not for a path."""
        self.size: int = 0
        """The bytes of their payload."""

    def __len__(self) -> int:
        return len(self._queue)

    def waits_for(self, address: Hashable) -> bool:
        """Whether a datagram to that destination waits. If so, the next one must wait, too."""
        return address in self._counts

    @property
    def holds(self) -> bool:
        """Whether any datagram waits for a path."""
        return len(self._queue) > self._unheld

    def add(self, waiting: Waiting) -> int:
        """Add a datagram.

        :return: how many others were dropped to make room. Only held datagrams are limited; flow control limits the others
        """
        self._put(waiting)
        dropped = 0
        while waiting.held and len(self._queue) > 1 and (len(self._queue) > MAX_HELD or self.size > MAX_HELD_BYTES):
            self._take()
            dropped += 1
        return dropped

    def send(self, attempt: Callable[[Waiting], Outcome], now: float) -> Outcome:
        """Try to send all datagrams, the oldest first.

        :param attempt: sends one datagram; it must not call back into the backlog
        :param now: the time in monotonic seconds
        :return: ``FULL`` or ``LATER`` if it stopped before the end, otherwise ``SENT``
        """
        stays: deque[Waiting] = deque()
        blocked: dict[Hashable, Outcome] = {}
        ended = Outcome.SENT
        while self._queue:
            waiting = self._take()
            outcome = blocked.get(waiting.address) or attempt(waiting)
            if outcome in (Outcome.FULL, Outcome.LATER):
                self._put_back(waiting)
                ended = outcome
                break
            if outcome in (Outcome.NO_PATH, Outcome.REFUSED):
                if not waiting.held:
                    waiting.held, waiting.since = True, now
                if outcome is Outcome.NO_PATH:
                    waiting.refused_since = None
                elif waiting.refused_since is None:
                    waiting.refused_since = now
                stays.append(waiting)
                if waiting.address not in blocked:
                    blocked[waiting.address] = outcome
                    if self._counts.keys() <= blocked.keys():
                        self._hold_all(now)
                        break
        while stays:
            self._put_back(stays.pop())
        return ended

    def expire(self, held_before: float, refused_before: float) -> tuple[list[Waiting], list[Waiting]]:
        """Remove the datagrams that have waited for too long.

        :param held_before: remove datagrams that have been held since before this time, in monotonic seconds
        :param refused_before: remove datagrams that the system has refused since before this time, in monotonic seconds
        :return: the removed datagrams: those that were held, and those that were refused
        """
        kept: list[Waiting] = []
        old: list[Waiting] = []
        refused: list[Waiting] = []
        while self._queue:
            waiting = self._take()
            if waiting.refused_since is not None and waiting.refused_since <= refused_before:
                refused.append(waiting)
            elif waiting.held and waiting.since <= held_before:
                old.append(waiting)
            else:
                kept.append(waiting)
        for waiting in kept:
            self._put(waiting)
        return old, refused

    def clear(self) -> int:
        """Drop all datagrams.

        :return: how many there were
        """
        count = len(self._queue)
        self._queue.clear()
        self._counts.clear()
        self.size = self._unheld = 0
        return count

    def _hold_all(self, now: float) -> None:
        """Hold all remaining datagrams, without trying to send them: there is no path for any of them."""
        if self._unheld:
            for waiting in self._queue:
                if not waiting.held:
                    waiting.held, waiting.since = True, now
            self._unheld = 0

    def _put(self, waiting: Waiting) -> None:
        if self._queue is _NOTHING:
            self._queue = deque()
        self._queue.append(waiting)
        self._count(waiting, 1)

    def _put_back(self, waiting: Waiting) -> None:
        self._queue.appendleft(waiting)
        self._count(waiting, 1)

    def _take(self) -> Waiting:
        waiting = self._queue.popleft()
        self._count(waiting, -1)
        return waiting

    def _count(self, waiting: Waiting, by: int) -> None:
        self.size += by * len(waiting.data)
        if not waiting.held:
            self._unheld += by
        count = self._counts.get(waiting.address, 0) + by
        if count:
            self._counts[waiting.address] = count
        else:
            del self._counts[waiting.address]
