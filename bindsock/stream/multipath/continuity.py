"""Makes the peer of a multipath connection go on after there was no working subflow for a while.

What the peer's program writes meanwhile stays in the peer's kernel. Linux starts no timer for it (``net/mptcp/protocol.c``,
__mptcp_push_pending), and sends it only when a packet acknowledges data of the connection (``net/mptcp/options.c``,
ack_update_msk). None of the packets by which a new subflow joins does. So the peer would wait until this side has data to send.
"""

from __future__ import annotations

import functools
import logging
import socket
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bindsock.netmon.turns import CallbackBudget

if TYPE_CHECKING:
    from bindsock.kernel import PathManager
    from bindsock.model.network import IPAddress
    from bindsock.model.subflows import Subflow
    from bindsock.netmon.loop import Timer
    from bindsock.netmon.runtime import Runtime

_logger = logging.getLogger("bindsock")

CONFIRMED_WITHIN = 5.0
"""Seconds within which the peer must confirm a new subflow; until then no acknowledgement can be sent by it."""
DELAY = 0.05
"""Seconds after which peers are prompted, all at once: with the in-kernel path manager a prompt is for all connections."""

REPEATED_AFTER = 1.0
"""Seconds after which a prompt is repeated, once, since it may have been lost."""


class Continuity:
    """Notices that none of the subflows of one connection works any more, and prompts the peer by a new one.

    :param subflows: the established subflows
    """

    def __init__(self, runtime: Runtime, paths: PathManager, sock: socket.socket, subflows: Iterable[Subflow]) -> None:
        self.carriers: frozenset[Subflow] = frozenset(subflows)
        """The subflows that could work when the peer had last one of them, or was prompted."""
        self._runtime = runtime
        self._paths = paths
        self._sock = weakref.ref(sock)
        self._prompt: tuple[IPAddress, frozenset[Subflow], float] | None = None
        """The local address of the subflow by which to prompt, the subflows that can work, and until when to try."""
        self._repetition: Timer | None = None

    def note(self, carriers: frozenset[Subflow]) -> None:
        """Note which subflows can work now."""
        if not carriers.isdisjoint(self.carriers):
            self.carriers = carriers

    def prompt(self, address: IPAddress, carriers: frozenset[Subflow]) -> None:
        """Prompt the peer by the subflow with a local address, unless that is already to be done."""
        due = self._prompt
        until = due[2] if due is not None else self._runtime.time() + CONFIRMED_WITHIN
        self._prompt = address, carriers, until
        if due is None:
            self._runtime.shared(Prompts).add(self._attempt)

    def close(self) -> None:
        """Prompt no more."""
        self._prompt = None
        if self._repetition is not None:
            self._repetition.cancel()
            self._repetition = None

    def _attempt(self) -> bool:
        """Prompt the peer. Returns whether there is nothing more to do."""
        sock, due = self._sock(), self._prompt
        if due is None or sock is None or sock.fileno() == -1:
            return True
        address, carriers, until = due
        if self._order(sock, address):
            self.carriers = carriers
            if self._repetition is not None:
                self._repetition.cancel()
            self._repetition = self._runtime.call_later(REPEATED_AFTER, functools.partial(self._repeat, address))
        elif self._runtime.time() < until:
            return False
        self._prompt = None
        return True

    def _repeat(self, address: IPAddress) -> None:
        self._repetition = None
        sock = self._sock()
        if sock is not None and sock.fileno() != -1:
            self._order(sock, address)

    def _order(self, sock: socket.socket, address: IPAddress) -> bool:
        """Prompt by the subflow with a local address. Returns false if the peer has not confirmed that yet."""
        try:
            return self._paths.prompt(sock, address, self._failed)
        except OSError as error:
            self._failed(error)
            return True

    @staticmethod
    def _failed(error: OSError) -> None:
        _logger.debug("cannot make the peer of a multipath connection go on: %s", error)


class Prompts:
    """Makes the attempts of one event loop, some at a time, and again those that could not be made yet."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._attempts: list[Callable[[], bool]] = []
        self._timer: Timer | None = None

    def add(self, attempt: Callable[[], bool]) -> None:
        """Make an attempt soon, and again until it returns true."""
        self._attempts.append(attempt)
        if self._timer is None:
            self._timer = self._runtime.call_later(DELAY, self._make_all)

    def _make_all(self) -> None:
        self._timer = None
        attempts, self._attempts = self._attempts, []
        budget = self._runtime.shared(CallbackBudget)
        for attempt in attempts:
            budget.do(functools.partial(self._make, attempt))

    def _make(self, attempt: Callable[[], bool]) -> None:
        if not attempt():
            self.add(attempt)
