"""Multipath connections: the byte stream moves from one interface to another, and nothing is connected anew.

A subflow is ordered on the new interface; once it has joined, those on interfaces that are lost or were left are ended. Ordering
takes a privilege (CAP_NET_ADMIN on Linux); without it the connection lives as long as one of the subflows does that the system
has made by itself.

The system adds subflows to a multipath socket whatever interface the socket is bound to, so it could add one in a tunnel.
:func:`~bindsock.routing.multipath.multipath_obstacle` checks that before the dial, :func:`situation` at each reading.
"""

from __future__ import annotations

import logging
import socket
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.model.subflows import Subflow
from bindsock.netmon.turns import callback_budget
from bindsock.routing.multipath import may_carry_subflow
from bindsock.stream.viability import Location

if TYPE_CHECKING:
    import asyncio

    from bindsock.kernel import PathManager, RemovalReason
    from bindsock.netmon.watcher import Watcher

logger = logging.getLogger("bindsock")

JOINING = 5.0
"""Seconds within which a new subflow must be established."""
_SOONEST, _LATEST = 0.001, 0.05
"""Seconds between two looks at whether it is: a quarter of the time that it has taken so far, within these bounds."""
_AGAIN = 0.1
"""Seconds after which it is ordered again, and then after three times as many each time. A kernel, ours or the peer's, that still
counts a subflow that is just ending makes no other."""
_FIRST_SWEEP, _LAST_SWEEP = 0.05, 10.0
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
"""Seconds after which a move that failed is tried again. Linux makes no subflow before data has gone both ways
(``net/mptcp/subflow.c``, __mptcp_subflow_connect)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the subflows of a connection are."""

    working: tuple[Location, ...]
    """Those that can work."""
    lost: tuple[IPAddress, ...]
    """The local addresses of those that cannot: the interface is down or without carrier, or has the address no more."""
    forbidden: tuple[tuple[IPAddress, str], ...]
    """Local address and interface of those where none may be."""


def situation(network: Network, subflows: Iterable[Subflow], chosen: Interface | None, pin: str | None) -> Situation:
    """Compare the subflows of a connection with a reading of the network.

    :param chosen: the interface on which it is to be, if there is one
    :param pin: the name of the interface to which it is pinned
    """
    working, lost, forbidden = [], [], []
    for subflow in subflows:
        owner = network.owner_of(subflow.local)
        if owner is None or not (owner.up and owner.running):
            lost.append(subflow.local)
        elif not may_carry_subflow(owner, chosen, pin):
            forbidden.append((subflow.local, owner.name))
        else:
            working.append(Location(owner.name, owner.index, subflow.local, owner.index))
    return Situation(tuple(working), tuple(lost), tuple(forbidden))


