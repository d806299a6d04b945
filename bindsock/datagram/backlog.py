"""Datagrams that wait: until the socket takes more, or until there is a path again.

In order for each destination. A destination that is refused does not hold up the others: to a server with a thousand peers, one
that has become unreachable is no reason to be silent.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_HELD = 1024
"""Datagrams that are held while there is no path; then the oldest are dropped."""
MAX_HELD_BYTES = 1 << 20


class Outcome(enum.Enum):
    """What became of an attempt to send."""

    SENT = enum.auto()
    FULL = enum.auto()
    """The socket takes no more for now."""
    REFUSED = enum.auto()
    """There is no path for now."""
    FAILED = enum.auto()
    """It can never be sent."""


@dataclass(slots=True)
class Waiting:
    """A datagram that waits."""

    data: bytes
    address: Hashable
    since: float
    """Monotonic seconds; if held, since when it has been."""
    held: bool
    """There was no path for it, rather than no room."""


class Backlog:
    """The datagrams of one transport that wait."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()
        self._counts: dict[Hashable, int] = {}
        self.size = 0
        """Bytes of payload."""

    def __len__(self) -> int:
        return len(self._queue)

    def waits_for(self, address: Hashable) -> bool:
        """Whether a datagram to that destination waits, so that the next one must, too."""
        return address in self._counts

    @property
    def holds(self) -> bool:
        """Whether any waits for a path."""
        return any(w.held for w in self._queue)

    def add(self, data: bytes, address: Hashable, now: float, *, held: bool) -> int:
        """Let a datagram wait.

        :return: how many others were dropped to make room; only held ones are limited, the rest is for flow control
        """
        self._put(Waiting(data, address, now, held))
        dropped = 0
        while held and len(self._queue) > 1 and (len(self._queue) > MAX_HELD or self.size > MAX_HELD_BYTES):
            self._take()
            dropped += 1
        return dropped

    def send(self, attempt: Callable[[Waiting], Outcome], now: float) -> None:
        """Try to send all, the oldest first.

        :param attempt: sends one; it must not call back into the backlog
        """
        refused: deque[Waiting] = deque()
        blocked: set[Hashable] = set()
        while self._queue:
            waiting = self._take()
            outcome = Outcome.REFUSED if waiting.address in blocked else attempt(waiting)
            if outcome is Outcome.FULL:
                self._put_back(waiting)
                break
            if outcome is Outcome.REFUSED:
                if not waiting.held:
                    waiting.held, waiting.since = True, now
                blocked.add(waiting.address)
                refused.append(waiting)
        while refused:
            self._put_back(refused.pop())

    def expire(self, before: float) -> list[Waiting]:
        """Give up those that have been held since before a time."""
        kept: list[Waiting] = []
        expired: list[Waiting] = []
        while self._queue:
            waiting = self._take()
            (expired if waiting.held and waiting.since <= before else kept).append(waiting)
        for waiting in kept:
            self._put(waiting)
        return expired

    def clear(self) -> int:
        """Drop all.

        :return: how many of them were held
        """
        held = sum(w.held for w in self._queue)
        self._queue.clear()
        self._counts.clear()
        self.size = 0
        return held

    def _put(self, waiting: Waiting) -> None:
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
        count = self._counts.get(waiting.address, 0) + by
        if count:
            self._counts[waiting.address] = count
        else:
            del self._counts[waiting.address]
