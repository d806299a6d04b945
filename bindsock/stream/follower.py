"""Follows one connected stream socket: carries out the orders of :mod:`bindsock.stream.plan`."""

from __future__ import annotations

import dataclasses
import logging
import socket
import weakref
from typing import TYPE_CHECKING, Protocol

from bindsock.dial.resolving import address_of
from bindsock.errors import BindFailed
from bindsock.model.network import Interface, unmapped
from bindsock.netmon.backoff import Retry
from bindsock.stream.multipath.continuity import Continuity
from bindsock.stream.multipath.last_subflow import LastSubflow
from bindsock.stream.multipath.manager import SubflowManager
from bindsock.stream.multipath.plan import Move, SubflowOrders
from bindsock.stream.multipath.user_timeout import UserTimeout
from bindsock.stream.plan import Facts, Orders, Requirement, Step, plan
from bindsock.stream.viability import Location, Viability, location_of
from bindsock.stream.waiting import StallGrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

FIRST_CHECK, LAST_CHECK = 1.0, 60.0
"""Seconds after which a connection that the peer has ended, and whose path is lost, is checked again. The delay doubles."""
PROBED_FOR = 5.0
"""Seconds for which the peer of a connection that was moved along with its address is asked whether it still has it."""


class FollowerOwner(Protocol):
    """The owner of a connection. Its follower holds it weakly."""

    def refresh(self) -> None:
        """Call :meth:`PathFollower.update`, because something has changed other than the network."""


