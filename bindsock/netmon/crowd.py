"""Many followers of one watcher, which sees them as one.

Thousands of sockets would stop the event loop if all of them saw a new reading in one iteration of it.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from bindsock.model.change import Cause
from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_BATCH = 4
"""How many members see a reading before the time budget is checked again."""


class Member(Protocol):
    """One of many followers."""

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Compare the present path with the new decision, and move if they differ."""


M = TypeVar("M", bound=Member)


class Crowd(Generic[M]):
    """The members. A subclass passes the readings to them.

    :param watcher: the watcher, held weakly
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = weakref.ref(watcher)
        self._budget = watcher.runtime.shared(CallbackBudget)
        self._members: dict[int, M] = {}

    def follow(self, member: M) -> None:
        """Pass each new reading to the member from now on."""
        watcher = self._watcher()
        assert watcher is not None
        if not watcher.follows(self):
            self._members.clear()
            watcher.follow(self)
        else:
            watcher.statistics.tracked += 1
            watcher.decide_ahead()
        self._members[id(member)] = member

    def unfollow(self, member: M) -> None:
        """Pass no more readings to the member. Does nothing if it does not follow."""
        watcher = self._watcher()
        if self._members.pop(id(member), None) is None or watcher is None or not watcher.follows(self):
            return
        if self._members:
            watcher.statistics.tracked -= 1
        else:
            watcher.unfollow(self)

    def follows(self, member: M) -> bool:
        """Whether the member gets new readings. The timers of a member check this before they act."""
        watcher = self._watcher()
        return id(member) in self._members and watcher is not None and watcher.follows(self)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Pass a reading to the members, now or in turns of the loop."""
        raise NotImplementedError


class InTurns(Crowd[Member]):
    """A crowd whose members see each reading in turns, in the order in which they started to follow.

    After another reading, all of them start over with the newest. The watcher calls this follower after all others.
    """

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher)
        self._order: list[Member] | None = []
        """The members that have not seen the newest reading, the next one last; ``None`` if they must be listed first."""
        self._moving = False
        self._cause = Cause.EVENTS

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """See :meth:`Crowd.network_changed`. The first members see it at once."""
        self._cause = cause
        self._order = None
        if not self._moving:
            self._moving = True
            self._budget.do(self._show_some)

    def catch_up(self, member: Member) -> None:
        """Show the newest reading to the member now, if it may not have seen it yet. It may see it once more in its turn."""
        watcher = self._watcher()
        if self._moving and watcher is not None and self.follows(member):
            self._show(member, watcher.latest)

    def _show_some(self) -> None:
        """Show the newest reading to a few members, and schedule the rest."""
        watcher = self._watcher()
        if watcher is None or not watcher.follows(self):
            self._moving, self._order = False, []
            return
        if self._order is None:
            self._order = list(reversed(self._members.values()))
        shown = 0
        while self._order and shown < _BATCH:
            member = self._order.pop()
            if id(member) in self._members:
                self._show(member, watcher.latest)
                shown += 1
        if self._order is None or self._order:
            self._budget.do(self._show_some)
        else:
            self._moving = False

    def _show(self, member: Member, decider: Decider) -> None:
        try:
            member.network_changed(decider, self._cause)
        except Exception:
            _logger.exception("a connection could not follow the network; the others are not affected")


def in_turns(watcher: Watcher) -> InTurns:
    """The crowd of a watcher whose members see each reading in turns."""
    return watcher.group(InTurns)
