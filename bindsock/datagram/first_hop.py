"""Waits until the first hop of a path answers.

A path may be the better one and pass nothing yet: a switch port that blocks for some seconds after carrier (spanning tree,
802.1X), a Wi-Fi that still authenticates, or just a router whose link-layer address has to be found first. What is sent by it
meanwhile waits in the kernel, some hundred datagrams at the most and for three seconds, and what does not fit is dropped
uncounted (``linux net/core/neighbour.c``, __neigh_event_send and neigh_invalidate).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface, IPAddress
    from bindsock.netmon.runtime import Runtime

PATIENCE = 30.0
"""Seconds after which a first hop that does not answer is no reason to wait any longer; a spanning tree takes that long."""
_FIRST_LOOK = 0.001
_LAST_LOOK = 0.05
"""Seconds between two looks, doubling."""
_FRESH = 0.005
"""Seconds for which an answer is not asked for again: thousands of endpoints move at the same time."""
_ASK_AGAIN = 1.0
"""Seconds between two requests to look for it."""


class FirstHops:
    """The first hops that are waited for on one event loop, by whoever it is."""

    __slots__ = ("_answered", "_runtime", "_silent")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._silent: dict[tuple[int, IPAddress], _SilentHop] = {}
        self._answered: dict[tuple[int, IPAddress], float] = {}
        """When each was known to answer last."""

    def is_silent(self, kernel: Kernel, interface: Interface, gateway: IPAddress | None) -> bool:
        """Whether a first hop does not answer, and may do so yet. It is asked to.

        :param gateway: ``None`` where there is none: then nothing is known
        """
        if gateway is None:
            return False
        key = (interface.index, gateway)
        now = self._runtime.time()
        if now < self._answered.get(key, 0.0) + _FRESH:
            return False
        if kernel.first_hop_answers(interface, gateway) is not False:
            self._silent.pop(key, None)
            self._answered[key] = now
            return False
        self._answered.pop(key, None)
        hop = self._silent.get(key)
        if hop is None or now >= hop.until + PATIENCE:
            hop = self._silent[key] = _SilentHop(self._runtime, kernel, interface, gateway)
            if kernel.first_hop_answers(interface, gateway) is not False:
                # It has answered before the question returned: a machine on the same host, such as a bridge's or a container's.
                del self._silent[key]
                self._answered[key] = now
                return False
        return now < hop.until

    def when_answered(self, interface: Interface, gateway: IPAddress, method: Callable[[], object]) -> None:
        """Call a bound method once a silent first hop answers, or is waited for no longer; its object is not kept alive by it."""
        self._silent[interface.index, gateway].wait(method)


class _SilentHop:
    """A first hop that is looked at again and again."""

    __slots__ = ("_ask_at", "_delay", "_gateway", "_interface", "_kernel", "_looking", "_runtime", "_waiters", "until")

    def __init__(self, runtime: Runtime, kernel: Kernel, interface: Interface, gateway: IPAddress) -> None:
        self.until = runtime.time() + PATIENCE
        self._runtime = runtime
        self._kernel = kernel
        self._interface = interface
        self._gateway = gateway
        self._waiters: dict[weakref.WeakMethod[Callable[[], object]], None] = {}
        self._delay = _FIRST_LOOK
        self._ask_at = 0.0
        self._looking = False
        self._ask()

    def wait(self, method: Callable[[], object]) -> None:
        self._waiters.setdefault(weakref.WeakMethod(method))
        self._look_later()

    def _ask(self) -> None:
        if self._runtime.time() >= self._ask_at:
            self._ask_at = self._runtime.time() + _ASK_AGAIN
            self._kernel.ask_first_hop(self._interface, self._gateway)

    def _look_later(self) -> None:
        if not self._looking and self._waiters:
            self._looking = True
            self._runtime.call_later(self._delay, self._look)
            self._delay = min(2 * self._delay, _LAST_LOOK)

    def _look(self) -> None:
        self._looking = False
        self._waiters = {waiter: None for waiter in self._waiters if waiter() is not None}
        answers = self._kernel.first_hop_answers(self._interface, self._gateway) is not False
        if not answers and self._runtime.time() < self.until:
            self._ask()
            self._look_later()
            return
        self._delay = _FIRST_LOOK
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            method = waiter()
            if method is not None:
                method()
