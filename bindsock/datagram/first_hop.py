"""Waits until the first hop of a path answers.

A better path may not forward anything yet: a switch port blocks for some seconds after carrier (spanning tree, 802.1X), a Wi-Fi
still authenticates, or the link-layer address of the router is not known yet. Datagrams that are sent by it meanwhile wait in the
kernel, about a hundred at most and for up to three seconds. The kernel drops all others without counting them
(``linux net/core/neighbour.c``, __neigh_event_send and neigh_invalidate).
"""

from __future__ import annotations

import weakref
from ipaddress import ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel import Kernel
    from bindsock.model.decision import Path
    from bindsock.model.network import Interface, IPAddress
    from bindsock.netmon.runtime import Runtime

PATIENCE = 30.0
"""Seconds to wait for a silent first hop; a spanning tree takes that long."""
_FIRST_CHECK = 0.001
_LAST_CHECK = 0.05
"""Seconds between two checks, doubling."""
_FRESH = 0.005
"""Seconds for which a positive result is reused, because thousands of endpoints move at the same time."""
_PROBE_INTERVAL = 1.0
"""Seconds between two probes."""
_MOST_KNOWN = 256
"""How many first hops are remembered before the old ones are forgotten: every peer on the same link is one."""


def first_hop(path: Path, interface: Interface, destination: IPAddress | None) -> IPAddress | None:
    """The neighbour to which datagrams on the path go: the gateway, or a destination in one of the interface's own networks.

    :param destination: ``None`` if there is no single one
    :return: ``None`` if there is none, or if it is unknown
    """
    if path.gateway is not None or destination is None or destination.is_multicast:
        return path.gateway
    for own in interface.addresses:
        network = ip_network((own.address, own.prefix_length), strict=False)
        if destination in network and (destination.version == 6 or destination != network.broadcast_address):
            return destination
    return None


class FirstHops:
    """The silent first hops that sockets on one event loop wait for."""

    __slots__ = ("_answered", "_runtime", "_silent")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._silent: dict[tuple[int, IPAddress], _SilentHop] = {}
        self._answered: dict[tuple[int, IPAddress], float] = {}
        """When each of them last answered, in monotonic seconds."""

    def is_silent(self, kernel: Kernel, interface: Interface, gateway: IPAddress | None) -> bool:
        """Whether a first hop does not answer yet, but may do so soon. If so, it is probed.

        :param gateway: ``None`` if there is none; the result is false then
        """
        if gateway is None:
            return False
        key = (interface.index, gateway)
        now = self._runtime.time()
        if now < self._answered.get(key, 0.0) + _FRESH:
            return False
        if kernel.first_hop_answers(interface, gateway) is not False:
            self._silent.pop(key, None)
            self._note_answer(key, now)
            return False
        self._answered.pop(key, None)
        hop = self._silent.get(key)
        if hop is None or now >= hop.until + PATIENCE:
            hop = self._silent[key] = _SilentHop(self._runtime, kernel, interface, gateway)
            if kernel.first_hop_answers(interface, gateway) is not False:
                # It has answered before the question returned: a machine on the same host, such as a bridge's or a container's.
                del self._silent[key]
                self._note_answer(key, now)
                return False
        return now < hop.until

    def _note_answer(self, key: tuple[int, IPAddress], now: float) -> None:
        if len(self._answered) >= _MOST_KNOWN:
            self._answered = {known: time for known, time in self._answered.items() if now < time + _FRESH}
            self._silent = {known: hop for known, hop in self._silent.items() if now < hop.until + PATIENCE}
        self._answered[key] = now

    def when_answered(self, interface: Interface, gateway: IPAddress, method: Callable[[], object]) -> None:
        """Call a bound method once a silent first hop answers, or after :data:`PATIENCE`. Its object is held weakly."""
        self._silent[interface.index, gateway].wait(method)


class _SilentHop:
    """A silent first hop, checked and probed until it answers."""

    __slots__ = ("_checking", "_delay", "_gateway", "_interface", "_kernel", "_probe_due", "_runtime", "_waiters", "until")

    def __init__(self, runtime: Runtime, kernel: Kernel, interface: Interface, gateway: IPAddress) -> None:
        self.until = runtime.time() + PATIENCE
        self._runtime = runtime
        self._kernel = kernel
        self._interface = interface
        self._gateway = gateway
        self._waiters: dict[weakref.WeakMethod[Callable[[], object]], None] = {}
        self._delay = _FIRST_CHECK
        self._probe_due = 0.0
        self._checking = False
        self._probe()

    def wait(self, method: Callable[[], object]) -> None:
        self._waiters.setdefault(weakref.WeakMethod(method))
        self._check_later()

    def _probe(self) -> None:
        if self._runtime.time() >= self._probe_due:
            self._probe_due = self._runtime.time() + _PROBE_INTERVAL
            self._kernel.ask_first_hop(self._interface, self._gateway)

    def _check_later(self) -> None:
        if not self._checking and self._waiters:
            self._checking = True
            self._runtime.call_later(self._delay, self._check)
            self._delay = min(2 * self._delay, _LAST_CHECK)

    def _check(self) -> None:
        self._checking = False
        self._waiters = {waiter: None for waiter in self._waiters if waiter() is not None}
        answers = self._kernel.first_hop_answers(self._interface, self._gateway) is not False
        if not answers and self._runtime.time() < self.until:
            self._probe()
            self._check_later()
            return
        self._delay = _FIRST_CHECK
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            method = waiter()
            if method is not None:
                method()
