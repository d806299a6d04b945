"""Adds and removes the subflows of a multipath connection: carries out the orders of :mod:`bindsock.stream.multipath.plan`.

This needs a privilege (CAP_NET_ADMIN on Linux). Without it, the connection lives as long as one of the subflows that the system
has made by itself.

The system adds subflows regardless of the interface that the socket is bound to, so it could add one in a tunnel.
:func:`~bindsock.routing.multipath.multipath_obstacle` checks this before the dial, and the plan checks it for each reading.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import socket
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.model.subflows import Subflow
from bindsock.netmon.backoff import Retry
from bindsock.netmon.turns import CallbackBudget
from bindsock.stream.multipath.departures import Departures
from bindsock.stream.multipath.plan import Situation, SubflowFacts, situation
from bindsock.stream.multipath.sweeper import Sweeper

if TYPE_CHECKING:
    from bindsock.kernel import PathManager, RemovalReason
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.watcher import Watcher
    from bindsock.stream.viability import Location

_logger = logging.getLogger("bindsock")

JOINING = 5.0
"""Seconds within which a new subflow must be established."""
_SOONEST, _LATEST = 0.001, 0.05
"""The bounds, in seconds, of the delay between two checks for it. The delay is a quarter of the time since the start."""
_AGAIN = 0.05
"""Seconds after which the subflow is requested again; the delay doubles each time. A kernel, here or at the peer, refuses a new
subflow while it still counts one that is just ending."""
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds after which a failed move is tried again. Linux makes no subflow before data has been sent in both directions
(``net/mptcp/subflow.c``, __mptcp_subflow_connect)."""


@dataclass(slots=True)
class _Move:
    """A move in progress."""

    target: Interface
    began: float
    again: float = _AGAIN
    """Seconds after the start at which the subflow is requested again."""
    address: IPAddress | None = None
    """The local address of the subflow, once it is requested."""
    queued: bool = True
    """The request waits for its turn among those of other connections."""


