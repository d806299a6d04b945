"""The watcher: kernel events become readings, readings become decisions, decisions move what is followed.

A :class:`Watcher` knows no event loop. It is told that a source is readable, or that its deadline has come, by a driver: this
module has the one for asyncio (and uvloop), :mod:`bindsock.anyio` the one for trio.

Everything is level-triggered. After each reading that differs, every follower is shown the newest :class:`Decider` and compares
its own path with what that says, until they are equal; there is no queue of changes to fall behind on.

When nothing has changed for a moment, what would be decided if one of the uplinks went down is worked out ahead.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bindsock.kernel import EventSource, Kernel
from bindsock.model.change import Cause
from bindsock.model.decision import Decision
from bindsock.model.network import FAMILIES, Interface, Network
from bindsock.model.statistics import Statistics
from bindsock.netmon.announcing import Announcer
from bindsock.netmon.coalescing import QUIET, Coalescer
from bindsock.netmon.drivers import Driver
from bindsock.netmon.listening import ChangeListener, Hold
from bindsock.netmon.prefetch import DecisionsAhead
from bindsock.routing.effective import Decider, Preferences

logger = logging.getLogger("bindsock")

_SLEPT = 1.0
"""Seconds by which the two clocks must have drifted apart to call it a sleep."""


class Follower(Protocol):
    """Something that stays on the effective interface: it is shown each new reading and moves itself."""

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Compare the path in use with what the decider says now, and move if they differ. Must not raise."""


def _differ(new: Network, old: Network) -> bool:
    """Whether two networks can lead to different decisions: an interface without a usable address cannot make the difference."""
    if new.reachable != old.reachable or new.routes != old.routes:
        return True
    for index in new.interfaces.keys() | old.interfaces.keys():
        pair = (new.interfaces.get(index), old.interfaces.get(index))
        if pair[0] != pair[1] and any(interface is not None and _counts(interface) for interface in pair):
            return True
    return False


def _counts(interface: Interface) -> bool:
    return interface.delegate is not None or any(address.usable for address in interface.addresses)


