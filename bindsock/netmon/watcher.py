"""Watches the network: turns events into readings, readings into decisions, and moves the followers.

While there are followers, listeners or holds, a watcher *runs*: the kernel's event sources are registered with the event loop.
``LINGER`` seconds after the last of them is gone, it *rests*: the sources stay open, but they are not registered, and there is no
timer. The next dial checks by one ``poll()`` whether there are events, and uses the last reading if there are none. The watcher
closes the sources when the loop ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bindsock.model.change import Cause
from bindsock.model.network import Interface, Lookups, Network
from bindsock.model.statistics import Statistics
from bindsock.netmon.alarm import Alarm
from bindsock.netmon.announcing import Announcements
from bindsock.netmon.coalescing import QUIET, Coalescer
from bindsock.netmon.crowd import InTurns
from bindsock.netmon.listening import ChangeListener, Hold
from bindsock.netmon.prefetch import PrefetchedDecisions
from bindsock.netmon.reading import NetworkReader
from bindsock.netmon.sources import EventSources
from bindsock.netmon.worker import Worker
from bindsock.routing.effective import Decider, Preferences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bindsock.kernel import EventSource, Kernel
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")
T = TypeVar("T")

LINGER = 1.0
"""Seconds after which a watcher that is not needed any more rests, so that it does not stop and start for every dial."""


_REGISTER_AFTER = 3
"""Iterations of the event loop before the sources are registered. A dial needs two of them for its transport."""


class Follower(Protocol):
    """A follower moves a socket with the effective interface. The watcher passes it each new reading."""

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Compare the present path with the new decision, and move if they differ. Must not raise."""


