"""Binds a fresh socket as decided."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bindsock.errors import NoRoute
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from bindsock.kernel import Kernel


def decide_and_bind(kernel: Kernel, decider: Decider, sock: socket.socket, destination: IPAddress | None) -> Decision:
    """Bind a fresh socket as decided for its destination, or for its family's default.

    Whatever fails, the socket is closed: it never sends unbound.

    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    """
    decision = decider.decide(destination if destination is not None else socket.AddressFamily(sock.family))
    if decision.interface is None and not decision.unbound and decider.preferences.on_no_interface != "unbound":
        sock.close()
        raise no_effective_interface(str(destination or "the default route"), (decision,), kernel, decider.network)
    bind_or_close(kernel, sock, decision, destination)
    return decision


def bind_or_close(kernel: Kernel, sock: socket.socket, decision: Decision, destination: IPAddress | None) -> Interface | None:
    """Bind a fresh socket as decided, after making sure that a route leaves by the interface.

    Whatever fails, the socket is closed: it never sends unbound.

    :return: the interface, ``None`` if the decision is not to bind
    """
    interface = decision.interface
    if interface is None:
        return None
    try:
        kernel.bind(sock, interface)
        if destination is not None and not kernel.has_route(interface, destination):
            raise NoRoute(kernel.cure(interface, destination), interface=interface.name)
    except BaseException:
        sock.close()
        raise
    return interface
