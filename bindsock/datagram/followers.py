"""The datagram sockets that follow one watcher: thousands are moved in turns of the event loop, those that were used last first.

The watcher knows this one follower. What it is shown is the newest reading; a socket that has not been moved by it yet is
``pending``, and moved at once if it is sent by. A second change in the middle starts over, from the newest reading.
"""

from __future__ import annotations

import heapq
import logging
import weakref
from typing import TYPE_CHECKING, Protocol

from bindsock.model.change import Cause
from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_AT_ONCE = 64
"""Sockets that are moved before anything else runs."""
_PIECE = 4
"""Sockets that are moved between two looks at the clock."""


class Member(Protocol):
    """What follows one socket."""

    used: float
    """Monotonic seconds at which something was sent or received by it last."""
    pending: bool
    """The newest reading has not been shown to it yet."""

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Go where the socket belongs now."""


class DatagramFollowers:
    """Those who follow one watcher with a datagram socket.

    :param watcher: the watcher, which is held weakly
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = weakref.ref(watcher)
        self._budget = watcher.runtime.shared(CallbackBudget)
        self._members: dict[int, Member] = {}
        self._order: list[Member] | None = None
        """Those who are pending, the one that was used last at the end; ``None`` if they are to be put in order."""
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

    def unfollow(self, member: Member) -> None:
        """Leave the member alone. Harmless if it is not followed."""
        member.pending = False
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

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move those that were used last at once, and the others in turns."""
        self._cause = cause
        members = self._members.values()
        if len(members) <= _AT_ONCE:
            for member in list(members):
                self._show(member, decider)
            return
        for member in members:
            member.pending = True
        for member in heapq.nlargest(_AT_ONCE // 4, members, key=_used):
            self._show(member, decider)
        self._order = None
        self._start(later=True)

    def look_again(self, member: Member) -> None:
        """Something that the member waits for has come; many may wait for the same."""
        if self.follows(member) and not member.pending:
            member.pending = True
            if self._order is not None:
                self._order.append(member)
            self._start()

    def catch_up(self, member: Member) -> None:
        """The member is about to be used: show it the newest reading now."""
        watcher = self._watcher()
        if watcher is not None and self.follows(member):
            self._show(member, watcher.latest)
        else:
            member.pending = False

    def _show(self, member: Member, decider: Decider) -> None:
        member.pending = False
        try:
            member.network_changed(decider, self._cause)
        except Exception:
            _logger.exception("a datagram socket failed to move; the others go on")

    def _start(self, *, later: bool = False) -> None:
        """Move those who are pending.

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
            return
        if self._order is None:
            self._order = sorted((member for member in self._members.values() if member.pending), key=_used)
        moved = 0
        while self._order and moved < _PIECE:
            member = self._order.pop()
            if member.pending:
                self._show(member, watcher.latest)
                moved += 1
        if self._order or self._order is None:
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


def _used(member: Member) -> float:
    return member.used
