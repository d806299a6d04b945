"""Sockets whose way their program has chosen: one rule for every face. The table is in ``docs/capture.md``.

A program chooses by a device, a mark or an interface for unicast, which bindsock leaves alone; by an interface for multicast,
which counts for multicasts only; or by a local address, which means the uplink that has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.dial.resolving import address_of
from bindsock.model.network import family_of, unmapped
from bindsock.routing.usable import unfit

if TYPE_CHECKING:
    import socket

    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface, IPAddress
    from bindsock.routing.effective import Decider

MULTICAST = frozenset({"IP_MULTICAST_IF", "IPV6_MULTICAST_IF"})
"""The options that choose for multicasts alone."""


def is_left_alone(kernel: Kernel, sock: socket.socket) -> bool:
    """Whether the program has bound the socket to a device, or chosen its interface or its routes by an option."""
    return kernel.bound(sock) is not None or bool(kernel.chosen_options(sock) - MULTICAST)


def has_chosen_multicast(kernel: Kernel, sock: socket.socket) -> bool:
    """Whether the program has chosen the interface by which the socket's multicasts leave."""
    return bool(kernel.chosen_options(sock) & MULTICAST)


def own_address(sock: socket.socket) -> IPAddress | None:
    """The local address that a socket without a peer was bound to, ``None`` for the wildcard."""
    address = unmapped(address_of(sock.getsockname()))
    return None if address.is_unspecified else address


def uplink_of(decider: Decider, address: IPAddress | None) -> Interface | None:
    """The interface that a local address stands for: the one that has it, if that is an uplink that may be used."""
    if address is None or address.is_loopback or decider.pin is not None:
        return None
    owner = decider.network.owner_of(address)
    if owner is None or unfit(owner, family_of(address), decider.preferences) is not None:
        return None
    return owner


def on_own_uplink(decider: Decider, address: IPAddress | None) -> Decider:
    """What decides for a socket with that local address: its uplink alone, if it has one."""
    uplink = uplink_of(decider, address)
    return decider if uplink is None else decider.with_pin(uplink.name)