class SubflowManager:
    """Orders the subflows of one multipath connection.

    :param look: called when a new subflow has been established, or will not be
    """

    def __init__(
        self,
        watcher: Watcher,
        paths: PathManager,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        look: Callable[[], object],
    ) -> None:
        self._paths = paths
        self._clock = watcher.runtime.time
        self._statistics = watcher.statistics
        self._sock = weakref.ref(sock)
        self._loop = weakref.ref(loop)
        self._look = weakref.WeakMethod(look)
        self._target: Interface | None = None
        self._ordered: IPAddress | None = None
        """The local address of the subflow that has been ordered and is not established yet."""
        self._began = 0.0
        self._again = _AGAIN
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        """It is being asked to move: what comes of it at once is the answer."""
        self._queued = False
        """An order waits for its turn among those of other connections."""
        self._powerless = False
        self._refused: set[int] = set()
        """Indexes of interfaces to which it cannot move for now."""
        self._retry = _FIRST_RETRY
        self._network: Network | None = None
        self._unwanted: set[IPAddress] = set()
        """Local addresses of subflows that were ordered and are not wanted any more."""
        self._left_alone: set[IPAddress] = set()
        """Local addresses of subflows that are the system's."""
        paths.register(sock)
        if isinstance(sock, FollowedSocket):
            sock.on_close(self._release)

    @property
    def powerless(self) -> bool:
        """Whether the privilege to order anything is missing."""
        return self._powerless

    def subflows(self) -> Iterable[Subflow] | None:
        """Those that are established; ``None`` if the connection has fallen back to plain TCP."""
        sock = self._sock()
        return self._paths.subflows(sock) if sock is not None and sock.fileno() != -1 else ()

    def move(self, network: Network, interface: Interface) -> bool:
        """Begin to move to an interface, unless that is under way.

        :return: whether it is under way
        """
        if self._target is not None and self._target.index == interface.index:
            if self._timer is None and self._ordered is not None and not self._queued:
                self._began = self._clock()
                self._wait()
            return True
        if network is not self._network:
            self._network = network
            self._refused.clear()
            self._retry = _FIRST_RETRY
        loop = self._loop()
        if self._powerless or interface.index in self._refused or loop is None or loop.is_closed():
            return False
        self.stay()
        self.close()
        self._target = interface
        self._began = self._clock()
        self._again = _AGAIN
        self._asked = self._queued = True
        try:
            callback_budget(loop).do(self._order_in_turn)
        finally:
            self._asked = False
        return self._target is not None

    def arrived(self, place: Location) -> None:
        """The connection is where a subflow has joined lately."""
        sock = self._sock()
        if sock is not None:
            try:
                self._paths.arrived(sock, place.local)
            except OSError as error:
                logger.debug("a multipath connection ended as it arrived: %s", error)
        self._statistics.rebinds += 1
        logger.info("a multipath connection is on %s now", place.interface)

    def stay(self) -> None:
        """Do not go on with a move that is under way."""
        if self._target is None:
            return
        self.close()
        self._target = None
        if self._ordered is not None:
            self._unwanted.add(self._ordered)
            self._ordered = None

    def settle(self, place: Location) -> None:
        """End what was ordered and is not wanted any more, now that there is a subflow by which the peer can be told.

        It allows so many subflows only, and would count for minutes one of which it has heard nothing more.
        """
        while self._unwanted:
            address = self._unwanted.pop()
            if address not in (place.local, self._ordered):
                self.remove(address, "lost")

    def remove(self, address: IPAddress, why: RemovalReason) -> bool:
        """End the subflows with a local address; see :meth:`bindsock.kernel.PathManager.remove`.

        :return: whether that could be ordered
        """
        sock = self._sock()
        if sock is None or sock.fileno() == -1 or self._powerless or (address in self._left_alone and why == "left"):
            return False
        try:
            ended = self._paths.remove(sock, address, why)
        except OSError as error:
            self._powerless |= isinstance(error, PermissionError)
            logger.info("the subflow of %s of a multipath connection could not be ended: %s", address, error)
            return False
        if not ended:
            self._left_alone.add(address)
        return ended

    def close(self) -> None:
        """Call nothing any more, and order nothing, until it is asked to move again."""
        self._queued = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _order_in_turn(self) -> None:
        if self._queued:
            self._queued = False
            self._order()

    def _order(self) -> None:
        sock, interface = self._sock(), self._target
        if sock is None or interface is None or sock.fileno() == -1:
            self._target = None
            return
        try:
            self._ordered = self._paths.add(sock, interface)
        except OSError as error:
            self._powerless |= isinstance(error, PermissionError)
            logger.info("the system makes no subflow by %s for a multipath connection: %s", interface, error)
            self._over(interface, joined=False)
        else:
            self._left_alone.discard(self._ordered)
            self._wait()

    def _wait(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            elapsed = self._clock() - self._began
            self._timer = loop.call_later(min(max(elapsed / 4, _SOONEST), _LATEST), self._check)

    def _check(self) -> None:
        self._timer = None
        sock, interface = self._sock(), self._target
        if sock is None or interface is None or sock.fileno() == -1:
            return
        elapsed = self._clock() - self._began
        if any(subflow.local == self._ordered for subflow in self.subflows() or ()):
            self._ordered = None
            self._over(interface, joined=True)
        elif elapsed < JOINING:
            if elapsed >= self._again:
                self._again *= 3
                self._order()
            else:
                self._wait()
        else:
            logger.info("a multipath connection got no subflow by %s within %g s", interface, JOINING)
            self._over(interface, joined=False)

    def _over(self, interface: Interface, *, joined: bool) -> None:
        if joined:
            self._target = None
        else:
            self._refused.add(interface.index)
            self.stay()
            loop = self._loop()
            if loop is not None and not loop.is_closed() and not self._powerless:
                self._timer = loop.call_later(self._retry, self._try_again)
                self._retry = min(2 * self._retry, _LAST_RETRY)
        if not self._asked:
            self._look_again()

    def _try_again(self) -> None:
        self._timer = None
        self._refused.clear()
        self._look_again()

    def _look_again(self) -> None:
        look = self._look()
        if look is not None:
            look()

    def _release(self) -> None:
        self.close()
        sock, loop = self._sock(), self._loop()
        if sock is not None and self._paths.release(sock) and loop is not None and not loop.is_closed():
            sweeping = _sweeping.setdefault(loop, weakref.WeakSet())
            if self._paths not in sweeping:
                sweeping.add(self._paths)
                _sweep_later(self._paths, loop, _FIRST_SWEEP)


_sweeping: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakSet[PathManager]] = weakref.WeakKeyDictionary()
"""Whose sweeps are under way: one for all connections that have ended, however many."""


def _sweep_later(paths: PathManager, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """The kernel may take a while to send what a closed connection still has."""

    def sweep() -> None:
        if paths.sweep():
            _sweep_later(paths, loop, min(2 * seconds, _LAST_SWEEP))
        else:
            _sweeping[loop].discard(paths)

    loop.call_later(seconds, sweep)
