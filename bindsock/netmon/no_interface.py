"""When a decision has no interface: the error that says why and what would cure it, and waiting until it has one."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from bindsock.errors import NoEffectiveInterface
from bindsock.model.network import InterfaceKind

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.model.change import Cause
    from bindsock.model.decision import Decision
    from bindsock.model.network import IPAddress, Network
    from bindsock.netmon.loop import Future
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

ANYWHERE: dict[socket.AddressFamily, IPAddress] = {
    socket.AF_INET: IPv4Address("8.8.8.8"),
    socket.AF_INET6: IPv6Address("2001:4860:4860::8888"),
}
"""A destination on the far side of a default route. Nothing is ever sent to it: the kernel is asked for the route."""


def no_effective_interface(what: str, decisions: tuple[Decision, ...], kernel: Kernel, network: Network) -> NoEffectiveInterface:
    """The error for decisions that all came to nothing, with the reasons, and what would cure it, in its message."""
    reasons = dict.fromkeys(f"{c.interface} {c.reason}" for d in decisions for c in d.candidates)
    detail = "; ".join(reasons) if reasons else "there is no candidate"
    cures = dict.fromkeys(filter(None, (cure(kernel, network, d) for d in decisions)))
    return NoEffectiveInterface("; ".join((f"no interface may be used for {what}: {detail}", *cures)), decisions=decisions)


def cure(kernel: Kernel, network: Network, decision: Decision) -> str | None:
    """What would give the decision an interface: for one that lacks nothing but a route."""
    destination = ANYWHERE[decision.family] if isinstance(decision.target, socket.AddressFamily) else decision.target
    for candidate in decision.candidates:
        interface = network.interfaces.get(candidate.index)
        if (
            interface is not None
            and interface.up
            and interface.running
            and interface.kind not in (InterfaceKind.TUNNEL, InterfaceKind.LOOPBACK)
            and interface.usable_addresses(decision.family)
            and not kernel.has_route(interface, destination)
        ):
            return kernel.route_hint(interface, destination)
    return None


async def until_changed(watcher: Watcher) -> None:
    """Wait until a reading differs from the one before. The caller holds the watcher."""
    waiter = _Waiter(watcher.runtime.create_future())
    watcher.follow(waiter)
    try:
        await waiter.changed
    finally:
        watcher.unfollow(waiter)


class _Waiter:
    def __init__(self, changed: Future) -> None:
        self.changed = changed

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        if not self.changed.done():
            self.changed.set_result(None)
