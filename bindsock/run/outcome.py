"""The outcome of a socket: bound, left alone, or escaped."""

from __future__ import annotations

import socket
from typing import Literal, TypeAlias

from bindsock import kernel as kernels
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import peer_of
from bindsock.model.network import FAMILIES

Outcome: TypeAlias = Literal["bound", "left alone", "refused", "escaped"]


def outcome_of(sock: socket.socket) -> tuple[Outcome, str]:
    """The outcome of a socket that has an address, and the detail for the ledger."""
    interface = kernels.current().bound(sock) if sock.family in FAMILIES else None
    if interface is not None:
        return "bound", name_of(interface)
    local, peer = sock.getsockname(), peer_of(sock)
    if sock.family not in FAMILIES or (peer is not None and peer[0] == local[0]) or address_of(local).is_loopback:
        return "left alone", "to this machine"
    return "escaped", "left to the system's routes, as the preferences say"


def name_of(interface: int) -> str:
    """The name of an interface, or a phrase if it is gone.

    :param interface: its index
    """
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return f"interface {interface}, which is gone"
