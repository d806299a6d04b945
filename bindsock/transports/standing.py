"""Where one connection stands: its place in the network, judged anew at each reading."""

from __future__ import annotations

import dataclasses
import logging
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.errors import BindFailed
from bindsock.network import Interface, Path, Target, unmapped
from bindsock.resolving import address_of
from bindsock.transports import viability
from bindsock.transports.viability import Assessment, Viability, assess, pinned, place_of

if TYPE_CHECKING:
    import asyncio

    from bindsock.effective import Decider
    from bindsock.watcher import Watcher

logger = logging.getLogger("bindsock")


class Standing:
    """Judges one connected socket, with patience for a carrier or a route that is lost for a moment.

    Where the socket's address has moved to another interface, the socket is moved after it: that is the one way in which TCP
    itself survives.

    :param target: the peer's address
    :param pin: the name of the interface to which the connection is pinned
    :param path: the path on which it was dialled
    :param look: called when the patience is over; it is to ask :meth:`judge` again
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
    ) -> None:
        self.target = target
        self._watcher = watcher
        self._pin = pin
        self._loop = weakref.ref(loop)
        self._look = weakref.WeakMethod(look)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_for_long = False
        local = unmapped(address_of(sock.getsockname()))
        self.place = place_of(watcher.decider().network, path.interface, path.index, local)

    def judge(self, sock: socket.socket, decider: Decider) -> Assessment:
        """What a reading says of the connection. What is stalled for too long counts as dead.

        :param decider: the newest one, without the pin
        """
        found = self._assess(decider)
        if found.moved is not None and self._move(sock, found.moved):
            found = self._assess(decider)
        if found.viability is not Viability.STALLED:
            self.close()
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _assess(self, decider: Decider) -> Assessment:
        decider = pinned(decider, self._pin)
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

    def _out_of_patience(self) -> None:
        self._timer = None
        self._stalled_for_long = True
        look = self._look()
        if look is not None:
            look()
