"""What to do if a decision has no interface: an error with the reasons and a hint, or waiting for a change."""

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
    from bindsock.model.network import Interface, IPAddress, Network
    from bindsock.netmon.loop import Future
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

ANYWHERE: dict[socket.AddressFamily, IPAddress] = {
    socket.AF_INET: IPv4Address("8.8.8.8"),
    socket.AF_INET6: IPv6Address("2001:4860:4860::8888"),
}
"""Destinations beyond the default route. Nothing is ever sent to them; the kernel is only asked for the route."""


def no_effective_interface(what: str, decisions: tuple[Decision, ...], kernel: Kernel, network: Network) -> NoEffectiveInterface:
    """The error for decisions without an interface. Its message has the reasons, and hints for missing routes.

    :param what: the host or the purpose, for the message
    """
    reasons = dict.fromkeys(f"{c.interface} {c.reason}" for d in decisions for c in d.candidates)
    detail = "; ".join(reasons) if reasons else "there is no candidate"
    hints = dict.fromkeys(filter(None, (route_hint(kernel, network, d) for d in decisions)))
    # On Linux the hints are commands, which bindsock can carry out as well, unless it has tried already.
    administration = kernel.administration
    unrepaired = hints and administration is not None and administration.repairer is None
    repair = ["root may do so, or let bindsock do it: `bindsock repair`"] if unrepaired else []
    message = "; ".join((f"no interface may be used for {what}: {detail}", *hints, *repair))
    return NoEffectiveInterface(message, decisions=decisions)


def route_hint(kernel: Kernel, network: Network, decision: Decision) -> str | None:
    """How to add the missing route, if there is an interface that lacks nothing else."""
    anywhere = isinstance(decision.target, socket.AddressFamily)
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
            return (
                default_route_hint(kernel, interface, decision.family) if anywhere else kernel.route_hint(interface, destination)
            )
    return None


def default_route_hint(kernel: Kernel, interface: Interface, family: socket.AddressFamily) -> str:
    """How to add the missing default route. The hint names no destination, since nobody has asked for one."""
    hint = kernel.route_hint(interface, ANYWHERE[family])
    return hint.replace(f"no route to {ANYWHERE[family]}", "no default route").replace(str(ANYWHERE[family]), "the Internet")


async def until_changed(watcher: Watcher) -> None:
    """Wait until a reading differs from the previous one. The caller must hold the watcher."""
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