class PathFollower:
    """Plans for each reading what to do with one connection, and does what concerns the connection itself.

    It moves a socket along with its local address, and orders the subflows of a multipath connection. Its owner ends or replaces
    the connection.

    :param path: the path on which the connection was dialled
    :param owner: its ``refresh()`` is called when something has changed other than the network
    :param local: the local address of the socket, if it is known
    :raises OSError: the socket is closed
    """

    __slots__ = (
        "__weakref__",
        "_continuity",
        "_finished",
        "_grace",
        "_last_subflow",
        "_manager",
        "_owner",
        "_probing",
        "_requirement",
        "_user_timeout",
        "_watcher",
        "place",
    )

    def __init__(
        self,
        watcher: Watcher,
        sock: socket.socket,
        requirement: Requirement,
        path: Path,
        owner: FollowerOwner,
        local: IPAddress | None = None,
    ) -> None:
        self._watcher = watcher
        self._requirement = requirement
        self._owner = weakref.ref(owner)
        self._grace: StallGrace | None = None
        self._finished: Retry | None = None
        """Plans again for a connection that is kept because the peer has ended it."""
        self._probing: tuple[Timer, Callable[[], None]] | None = None
        """What ends the probes of the peer, and when."""
        self._manager: SubflowManager | None = None
        self._continuity: Continuity | None = None
        self._last_subflow: LastSubflow | None = None
        self._user_timeout: UserTimeout | None = None
        paths = watcher.kernel.multipath
        established = paths.subflows(sock) if paths is not None else None
        if paths is not None and established is not None:
            self._manager = SubflowManager(watcher, paths, sock, self._refresh_owner)
            self._continuity = Continuity(watcher.runtime, paths, sock, established)
            self._last_subflow = LastSubflow(watcher.runtime, paths, sock, self._refresh_owner)
            if requirement.dead_after is not None:
                self._user_timeout = UserTimeout(watcher, paths, sock, requirement.dead_after, self._refresh_owner)
        if local is None:
            local = unmapped(address_of(sock.getsockname()))
        self.place: Location = location_of(watcher.latest.network, path.interface, path.index, local)

    def update(self, sock: socket.socket, decider: Decider) -> Orders:
        """Plan, and carry out the orders that concern the connection itself.

        :param decider: the newest decider, without the pin of the connection
        :return: the orders; the owner carries out the rest
        """
        facts: Facts | None = self._facts(sock, decider.with_pin(self._requirement.pin))
        while facts is not None:
            orders = plan(facts)
            facts = self._carry_out(sock, facts, orders)
        if not orders.finished:
            self._end_finished()
        elif self._finished is None or not self._finished.scheduled:
            self._check_again()
        if orders.found.viability is not Viability.STALLED:
            self._stop_waiting()
        elif self._grace is None:
            self._grace = StallGrace(self._watcher.runtime, self._refresh_owner)
        return orders

    def close(self) -> None:
        """Stop all timers. Nothing is called any more."""
        self._stop_waiting()
        self._end_finished()
        self._end_probing()
        if self._manager is not None:
            self._manager.suspend()
        if self._continuity is not None:
            self._continuity.close()
        self._stop_checking()
        if self._user_timeout is not None:
            self._user_timeout.close()

    def _facts(self, sock: socket.socket, decider: Decider) -> Facts:
        decision = decider.decide(self._requirement.target)
        subflows = None
        if self._manager is not None:
            established = self._manager.subflows()
            if established is None:
                self._fall_back(sock, self._manager)
            else:
                if self._last_subflow is not None:
                    self._last_subflow.note(carried=bool(established))
                before = self._continuity.carriers if self._continuity is not None else None
                subflows = self._manager.facts(established, decider.network, decision.interface, decider.pin, before)
                if self._user_timeout is not None and self._user_timeout.expired:
                    subflows = dataclasses.replace(subflows, silent_for=self._user_timeout.seconds)
        return Facts(
            self._requirement,
            self.place,
            decider.network,
            decision,
            decider.preferences,
            self._routed,
            waited=self._grace is not None and self._grace.over,
            finished=lambda: self._watcher.kernel.has_finished(sock),
            subflows=subflows,
        )

    def _carry_out(self, sock: socket.socket, facts: Facts, orders: Orders) -> Facts | None:
        """Carry out the orders.

        :return: new facts if the plan must be made again, otherwise ``None``
        """
        if orders.step is Step.MOVE_ALONG:
            if not self._move_along(sock, orders.place, orders.found.moved):
                return facts._replace(immovable=True)
            return facts._replace(place=self.place)
        if self._manager is not None and orders.subflows is not None:
            return self._order_subflows(self._manager, facts, orders.subflows)
        return None

    def _move_along(self, sock: socket.socket, place: Location, interface: Interface | None) -> bool:
        """Move the socket to the interface that has its local address now, such as a bridge that the old interface has joined."""
        kernel, target = self._watcher.kernel, self._requirement.target
        assert interface is not None
        try:
            # A socket that is not bound follows its address by itself.
            if kernel.bound(sock) is not None:
                kernel.rebind(sock, interface)
                self._probe(sock)
        except BindFailed as error:
            _logger.info("cannot move the connection to %s to %s along with its address: %s", target, interface, error)
            return False
        _logger.info("moved the connection to %s to %s along with its address %s", target, interface, place.local)
        self.place = place
        self._watcher.statistics.rebinds += 1
        return True

    def _probe(self, sock: socket.socket) -> None:
        """Find out whether the peer still has the connection.

        A packet that arrives when another interface has the address already, but the socket is not bound to it yet, matches no
        socket, and the system answers it with a reset. This end would never hear of that.
        """
        self._end_probing()
        try:
            end = self._watcher.kernel.probe(sock)
        except OSError as error:
            _logger.info(
                "cannot ask the peer of the connection to %s whether it still has it: %s", self._requirement.target, error
            )
            return
        self._probing = self._watcher.runtime.call_later(PROBED_FOR, end), end

    def _end_probing(self) -> None:
        probing, self._probing = self._probing, None
        if probing is not None:
            timer, end = probing
            timer.cancel()
            end()

    def _order_subflows(self, manager: SubflowManager, facts: Facts, orders: SubflowOrders) -> Facts | None:
        subflows = facts.subflows
        assert subflows is not None
        if subflows.unprivileged:
            self._stop_checking()  # nothing could be done about a loss
        if orders.place != self.place:
            self.place = orders.place
            manager.arrived(orders.place)
        for address, why in orders.remove:
            if not manager.remove(address, why) and why == "forbidden":
                return facts._replace(subflows=dataclasses.replace(subflows, irremovable=subflows.irremovable | {address}))
        target = orders.found.target
        if orders.move is Move.BEGIN:
            assert target is not None
            if not manager.move(target):
                done = dataclasses.replace(subflows.situation, lost=(), forbidden=())
                again = manager.refusal(dataclasses.replace(subflows, situation=done), target)
                return facts._replace(place=self.place, subflows=again)
        elif orders.move is Move.RETRY:
            manager.retry()
        elif orders.move is Move.CANCEL:
            manager.cancel()
        elif orders.move is Move.SUSPEND:
            manager.suspend()
        for address in orders.leave:
            manager.leave(address)
        if orders.settle:
            manager.settle(orders.place)
        if self._continuity is not None:
            self._continuity.note(subflows.situation.carriers)
            if orders.prompt:
                self._continuity.prompt(orders.place.local, subflows.situation.carriers)
        return None

    def _routed(self, interface: Interface) -> bool:
        return self._watcher.kernel.has_route(interface, self._requirement.target)

    def _fall_back(self, sock: socket.socket, manager: SubflowManager) -> None:
        """Let the kernel measure the user timeout, because the connection has fallen back to plain TCP."""
        manager.suspend()
        self._manager = None
        if self._continuity is not None:
            self._continuity.close()
            self._continuity = None
        self._stop_checking()
        user_timeout, self._user_timeout = self._user_timeout, None
        if user_timeout is not None:
            user_timeout.close()
            try:
                self._watcher.kernel.set_user_timeout(sock, user_timeout.seconds)
            except OSError as error:
                _logger.warning("cannot set the user timeout of the connection to %s: %s", self._requirement.target, error)

    def _stop_checking(self) -> None:
        if self._last_subflow is not None:
            self._last_subflow.close()
            self._last_subflow = None

    def _stop_waiting(self) -> None:
        if self._grace is not None:
            self._grace.stop()
            self._grace = None

    def _check_again(self) -> None:
        """Check later whether the program writes again, by a path that may be lost."""
        if self._finished is None:
            self._finished = Retry(self._watcher.runtime, self._refresh_owner, FIRST_CHECK, LAST_CHECK, jitter=0.0)
        self._finished.schedule()

    def _end_finished(self) -> None:
        if self._finished is not None:
            self._finished.cancel()
            self._finished = None

    def _refresh_owner(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner.refresh()