class SubflowManager:
    """Adds and removes the subflows of one multipath connection.

    :param update: called when a new subflow has been established, or could not be
    """

    def __init__(self, watcher: Watcher, paths: PathManager, sock: socket.socket, update: Callable[[], object]) -> None:
        self._paths = paths
        self._runtime = watcher.runtime
        self._statistics = watcher.statistics
        self._sock = weakref.ref(sock)
        self._update = weakref.WeakMethod(update)
        self._move: _Move | None = None
        self._asked = False
        """:meth:`move` runs, so its return value tells what comes of it."""
        self._timer: Timer | None = None
        self._retry = Retry(self._runtime, self._try_again, FIRST_RETRY, LAST_RETRY, jitter=0.0)
        self._unprivileged = False
        self._network: Network | None = None
        self._refused: set[int] = set()
        """Indices of the interfaces to which it cannot move for now."""
        self._unwanted: set[IPAddress] = set()
        """Local addresses of subflows that are to be removed once the peer can be told: ordered in vain, or lost."""
        self._departures = Departures(self._runtime, paths, self._socket, self._end_left)
        paths.register(sock)
        if isinstance(sock, FollowedSocket):
            sock.on_close(self._release)

    def subflows(self) -> Iterable[Subflow] | None:
        """The established subflows; ``None`` if the connection has fallen back to plain TCP."""
        sock = self._socket()
        return self._paths.subflows(sock) if sock is not None else ()

    def facts(
        self,
        subflows: Iterable[Subflow],
        network: Network,
        chosen: Interface | None,
        pin: str | None,
        before: frozenset[Subflow] | None = None,
    ) -> SubflowFacts:
        """The facts for the plan. After a change of the network, each interface may be tried again.

        :param chosen: the interface of the decision, if it has one
        :param pin: the name of the interface to which the connection is pinned
        :param before: as :attr:`SubflowFacts.before`
        """
        if network is not self._network:
            self._network = network
            self._refused.clear()
            self._retry.reset()
            self._paths.retain(network.interfaces.keys())
        seen: Situation = situation(network, subflows, chosen, pin, self._interface_of)
        return SubflowFacts(seen, self._unprivileged, frozenset(self._refused), before=before)

    def refusal(self, facts: SubflowFacts, interface: Interface) -> SubflowFacts:
        """The facts after a move to an interface was refused."""
        return dataclasses.replace(facts, unprivileged=self._unprivileged, refused=facts.refused | {interface.index})

    def move(self, interface: Interface) -> bool:
        """Start to move to an interface, unless that is in progress.

        :return: whether the move is in progress
        """
        move = self._move
        if move is not None and move.target.index == interface.index:
            if self._timer is None and move.address is not None and not move.queued:
                move.began, move.again = self._runtime.time(), _AGAIN
                self._wait(move)
            return True
        if self._unprivileged or interface.index in self._refused or self._runtime.closed:
            return False
        self.cancel()
        self._stop_timers()
        self._move = _Move(interface, self._runtime.time())
        self._asked = True
        try:
            self._runtime.shared(CallbackBudget).do(self._order_in_turn)
        finally:
            self._asked = False
        return self._move is not None

    def retry(self) -> None:
        """Schedule another attempt of the refused moves and removals."""
        if not self._retry.scheduled:
            self._retry.schedule()

    def cancel(self) -> None:
        """Cancel the move in progress."""
        move = self._move
        if move is None:
            return
        self._stop_timers()
        self._move = None
        if move.address is not None:
            self._unwanted.add(move.address)

    def suspend(self) -> None:
        """Stop all timers until the next move."""
        self._departures.suspend()
        self._stop_timers()

    def _stop_timers(self) -> None:
        if self._move is not None and self._move.queued:
            self._move = None
        self._retry.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def arrived(self, place: Location) -> None:
        """Record that the connection uses a new subflow."""
        self._departures.take_back(place.local)
        sock = self._socket()
        if sock is not None:
            try:
                self._paths.arrived(sock, place.local)
            except OSError as error:
                _logger.debug("a multipath connection ended when its new subflow was established: %s", error)
        self._statistics.rebinds += 1
        _logger.info("moved a multipath connection to %s", place.interface)

    def settle(self, place: Location) -> None:
        """Remove the subflows that were requested in vain, now that a working subflow can tell the peer.

        The peer allows a limited number of subflows, and counts a silent one for minutes.
        """
        ordered = self._move.address if self._move is not None else None
        unwanted, self._unwanted = self._unwanted, set()
        for address in unwanted:
            if address in (place.local, ordered):
                continue
            if self._works(address):
                self.leave(address)
            else:
                self.remove(address, "lost")
        if self._unwanted:
            self.retry()

    def _works(self, address: IPAddress) -> bool:
        owner = self._network.owner_of(address) if self._network is not None else None
        return owner is not None and owner.up and owner.running

    def leave(self, address: IPAddress) -> None:
        """Remove the subflows with a local address, which work but are not needed any more, once nothing is under way by them."""
        if not self._unprivileged:
            self._departures.begin(address)

    def _end_left(self, address: IPAddress) -> None:
        self.remove(address, "left")

    def remove(self, address: IPAddress, why: RemovalReason) -> bool:
        """Remove the subflows with a local address now; see :meth:`bindsock.kernel.PathManager.remove`.

        :return: false if they stay, as far as that is known yet
        """
        self._departures.forget(address)
        sock = self._socket()
        if sock is None or self._unprivileged:
            return False
        try:
            ended = self._paths.remove(sock, address, why, functools.partial(self._removed, address, why))
        except OSError as error:
            return self._removed(address, why, error)
        return ended is None or self._removed(address, why, ended)

    def _removed(self, address: IPAddress, why: RemovalReason, ended: bool | OSError) -> bool:
        if isinstance(ended, OSError):
            self._unprivileged |= isinstance(ended, PermissionError)
            _logger.info("cannot remove the subflow with address %s of a multipath connection: %s", address, ended)
            return False
        if ended and why != "lost":
            self._runtime.shared(Sweeper).sweep(self._paths)
        elif not ended and why == "lost":
            self._unwanted.add(address)
        elif not ended:
            self._departures.leave_alone(address)
        return ended

    def _interface_of(self, subflow: Subflow) -> int | None:
        sock = self._socket()
        return self._paths.bound(sock, subflow) if sock is not None else None

    def _socket(self) -> socket.socket | None:
        sock = self._sock()
        return sock if sock is not None and sock.fileno() != -1 else None

    def _order_in_turn(self) -> None:
        move = self._move
        if move is not None and move.queued:
            move.queued = False
            self._order(move)

    def _order(self, move: _Move) -> None:
        sock = self._socket()
        if sock is None:
            self._move = None
            return
        try:
            address = self._paths.add(sock, move.target, functools.partial(self._refused_to_add, move))
        except OSError as error:
            self._refused_to_add(move, error)
            return
        if self._move is move:
            move.address = address
            self._departures.consider(address)
            self._wait(move)

    def _refused_to_add(self, move: _Move, error: OSError) -> None:
        self._unprivileged |= isinstance(error, PermissionError)
        _logger.info("cannot add a subflow on %s to a multipath connection: %s", move.target, error)
        if self._move is move:
            self._failed(move)

    def _wait(self, move: _Move) -> None:
        elapsed = self._runtime.time() - move.began
        self._timer = self._runtime.call_later(min(max(elapsed / 4, _SOONEST), _LATEST), self._check)

    def _check(self) -> None:
        """Check soon: many connections that were told to move at once also check at once."""
        self._runtime.shared(CallbackBudget).do(functools.partial(self._check_in_turn, self._timer))

    def _check_in_turn(self, timer: Timer | None) -> None:
        if timer is not self._timer:
            return  # it was cancelled meanwhile
        self._timer = None
        move = self._move
        if move is None or self._socket() is None:
            return
        elapsed = self._runtime.time() - move.began
        if any(
            subflow.local == move.address and self._interface_of(subflow) in (0, move.target.index)
            for subflow in self.subflows() or ()
        ):
            self._move = None
            self._notify()
        elif elapsed < JOINING:
            if elapsed >= move.again:
                move.again *= 2
                self._order(move)
            else:
                self._wait(move)
        else:
            _logger.info("a subflow on %s of a multipath connection was not established within %g s", move.target, JOINING)
            self._failed(move)

    def _failed(self, move: _Move) -> None:
        self._refused.add(move.target.index)
        self.cancel()
        self._notify()

    def _try_again(self) -> None:
        self._refused.clear()
        self._notify()

    def _notify(self) -> None:
        update = self._update()
        if update is not None and not self._asked:
            update()

    def _release(self) -> None:
        self.suspend()
        sock = self._sock()
        if sock is None or self._paths.release(sock):
            self._runtime.shared(Sweeper).sweep(self._paths)
