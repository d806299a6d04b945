"""The datagram sockets that follow one watcher: thousands are moved in turns of the event loop, those that were used last first.

The watcher knows this one follower. What it is shown is the newest reading; a socket that has not been moved by it yet is
moved at once if it is sent by. A second change in the middle starts over, from the newest reading.

Nothing that happens before the first sockets move takes longer with more of them: they are kept in the order in which they were
used, and what each has seen is a number that is compared when it matters.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Protocol

from bindsock.model.change import Cause
from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_AT_ONCE = 2
"""Sockets that are moved before anything else runs."""
_PIECE = 4
"""Sockets that are moved between two looks at the clock."""


class Member(Protocol):
    """What follows one socket."""

    seen: int
    """The number of the newest reading that it has been shown; -1 if it is to look again."""

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Go where the socket belongs now."""


class DatagramFollowers:
    """Those who follow one watcher with a datagram socket.

    :param watcher: the watcher, which is held weakly
    """

    def __init__(self, watcher: Watcher) -> None:
        self.reading: int = 0
        """The number of the newest reading. A member that has seen another one is shown it before it is used."""
        self._watcher = weakref.ref(watcher)
        self._budget = watcher.runtime.shared(CallbackBudget)
        self._members: dict[int, Member] = {}
        """The one that was used last at the end."""
        self._order: list[Member] | None = []
        """Those that are left to move, the one that was used last at the end; ``None`` if they are to be listed, which takes
        thousands some tenths of a millisecond."""
        self._called: deque[Member] = deque()
        """Those that are to look again, and do so before the others move."""
        self._moving = False
        self._cause = Cause.EVENTS
        self._begun = 0.0

    def follow(self, member: Member) -> None:
        """Show each new reading to the member from now on."""
        watcher = self._watcher()
        assert watcher is not None
        if not watcher.follows(self):
            self._members.clear()
            watcher.follow(self)
        else:
            watcher.statistics.tracked += 1
        self._members[id(member)] = member
        member.seen = self.reading

    def unfollow(self, member: Member) -> None:
        """Leave the member alone. Harmless if it is not followed."""
        watcher = self._watcher()
        if self._members.pop(id(member), None) is None or watcher is None or not watcher.follows(self):
            return
        if self._members:
            watcher.statistics.tracked -= 1
        else:
            watcher.unfollow(self)

    def follows(self, member: Member) -> bool:
        """Whether the member is shown new readings. A timer of its own checks that before it acts."""
        watcher = self._watcher()
        return id(member) in self._members and watcher is not None and watcher.follows(self)

    def used(self, member: Member) -> None:
        """Something was sent or received by the member: from now on it moves before the others. Need not be told each time."""
        key = id(member)
        if self._members.pop(key, None) is not None:
            self._members[key] = member

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move those that were used last at once, and the others in turns."""
        self._cause = cause
        reading = self.reading = self.reading + 1
        for member in list(itertools.islice(reversed(self._members.values()), _AT_ONCE)):
            self._show(member, decider)
            if self.reading != reading:
                return  # it has caused another reading, which is shown to all
        if len(self._members) > _AT_ONCE:
            self._order = None
            self._start(later=True)

    def look_again(self, member: Member) -> None:
        """Something that the member waits for has come; many may wait for the same."""
        if member.seen == self.reading and self.follows(member):
            member.seen = -1
            self._called.append(member)
            self._start()

    def catch_up(self, member: Member) -> None:
        """The member is about to be used: show it the newest reading now."""
        watcher = self._watcher()
        if watcher is not None and self.follows(member):
            self._show(member, watcher.latest)
        else:
            member.seen = self.reading

    def _show(self, member: Member, decider: Decider) -> None:
        member.seen = self.reading
        try:
            member.network_changed(decider, self._cause)
        except Exception:
            _logger.exception("a datagram socket failed to move; the others go on")

    def _start(self, *, later: bool = False) -> None:
        """Move those that have not seen the newest reading.

        :param later: not in this turn of the loop, so that a program that sends by those moved already need not wait
        """
        if not self._moving:
            watcher = self._watcher()
            assert watcher is not None
            self._moving = True
            self._begun = watcher.runtime.time()
            (self._budget.do_later if later else self._budget.do)(self._move_some)

    def _move_some(self) -> None:
        """Move some, and have the rest moved when there is time again."""
        watcher = self._watcher()
        if watcher is None or not watcher.follows(self):
            self._moving = False
            self._order = []
            self._called.clear()
            return
        members, moved = self._members, 0
        if self._order is None:
            self._order = list(members.values())
        while moved < _PIECE and (self._called or self._order):
            member = self._called.popleft() if self._called else self._order.pop()
            if member.seen != self.reading and id(member) in members:
                self._show(member, watcher.latest)
                moved += 1
        if self._called or self._order or self._order is None:
            self._budget.do(self._move_some)
            return
        self._moving = False
        statistics = watcher.statistics
        if statistics.recovery is not None:
            statistics.recovery += watcher.runtime.time() - self._begun
            statistics.longest_recovery = max(statistics.longest_recovery or 0.0, statistics.recovery)


def followers_of(watcher: Watcher) -> DatagramFollowers:
    """Those who follow a watcher with a datagram socket."""
    return watcher.group(DatagramFollowers)