class Watcher:
    """Keeps one reading of the network current while somebody needs it, and moves the followers.

    :param kernel: what to ask
    :param preferences: how to decide
    :param interface: the name of the interface that is pinned, if one is
    :param driver: the event loop
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        kernel: Kernel,
        preferences: Preferences,
        *,
        driver: Driver,
        interface: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kernel = kernel
        self.preferences = preferences
        self.interface = interface
        self.statistics = Statistics()
        self.sources: list[EventSource] = []
        self.clock = clock
        self.event_time: float | None = None
        """When the event came that made the watcher look, for followers that count how long they took."""
        self._driver = driver
        self._poll = _poll_of(())
        """Tells without an exception that nothing waits, which is dear: it is asked at each dial."""
        self._followers: dict[int, Follower] = {}
        self._listeners: list[ChangeListener] = []
        self._holds = 0
        self._running = False
        self._decider: Decider | None = None
        self._coalescer = Coalescer(clock())
        self._announcer: Announcer | None = None
        self._suspended = 0.0
        self._complained = False
        self._unannounced: Cause | None = None
        self._ahead = DecisionsAhead()
        self._prefetch_at: float | None = None

    @property
    def running(self) -> bool:
        """Whether it watches; it does while there is a follower, a listener or a hold."""
        return self._running

    def decider(self, *, interface: str | None = None, fresh: bool = True) -> Decider:
        """The newest decider: the watched one, or one from a reading made now.

        :param interface: a pin that replaces the watcher's own
        :param fresh: whether what the event loop has not delivered yet counts
        :raises OSError: the network could not be read
        """
        if fresh and self._running:
            self.refresh()  # which may end the watching
        if self._running and self._decider is not None:
            decider = self._decider
        else:
            self.statistics.readings += 1
            decider = Decider(self.kernel.network(), self.preferences, interface=self.interface)
        if interface is not None and interface != decider.pin:
            return Decider(decider.network, self.preferences, interface=interface)
        return decider

    def hold(self) -> Hold:
        """Watch during the block."""
        return Hold(self)

    def begin_hold(self) -> None:
        """See :class:`Hold`."""
        self._start()
        self._holds += 1

    def end_hold(self) -> None:
        """See :class:`Hold`."""
        self._holds -= 1
        self._stop_if_idle()

    def follow(self, follower: Follower) -> None:
        """Show each new reading to the follower from now on."""
        self._start()
        self._followers[id(follower)] = follower
        self.statistics.tracked = len(self._followers)

    def unfollow(self, follower: Follower) -> None:
        """Leave the follower alone. Harmless if it is not followed."""
        if self._followers.pop(id(follower), None) is not None:
            self.statistics.tracked = len(self._followers)
            self._stop_if_idle()

    def follows(self, follower: Follower) -> bool:
        """Whether the follower is shown new readings; a timer of its own asks before it acts."""
        return id(follower) in self._followers

    def forget_followers(self) -> None:
        """Leave all followers alone: what they follow stays open, and bound where it is."""
        self._followers.clear()
        self.statistics.tracked = 0
        self._stop_if_idle()

    def listen(self, listener: ChangeListener) -> None:
        self._start()
        if self._unannounced is not None:
            self._announce(self._unannounced)  # it happened before anybody listened
        self._listeners.append(listener)

    def unlisten(self, listener: ChangeListener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._stop_if_idle()

    def recheck(self) -> None:
        """A send was refused, so the network may have changed without a word. Throttled as events are."""
        readings = self.statistics.readings
        self.refresh()
        if self.statistics.readings != readings:
            return  # It had been announced after all.
        now = self.clock()
        if self._running and self._coalescer.event(now, Cause.SEND_ERROR):
            self.event_time = now
            self._read(Cause.SEND_ERROR, partial=True)
        self._driver.rearm()

    def refresh(self) -> None:
        """Act on what the kernel has announced already but the event loop has not delivered yet."""
        if self._poll.poll(0):
            for source in list(self.sources):
                self.readable(source)

    def readable(self, source: EventSource) -> None:
        """A source has something to read."""
        if source not in self.sources:
            return  # what another one brought has ended the watching
        before = source.overruns
        try:
            dirty = source.drain()
        except OSError as error:
            logger.warning("an event source failed and is closed; changes are seen every minute only: %s", error)
            self.sources.remove(source)
            source.close()
            self._poll = _poll_of(self.sources)
            dirty = source.urgent = True
        self.statistics.overruns += source.overruns - before
        if not dirty:
            return
        now = self.clock()
        self.statistics.events += 1
        if self._woke():
            self._read(Cause.WAKE)
        elif self._coalescer.event(now, urgent=source.urgent):
            self.event_time = now
            self._read(Cause.EVENTS, partial=True)
        else:
            self.statistics.coalesced += 1
        self._driver.rearm()

    def create_future(self) -> asyncio.Future[None]:
        """A future of the event loop that it runs on."""
        return self._driver.create_future()

    def deadline(self) -> float:
        """The monotonic second at which :meth:`timer` wants to be called."""
        if self._unannounced is not None and self._listeners:
            return self.clock()
        held = self._announcer.deadline() if self._announcer is not None else None
        return min(due for due in (self._coalescer.deadline(), held, self._prefetch_at) if due is not None)

    def timer(self) -> None:
        """The deadline has come."""
        if self._unannounced is not None:
            self._announce(self._unannounced)
        now = self.clock()
        held = self._announcer.deadline() if self._announcer is not None else None
        cause = Cause.WAKE if self._woke() else self._coalescer.due(now)
        if cause is not None or (held is not None and now >= held):
            self.event_time = None
            self._read(cause or Cause.EVENTS)
        try:
            if self._prefetch_at is not None and now >= self._prefetch_at:
                self._prefetch()
        finally:
            self._driver.rearm()

    def stop(self) -> None:
        """Stop watching, whoever still follows. The next follower starts it again."""
        if not self._running:
            return
        self._running = False
        self._driver.stop()
        for source in self.sources:
            source.close()
        self.sources = []
        self.kernel.close()
        self._poll = _poll_of(())
        self._decider = self._announcer = self._unannounced = self._prefetch_at = None
        self._ahead.clear()
        for listener in list(self._listeners):
            listener.end()

    def _start(self) -> None:
        if self._running:
            return
        now = self.clock()
        try:
            self.sources = list(self.kernel.events())
        except OSError as error:
            logger.warning("no event source can be opened; changes are seen every minute only: %s", error)
        try:
            self._suspended = self.kernel.suspended()
            # The events are open before the reading, so that no change falls between them.
            network = self.kernel.network()
        except BaseException:
            for source in self.sources:
                source.close()
            self.sources = []
            raise
        self.statistics.readings += 1
        self._decide_by(network)
        assert self._decider is not None
        self._coalescer = Coalescer(now)
        self._announcer = Announcer(self._decisions(self._decider))
        self._poll = _poll_of(self.sources)
        self._running = True
        self._driver.start(self)

    def _stop_if_idle(self) -> None:
        if not (self._followers or self._listeners or self._holds):
            self.stop()

    def _woke(self) -> bool:
        suspended = self.kernel.suspended()
        woke = suspended - self._suspended > _SLEPT
        self._suspended = suspended
        return woke

    def _read(self, cause: Cause, *, partial: bool = False) -> None:
        if self._unannounced is not None:
            self._announce(self._unannounced)
        begun = self.clock()
        try:
            network = self.kernel.network(partial=True) if partial else self.kernel.network()
        except OSError as error:
            if not self._complained:
                logger.warning("the network could not be read, the last reading stands: %s", error)
                self._complained = True
            self._coalescer.event(self.clock())
            return
        now = self.clock()
        self._complained = False
        self.statistics.readings += 1
        self._coalescer.read(now, now - begun)
        assert self._decider is not None
        old = self._decider.network
        if network is not old and network != old:
            self._decide_by(network)
            # Those who move come before those who are told.
            if _differ(network, old):
                self._show(self._decider, cause)
            if not self._running:
                return
        if partial:
            # The program's own sends come first, and then, within the same breath, those who only want to know, if there are any.
            self._unannounced = cause
        else:
            self._announce(cause)

    def _decide_by(self, network: Network) -> None:
        ahead = self._ahead.find(network)
        self._decider = ahead if ahead is not None else Decider(network, self.preferences, interface=self.interface)
        self._prefetch_at = self.clock() + QUIET

    def _prefetch(self) -> None:
        self._prefetch_at = None
        assert self._decider is not None
        self._ahead.prepare(self._decider)

    def _announce(self, cause: Cause) -> None:
        self._unannounced = None
        assert self._decider is not None
        assert self._announcer is not None
        change = self._announcer.update(self.clock(), cause, self._decisions(self._decider))
        if change is not None:
            self.statistics.changes += 1
            for listener in list(self._listeners):
                listener.put(change)

    def _show(self, decider: Decider, cause: Cause) -> None:
        moved = self.statistics.rebinds
        for follower in list(self._followers.values()):
            if self._decider is not decider:
                break  # what one of them did has made for another reading, which all have been shown
            try:
                follower.network_changed(decider, cause)
            except Exception:
                logger.exception("a follower failed to move; the others go on")
        if self.event_time is not None and self.statistics.rebinds != moved:
            self.statistics.recovery = self.clock() - self.event_time
            self.statistics.longest_recovery = max(self.statistics.longest_recovery or 0.0, self.statistics.recovery)

    @staticmethod
    def _decisions(decider: Decider) -> dict[Any, Decision]:
        return {family: decider.decide(family) for family in FAMILIES}


def _poll_of(sources: Sequence[EventSource]) -> select.poll:
    poll = select.poll()
    for source in sources:
        poll.register(source.fileno(), select.POLLIN)
    return poll