class Watcher:
    """Keeps one reading of the network up to date while it is needed, and moves the followers.

    :param kernel: the kernel to ask
    :param preferences: how to decide
    :param runtime: the event loop and its clock
    :param interface: the name of the only interface to use; ``None`` to detect it
    """

    def __init__(self, kernel: Kernel, preferences: Preferences, *, runtime: Runtime, interface: str | None = None) -> None:
        self.kernel = kernel
        self.preferences = preferences
        self.interface = interface
        self.runtime = runtime
        self.statistics: Statistics = Statistics()
        self._sources = EventSources(runtime, self._readable)
        self._reader = NetworkReader(kernel)
        self._coalescer = Coalescer(runtime.time())
        self._alarm = Alarm(runtime, self._on_alarm)
        self._announcements = Announcements(self.statistics)
        self._prefetched = PrefetchedDecisions()
        self._followers = Followers(self.statistics)
        self._rest_at = 0.0
        self._decider: Decider | None = None
        if kernel.multipath is not None:
            kernel.multipath.background = runtime.shared(Worker)

    @property
    def running(self) -> bool:
        """Whether it is needed: there is a follower, a listener or a hold, and it was not stopped."""
        return self._sources.opened and self._needed

    @property
    def resting(self) -> bool:
        """Whether the event sources are open, although the watcher is not needed now."""
        return self._sources.opened and not self.running

    @property
    def latest(self) -> Decider:
        """The newest decider. Pending events are not processed; see :meth:`refresh`.

        :raises RuntimeError: nothing has been read yet
        """
        if self._decider is None:
            raise RuntimeError("the network has not been read yet: call refresh()")
        return self._decider

    def group(self, kind: Callable[[Watcher], T]) -> T:
        """The follower of a class that represents many others. It is made on first use.

        :param kind: the class, which is called with the watcher; it must hold the watcher weakly
        """
        groups = self._followers.groups
        found: T | None = groups.get(kind)
        if found is None:
            found = groups[kind] = kind(self)
        return found

    def follows(self, follower: Follower) -> bool:
        """Whether the follower gets new readings. The timers of a follower check this before they act."""
        return follower in self._followers

    def refresh(self) -> Decider:
        """Process the pending events of the kernel now, and read the network if it has not been read yet.

        :return: the newest decider
        :raises OSError: the network could not be read
        """
        if self._sources.registered:
            if self._sources.pending():
                for source in self._sources:
                    self._readable(source)
        elif self._sources.opened:
            self._catch_up()
        else:
            self._open()
        return self.latest

    def recheck(self) -> None:
        """Read the network again after a refused send, because it may have changed without an event. Throttled like events."""
        readings = self.statistics.readings
        self.refresh()
        if self.statistics.readings != readings:
            return  # there was an event after all
        now = self.runtime.time()
        if self.running and self._coalescer.event(now, Cause.SEND_ERROR):
            self._read(Cause.SEND_ERROR, partial=True, event_time=now)
        self._set_alarm()

    def up_to_date_since(self) -> float | None:
        """When the network was read, in monotonic seconds; ``None`` if it may have changed since, which has not been read yet."""
        return None if self._sources.pending() else self._coalescer.up_to_date_since()

    def follow(self, follower: Follower) -> None:
        """Pass each new reading to the follower from now on."""
        self._run()
        self._followers.add(follower)
        self.decide_ahead()

    def decide_ahead(self) -> None:
        """Decide ahead, a moment later, for the destinations that are new. Called after a socket has begun to follow."""
        if self._prefetched.due is None and self._prefetched.lacks_targets(self.latest):
            self._prefetched.due = self.runtime.time() + QUIET
            if self._sources.registered:
                self._alarm.bring_forward(self._prefetched.due)

    def unfollow(self, follower: Follower) -> None:
        """Pass no more readings to the follower. Does nothing if it does not follow."""
        if self._followers.remove(follower):
            self._rest_if_idle()

    def forget_followers(self) -> None:
        """Remove all followers. Their sockets stay open and bound."""
        self._followers.clear()
        self._rest_if_idle()

    def listen(self, listener: ChangeListener) -> None:
        """Pass each path change to the listener from now on."""
        self._run()
        self._announcements.catch_up(self.runtime.time(), self.latest)
        self._announcements.add(listener)

    def unlisten(self, listener: ChangeListener) -> None:
        """Pass no more path changes to the listener. Does nothing if it does not listen."""
        self._announcements.remove(listener)
        self._rest_if_idle()

    def hold(self) -> Hold:
        """A context manager during which the watcher runs."""
        return Hold(self)

    def begin_hold(self) -> None:
        """See :class:`Hold`."""
        self._run()
        self._followers.holds += 1

    def end_hold(self) -> None:
        """See :class:`Hold`."""
        self._followers.holds -= 1
        self._rest_if_idle()

    def stop(self) -> None:
        """Close the event sources and the kernel's socket for questions, even if there are followers. The next use opens them."""
        if not self._sources.opened:
            return
        self._alarm.cancel()
        self._sources.close()
        self.kernel.close()
        self._prefetched.clear()
        self._announcements.end()

    def _open(self) -> None:
        self.runtime.at_end(self.stop)
        # The sources are opened before the first reading, so that no change is missed in between.
        self._sources.open(self.kernel)
        now = self.runtime.time()
        try:
            network = self._reader.start()
        except BaseException:
            self._sources.close()
            raise
        self.statistics.readings += 1
        self._coalescer = Coalescer(now)
        self._set_decider(network, self.kernel.lookups(network))
        self._announcements.start(self.latest)

    @property
    def _needed(self) -> bool:
        return bool(self._followers or self._announcements)

    def _run(self) -> None:
        if self._sources.registered:
            return
        if not self._sources.opened:
            self._open()
        if not self._sources.registering:
            # Register later, so that a dial need not wait. Events that arrive meanwhile are processed then, or by the next dial.
            self._sources.registering = True
            self.runtime.call_soon(self._register, _REGISTER_AFTER)

    def _register(self, turns: int) -> None:
        if turns > 1:
            self.runtime.call_soon(self._register, turns - 1)
            return
        self._sources.registering = False
        if self.running and not self._sources.registered:
            self._sources.register()
            self._set_alarm()

    def _rest_if_idle(self) -> None:
        if self._sources.registered and not self._needed:
            self._rest_at = self.runtime.time() + LINGER
            self._alarm.bring_forward(self._rest_at)

    def _rest(self) -> None:
        self._sources.unregister()
        self._alarm.cancel()

    def _catch_up(self) -> None:
        """Process at once what events and timers would have processed while the watcher rested."""
        now = self.runtime.time()
        dirty = not self._sources
        if self._sources.pending():
            for source in self._sources:
                dirty |= self._drain(source)
        if dirty:
            self._coalescer.event(now)
        cause = Cause.WAKE if self._reader.woke() else self._coalescer.due(now)
        if cause is not None or dirty:
            self._read(cause or Cause.EVENTS)

    def _set_alarm(self) -> None:
        if self._sources.registered:
            now = self.runtime.time()
            rest_at = self._rest_at if not self._needed else None
            times = (self._coalescer.deadline(), self._announcements.deadline(now), self._prefetched.due, rest_at)
            self._alarm.set(min(due for due in times if due is not None))

    def _readable(self, source: EventSource) -> None:
        if source not in self._sources or not self._drain(source):
            return
        now = self.runtime.time()
        if self._reader.woke():
            self._read(Cause.WAKE)
        elif self._coalescer.event(now, urgent=source.urgent):
            self._read(Cause.EVENTS, partial=True, event_time=now)
            # The program sends by the sockets that have moved before this.
            self.runtime.call_soon(self._set_alarm)
            return
        else:
            self.statistics.coalesced += 1
        self._set_alarm()

    def _drain(self, source: EventSource) -> bool:
        """Read the events of a source.

        :return: whether any of them is relevant
        """
        before = source.overruns
        try:
            dirty = source.drain()
        except OSError as error:
            _logger.warning("closing an event source that failed, changes are noticed only once a minute: %s", error)
            self._sources.drop(source)
            dirty = source.urgent = True
        self.statistics.overruns += source.overruns - before
        self.statistics.events += dirty
        return dirty

    def _on_alarm(self) -> None:
        now = self.runtime.time()
        if not self._needed and now >= self._rest_at:
            self._rest()
            return
        if self._announcements.postponed:
            self._announcements.catch_up(now, self.latest)
            self._set_alarm()
            return  # what else is due has a turn of the loop of its own
        held = self._announcements.held_until()
        cause = Cause.WAKE if self._reader.woke() else self._coalescer.due(now)
        if cause is not None or (held is not None and now >= held):
            self._read(cause or Cause.EVENTS)
            self._set_alarm()
            return
        try:
            if self._prefetched.due is not None and now >= self._prefetched.due:
                self._prefetched.prepare(self.latest)
        finally:
            self._set_alarm()

    def _read(self, cause: Cause, *, partial: bool = False, event_time: float | None = None) -> None:
        begun = self.runtime.time()
        self._announcements.catch_up(begun, self.latest)
        network = self._reader.read(partial=partial)
        now = self.runtime.time()
        if network is None:
            self._coalescer.event(now)
            return
        self.statistics.readings += 1
        self._coalescer.read(now, now - begun)
        old = self.latest.network
        lookups = self.kernel.lookups(network)
        other_answers = lookups != self.latest.lookups
        if other_answers or (network is not old and network != old):
            self._set_decider(network, lookups, use_prefetched=partial)
            # Move followers first, announce afterwards.
            if other_answers or _differ(network, old):
                self._move_followers(cause, event_time)
        if partial:
            # In the same iteration of the loop, but after the program's own callbacks.
            self._announcements.postpone(cause)
        else:
            self._announcements.announce(self.runtime.time(), cause, self.latest)

    def _set_decider(self, network: Network, lookups: Lookups, *, use_prefetched: bool = False) -> None:
        """
        :param use_prefetched: whether prefetched decisions may be used; the next complete reading corrects them
        """
        prefetched = self._prefetched.find(network, self.latest) if use_prefetched else None
        if prefetched is not None:
            prefetched.lookups = lookups
        self._decider = prefetched or Decider(network, self.preferences, interface=self.interface, lookups=lookups)
        self._prefetched.due = self.runtime.time() + QUIET

    def _move_followers(self, cause: Cause, event_time: float | None) -> None:
        moved = self.statistics.rebinds
        self._followers.readings += 1
        reading = self._followers.readings
        for follower in self._followers:
            if self._followers.readings != reading:
                break  # a follower has caused another reading, which all followers have seen
            try:
                follower.network_changed(self.latest, cause)
            except Exception:
                _logger.exception("a follower failed to move; the others are not affected")
        if event_time is not None and self.statistics.rebinds != moved:
            self.statistics.recovery = self.runtime.time() - event_time
            self.statistics.longest_recovery = max(self.statistics.longest_recovery or 0.0, self.statistics.recovery)


