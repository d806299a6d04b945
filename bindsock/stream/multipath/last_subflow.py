"""Notices that a multipath connection has lost its last subflow, so that it gets another one.

If the peer ends the last subflow by a reset, the connection stays open for ``net.mptcp.close_timeout``, a minute, and the kernel
tells the program nothing meanwhile. Only a list of the subflows shows it.
"""

from __future__ import annotations

import functools
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

PERIOD = 1.0
"""Seconds between two checks of a connection. A check takes 5 µs."""


class LastSubflow:
    """Notices that one connection has no subflow any more.

    :param update: called once for each loss, and when the connection has fallen back to plain TCP
    """

    def __init__(self, runtime: Runtime, paths: PathManager, sock: socket.socket, update: Callable[[], object]) -> None:
        self._paths = paths
        self._sock = weakref.ref(sock)
        self._update = weakref.WeakMethod(update)
        self._carried = True
        """Whether there was a subflow when the subflows were last listed."""
        self._checks = runtime.shared(SubflowChecks)
        self._checks.add(self)

    def note(self, *, carried: bool) -> None:
        """Note whether there is a subflow, because the subflows have just been listed for a plan."""
        self._carried = carried

    def close(self) -> None:
        """Check no more."""
        self._checks.discard(self)

    def check(self) -> None:
        """List the subflows."""
        sock, update = self._sock(), self._update()
        if sock is None or sock.fileno() == -1 or update is None:
            self.close()
            return
        before, self._carried = self._carried, bool(self._paths.subflows(sock))
        if before and not self._carried:
            update()


class SubflowChecks:
    """Checks the connections of one event loop that are not closed, all by one timer, some at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._checked: weakref.WeakSet[LastSubflow] = weakref.WeakSet()
        self._timer: Timer | None = None

    def add(self, connection: LastSubflow) -> None:
        """Check a connection from now on. It is held weakly."""
        self._checked.add(connection)
        if len(self._checked) == 1:
            self._wait()

    def discard(self, connection: LastSubflow) -> None:
        """Check a connection no more."""
        self._checked.discard(connection)
        if not self._checked and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        if self._timer is None and self._checked:
            self._timer = self._runtime.call_later(PERIOD, self._check_all)

    def _check_all(self) -> None:
        self._timer = None
        budget = self._runtime.shared(CallbackBudget)
        for connection in list(self._checked):
            budget.do(functools.partial(self._check, weakref.ref(connection)))
        budget.do(self._wait)  # after the last check, however long they take

    def _check(self, reference: weakref.ref[LastSubflow]) -> None:
        connection = reference()
        if connection is not None and connection in self._checked:
            connection.check()
