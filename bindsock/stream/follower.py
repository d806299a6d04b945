"""Where one connection stands: its place in the network, judged anew at each reading."""

from __future__ import annotations

import dataclasses
import logging
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bindsock.dial.resolving import address_of
from bindsock.errors import BindFailed
from bindsock.model.decision import Path
from bindsock.model.network import Interface, Target, unmapped
from bindsock.stream import viability
from bindsock.stream.multipath.manager import SubflowManager, situation
from bindsock.stream.multipath.user_timeout import UserTimeout
from bindsock.stream.viability import Assessment, Location, Viability, assess, location_of

if TYPE_CHECKING:
    import asyncio

    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

logger = logging.getLogger("bindsock")


class PathFollower:
    """Judges one connected socket, with patience for a carrier or a route that is lost for a moment.

    Where the socket's address has moved to another interface, the socket is moved after it: that is the one way in which TCP
    itself survives. A multipath connection moves by itself, and its place is that of one of its subflows.

    :param target: the peer's address
    :param pin: the name of the interface to which the connection is pinned
    :param path: the path on which it was dialled
    :param look: called when something has changed that no reading tells; it is to ask :meth:`judge` again
    :param stays: whether a multipath connection that works stays where it is, whatever is better
    :param dead_after: seconds of silence after which a multipath connection counts as dead; plain TCP's are the kernel's affair
    :raises OSError: the socket is closed
    """

    def __init__(
        self,
        watcher: Watcher,
        sock: socket.socket,
        target: Target,
        pin: str | None,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        look: Callable[[], object],
        *,
        stays: bool = False,
        dead_after: float | None = None,
    ) -> None:
        self.target = target
        self._watcher = watcher
        self._pin = pin
        self._loop = weakref.ref(loop)
        self._look = weakref.WeakMethod(look)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_for_long = False
        self._stays = stays
        self._mover: SubflowManager | None = None
        self._silence: UserTimeout | None = None
        self._silent = False
        paths = watcher.kernel.multipath
        if paths is not None and paths.subflows(sock) is not None:
            self._mover = SubflowManager(watcher, paths, sock, loop, self._look_again)
            if dead_after is not None:
                self._silence = UserTimeout(watcher, paths, sock, loop, dead_after, self._fell_silent)
        local = unmapped(address_of(sock.getsockname()))
        self.place = location_of(watcher.latest.network, path.interface, path.index, local)

    def judge(self, sock: socket.socket, decider: Decider) -> Assessment:
        """What a reading says of the connection. What is stalled for too long counts as dead.

        :param decider: the newest one, without the pin
        """
        found = self._assess(decider)
        if self._mover is not None:
            found = self._over_subflows(sock, self._mover, found, decider)
        elif found.moved is not None and self._move(sock, found.moved):
            found = self._assess(decider)
        if found.viability is not Viability.STALLED:
            self._stop_waiting()
            self._stalled_for_long = False
        elif self._stalled_for_long:
            found = dataclasses.replace(found, viability=Viability.DEAD)
        elif self._timer is None:
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                self._timer = loop.call_later(viability.STALL_GRACE, self._out_of_patience)
        return found

    def close(self) -> None:
        """Call nothing any more."""
        self._stop_waiting()
        if self._mover is not None:
            self._mover.close()
        if self._silence is not None:
            self._silence.close()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _assess(self, decider: Decider) -> Assessment:
        decider = decider.with_pin(self._pin)
        return assess(decider.network, self.place, decider.decide(self.target), self._routed)

    def _routed(self, interface: Interface) -> bool:
        return isinstance(self.target, int) or self._watcher.kernel.has_route(interface, self.target)

    def _move(self, sock: socket.socket, interface: Interface) -> bool:
        """Follow the local address to the interface that has it now: a bridge or a bond that took the old one in, a failover."""
        kernel = self._watcher.kernel
        try:
            # One that is bound to nothing goes where its address goes by itself.
            if kernel.bound(sock) is not None:
                kernel.rebind(sock, interface)
        except BindFailed as error:
            logger.info("the connection to %s could not move to %s along with its address: %s", self.target, interface, error)
            return False
        logger.info("the connection to %s moved to %s along with its address %s", self.target, interface, self.place.local)
        self.place = dataclasses.replace(self.place, interface=interface.name, index=interface.index, owner=interface.index)
        self._watcher.statistics.rebinds += 1
        return True

    def _over_subflows(self, sock: socket.socket, mover: SubflowManager, found: Assessment, decider: Decider) -> Assessment:
        """A multipath connection is well where one of its subflows is, and on its way to where it is to be."""
        subflows = mover.subflows()
        if subflows is None:
            self._fall_back(sock, mover)
            return found
        if self._silent and self._silence is not None:
            return _dead(found, f"nothing has come from the peer for {self._silence.seconds:g} seconds")
        target, pin = found.target, decider.with_pin(self._pin).pin
        now = situation(decider.network, subflows, target, pin)
        for address, name in now.forbidden:
            if not mover.remove(address, "forbidden"):
                return _dead(found, f"the system has added a subflow by {name}, where it must not be")
        working = now.working
        if found.moved is not None:
            # Its address is elsewhere now, but the subflow is bound to where that was, and cannot be bound anew.
            working = tuple(place for place in working if place.local != self.place.local)
            if not working:
                return found
        here = self._preferred(working, target)
        if here is not None and here != self.place:
            self.place = here
            mover.arrived(here)
            found = self._assess(decider)
        if here is not None:
            for address in now.lost:
                mover.remove(address, "lost")
        there = target is not None and here is not None and here.index == target.index
        if target is not None and not there and not (self._stays and here is not None and found.viability is Viability.WORKS):
            if mover.move(decider.network, target):
                found = dataclasses.replace(found, viability=Viability.WORKS, better=None)
            elif here is None and found.viability is Viability.DEAD and not mover.powerless:
                # What was refused may have come too soon for the interface, or too late for it; the next reading will tell.
                found = dataclasses.replace(found, viability=Viability.STALLED)
        elif here is not None:
            mover.stay()
            if there and not self._stays:
                for place in working:
                    if place.index != here.index:
                        mover.remove(place.local, "left")
        else:
            mover.close()
        if here is not None:
            mover.settle(here)
        return found

    def _preferred(self, working: Sequence[Location], target: Interface | None) -> Location | None:
        """The best of the places where subflows are."""
        on_target = [place for place in working if target is not None and place.index == target.index]
        current = [place for place in working if place == self.place]
        order = [*current, *on_target] if self._stays else [*on_target, *current]
        return next(iter([*order, *working]), None)

    def _fall_back(self, sock: socket.socket, mover: SubflowManager) -> None:
        """It is plain TCP now, whose silence is the kernel's affair."""
        mover.close()
        self._mover = None
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.close()
            try:
                self._watcher.kernel.set_user_timeout(sock, silence.seconds)
            except OSError as error:
                logger.warning("the silence of %s cannot be limited: %s", self.target, error)

    def _fell_silent(self) -> None:
        self._silent = True
        self._look_again()

    def _out_of_patience(self) -> None:
        self._timer = None
        self._stalled_for_long = True
        self._look_again()

    def _look_again(self) -> None:
        look = self._look()
        if look is not None:
            look()


def _dead(found: Assessment, reason: str) -> Assessment:
    """It has to end, whether there is another interface or not."""
    return dataclasses.replace(found, viability=Viability.DEAD, usable=True, reason=reason)