class Followers:
    """The followers of a watcher, in the order in which they started to follow.

    :ivar holds: how many holds there are
    :ivar groups: the followers that represent many others, by class
    :ivar readings: how many readings they were passed
    """

    def __init__(self, statistics: Statistics) -> None:
        self.holds = 0
        self.groups: dict[Callable[[Watcher], Any], Any] = {}
        self.readings = 0
        self._statistics = statistics
        self._followers: dict[int, Follower] = {}

    def __iter__(self) -> Iterator[Follower]:
        """The crowd whose members wait for their turn is the last one, so that datagram sockets and dials go first."""
        last: Follower | None = self.groups.get(InTurns)
        found = [follower for follower in self._followers.values() if follower is not last]
        return iter([*found, last] if last is not None and last in self else found)

    def __contains__(self, follower: object) -> bool:
        return id(follower) in self._followers

    def __bool__(self) -> bool:
        return bool(self._followers) or self.holds > 0

    def add(self, follower: Follower) -> None:
        """Add a follower."""
        self._statistics.tracked += id(follower) not in self._followers
        self._followers[id(follower)] = follower

    def remove(self, follower: Follower) -> bool:
        """Remove a follower.

        :return: whether it followed
        """
        found = self._followers.pop(id(follower), None) is not None
        self._statistics.tracked -= found
        return found

    def clear(self) -> None:
        """Remove all followers."""
        self._followers.clear()
        self._statistics.tracked = 0


def _differ(new: Network, old: Network) -> bool:
    """Whether two networks may lead to different decisions. Interfaces without a usable address are ignored."""
    if (new.defaults, new.unbound, new.tables, new.routes) != (old.defaults, old.unbound, old.tables, old.routes):
        return True
    for index in new.interfaces.keys() | old.interfaces.keys():
        pair = (new.interfaces.get(index), old.interfaces.get(index))
        if pair[0] != pair[1] and any(interface is not None and _counts(interface) for interface in pair):
            return True
    return False


def _counts(interface: Interface) -> bool:
    return interface.delegate is not None or any(address.usable for address in interface.addresses)
