"""The datagram sockets that follow one watcher. The recently used ones move first, thousands of others in small batches.

The watcher sees all of them as one follower, and passes it the newest reading of the network. A socket that has not seen this
reading yet moves at once when the program sends by it. If the network changes again meanwhile, all of them start over with the
newest reading.

The time until the first sockets move does not depend on their number: the sockets are kept in the order in which they were used,
and each stores the number of the reading that it has seen.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from bindsock.model.change import Cause
from bindsock.netmon import crowd
from bindsock.netmon.crowd import Crowd

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_AT_ONCE = 2
"""So many sockets are moved at once, before anything else runs."""
_BATCH = 4
"""How many sockets are moved before the time budget is checked again."""


class Member(crowd.Member, Protocol):
    """The follower of one datagram socket."""

    seen: int
    """The number of the newest reading that it has seen; -1 if it must see the newest one again."""


class DatagramFollowers(Crowd[Member]):
    """The followers of all datagram sockets, as one follower of the watcher. The most recently used member is the last one."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher)
        self.reading: int = 0
        """The number of the newest reading. A member that has not seen it gets it before it sends."""
        self._order: list[Member] | None = []
        """The members that have not moved yet, the most recently used one last; ``None`` if they must be listed first, which
        takes some tenths of a millisecond for thousands of them."""
        self._rechecks: deque[Member] = deque()
        """The members that have called :meth:`recheck`; they come before the others."""
        self._moving = False
        self._cause = Cause.EVENTS
        self._begun = 0.0

    def follow(self, member: Member) -> None:
        """Pass each new reading to the member from now on."""
        super().follow(member)
        member.seen = self.reading

    def used(self, member: Member) -> None:
        """Record that the member has sent or received, so that it moves before the others. It need not call this each time."""
        key = id(member)
        if self._members.pop(key, None) is not None:
            self._members[key] = member

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move the most recently used sockets at once, and the others in batches."""
        self._cause = cause
        reading = self.reading = self.reading + 1
        for member in list(itertools.islice(reversed(self._members.values()), _AT_ONCE)):
            self._notify(member, decider)
            if self.reading != reading:
                return  # the member has caused another reading, which all members get
        if len(self._members) > _AT_ONCE:
            self._order = None
            self._start(later=True)

    def recheck(self, member: Member) -> None:
        """Pass the newest reading to the member again, soon. Many members may ask for this at the same time."""
        if member.seen == self.reading and self.follows(member):
            member.seen = -1
            self._rechecks.append(member)
            self._start()

    def catch_up(self, member: Member) -> None:
        """Pass the newest reading to the member now, because its socket is about to send."""
        watcher = self._watcher()
        if watcher is not None and self.follows(member):
            self._notify(member, watcher.latest)
        else:
            member.seen = self.reading

    def _notify(self, member: Member, decider: Decider) -> None:
        member.seen = self.reading
        try:
            member.network_changed(decider, self._cause)
        except Exception:
            _logger.exception("a datagram socket failed to move; the other sockets are not affected")

    def _start(self, *, later: bool = False) -> None:
        """Start to move the sockets that have not seen the newest reading.

        :param later: not in this iteration of the loop, so that the program can use the sockets that have already moved
        """
        if not self._moving:
            watcher = self._watcher()
            assert watcher is not None
            self._moving = True
            self._begun = watcher.runtime.time()
            (self._budget.do_later if later else self._budget.do)(self._move_some)

    def _move_some(self) -> None:
        """Move a batch, and schedule the rest."""
        watcher = self._watcher()
        if watcher is None or not watcher.follows(self):
            self._moving = False
            self._order = []
            self._rechecks.clear()
            return
        members, moved = self._members, 0
        if self._order is None:
            self._order = list(members.values())
        while moved < _BATCH and (self._rechecks or self._order):
            member = self._rechecks.popleft() if self._rechecks else self._order.pop()
            if member.seen != self.reading and id(member) in members:
                self._notify(member, watcher.latest)
                moved += 1
        if self._rechecks or self._order or self._order is None:
            self._budget.do(self._move_some)
            return
        self._moving = False
        statistics = watcher.statistics
        if statistics.recovery is not None:
            statistics.recovery += watcher.runtime.time() - self._begun
            statistics.longest_recovery = max(statistics.longest_recovery or 0.0, statistics.recovery)


def followers_of(watcher: Watcher) -> DatagramFollowers:
    """The followers of all datagram sockets of a watcher."""
    return watcher.group(DatagramFollowers)
