"""Happy eyeballs (RFC 8305 section 5): races the addresses of one host, on any event loop.

An attempt starts when the previous one has failed or has taken too long. The first that connects wins, and the others are
closed. There is no task: the event loop reports when a socket is writable. uvloop, which has no happy eyeballs of its own, and
trio get the same race as asyncio.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bindsock.model.change import Cause
from bindsock.model.decision import pinned_to

if TYPE_CHECKING:
    from bindsock.dial.attempt import Attempt, Destination
    from bindsock.model.decision import Path
    from bindsock.model.network import Network
    from bindsock.netmon.loop import Future, Timer
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider


def broken(old: Path | None, new: Path | None) -> bool:
    """Whether an attempt on the old path should start again on the new one.

    It need not if the new path only has additional addresses, and it cannot if there is no new path.
    """
    if new is None or old == new:
        return False
    return old is None or old.index != new.index or old.gateway != new.gateway or not old.addresses <= new.addresses


def gone(old: Path | None, network: Network) -> bool:
    """Whether no answer can arrive on the path any more."""
    if old is None:
        return False
    interface = network.interfaces.get(old.index)
    if interface is None or not interface.up or not interface.running:
        return True
    return bool(old.addresses) and old.addresses.isdisjoint(interface.usable_addresses(old.family))


def interleaved(destinations: Sequence[Destination], first: int = 1) -> list[Destination]:
    """Alternate the families, keeping the order within each (RFC 8305 section 4).

    :param first: how many addresses of the first family come before the first of another one
    """
    families: dict[int, list[Destination]] = {}
    for destination in destinations:
        families.setdefault(destination.info[0], []).append(destination)
    preferred, *others = families.values()
    ahead, behind = preferred[: first - 1], preferred[first - 1 :]
    turns = itertools.zip_longest(behind, *others)
    return ahead + [destination for turn in turns for destination in turn if destination is not None]


class Race:
    """Connects to the first of several addresses that answers.

    :param attempts: one for each address, in the order in which they start
    :param delay: seconds after which the next attempt starts in parallel; ``None`` to try one by one
    :param timeout: seconds within which each address must answer; ``None`` for the system's own limit
    """

    __slots__ = (
        "_attempts",
        "_begun",
        "_connecting",
        "_delay",
        "_end",
        "_interrupted",
        "_interruptible",
        "_timeout",
        "_timeouts",
        "_timer",
        "_watcher",
        "_winner",
        "errors",
    )

    def __init__(self, watcher: Watcher, attempts: Sequence[Attempt], delay: float | None, timeout: float | None = None) -> None:
        self.errors: list[OSError] = []
        """The errors of the failed attempts, in order."""
        self._watcher = watcher
        self._attempts = attempts
        self._delay = delay
        self._timeout = timeout
        self._timeouts: dict[Attempt, Timer] = {}
        self._begun = 0
        self._connecting: list[Attempt] = []
        self._winner: Attempt | None = None
        self._interrupted = False
        self._interruptible = True
        self._end: Future | None = None
        self._timer: Timer | None = None

    def take_first(self, error: OSError | None) -> None:
        """Take over the first attempt, which was started before the race, because most dials need no race.

        :param error: how it failed; ``None`` if it is connecting
        """
        self._begun = 1
        if error is None:
            self._wait_for(self._attempts[0])
        else:
            self.errors.append(error)
            self._begin_next()

    async def run(self, *, interruptible: bool) -> Attempt | None:
        """Connect.

        :param interruptible: whether every path change may end the race. If not, it only ends when no answer can arrive any more
            and there are other paths
        :return: the attempt that succeeded, ``None`` if none did or the race was interrupted
        """
        self._interruptible = interruptible
        try:
            if not self._begun:
                self._begin_next()
            if not self._over:
                self._end = self._watcher.runtime.create_future()
                self._watcher.follow(self)
                try:
                    latest = self._watcher.latest
                    if latest is not self._attempts[0].destination.decider:
                        # An attempt that failed at once has read the network anew, before the race followed.
                        self.network_changed(latest, Cause.STARTED)
                    await self._end
                finally:
                    self._watcher.unfollow(self)
            return self._take_winner()
        finally:
            self._close()

    def _take_winner(self) -> Attempt | None:
        """Return the winner, which the caller owns from now on."""
        winner, self._winner = self._winner, None
        return winner

    @property
    def interrupted(self) -> bool:
        """Whether a path change ended the race."""
        return self._interrupted

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """End the race if the path to one of its addresses has changed, or at the latest if the paths to all are gone."""
        destinations = [attempt.destination for attempt in self._attempts]
        changed = [broken(d.path, decider.with_pin(pinned_to(d.decision)).path(d.address)) for d in destinations]
        if self._interruptible:
            interrupted = any(changed)
        else:
            interrupted = all(changed) and all(gone(d.path, decider.network) for d in destinations)
        if interrupted:  # for good, even if the path is back before the race has ended
            self._interrupted = True
            self._wake()

    @property
    def _over(self) -> bool:
        return self._winner is not None or self._interrupted or not (self._connecting or self._begun < len(self._attempts))

    def _begin_next(self) -> None:
        """Start the next attempt; if it fails at once, the one after it, and so on."""
        self._cancel_timer()
        while not self._over and self._begun < len(self._attempts):
            attempt = self._attempts[self._begun]
            self._begun += 1
            try:
                connected = attempt.begin()
            except OSError as error:
                self.errors.append(error)
                continue
            if connected:
                self._winner = attempt
            else:
                self._wait_for(attempt)
            break

    def _wait_for(self, attempt: Attempt) -> None:
        assert attempt.sock is not None
        self._connecting.append(attempt)
        runtime = self._watcher.runtime
        runtime.add_writer(attempt.sock, self._writable, attempt)
        if self._timeout is not None:
            self._timeouts[attempt] = runtime.call_later(self._timeout, self._expired, attempt, self._timeout)
        if self._delay is not None and self._begun < len(self._attempts):
            self._timer = runtime.call_later(self._delay, self._begin_next_and_wake)

    def _begin_next_and_wake(self) -> None:
        self._begin_next()
        self._wake_if_over()

    def _writable(self, attempt: Attempt) -> None:
        self._leave(attempt)
        try:
            attempt.finish()
        except OSError as error:
            self.errors.append(error)
            self._begin_next()
        else:
            self._winner = attempt
        self._wake_if_over()

    def _expired(self, attempt: Attempt, seconds: float) -> None:
        if attempt.answered:
            # The loop was busy, and uvloop calls timers then before it looks at sockets.
            self._writable(attempt)
            return
        self._leave(attempt)
        self.errors.append(attempt.expire(seconds))
        self._begin_next()
        self._wake_if_over()

    def _wake_if_over(self) -> None:
        if self._over:
            self._wake()

    def _wake(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _leave(self, attempt: Attempt) -> None:
        """Remove the attempt's socket from the event loop, before the socket is closed or handed over."""
        self._connecting.remove(attempt)
        timeout = self._timeouts.pop(attempt, None)
        if timeout is not None:
            timeout.cancel()
        if attempt.sock is not None:
            self._watcher.runtime.remove_writer(attempt.sock)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _close(self) -> None:
        """Close the attempts that are still connecting, and a winner that nobody has taken."""
        self._cancel_timer()
        for attempt in list(self._connecting):
            self._leave(attempt)
            attempt.close()
        if self._winner is not None:
            self._winner.close()
