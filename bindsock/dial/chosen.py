"""Finds out whether the program has chosen the interface of a socket itself. The same rules hold everywhere in bindsock.

A device, a mark or an interface for unicast: bindsock leaves the socket alone. An interface for multicast: only multicasts are
left alone. A local address: the socket is bound to the uplink that has this address. The table is in ``docs/capture.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.dial.resolving import address_of
from bindsock.model.network import family_of, unmapped
from bindsock.routing.usable import why_unusable

if TYPE_CHECKING:
    import socket

    from bindsock.kernel import Kernel
    from bindsock.model.network import Interface, IPAddress
    from bindsock.routing.effective import Decider

MULTICAST = frozenset({"IP_MULTICAST_IF", "IPV6_MULTICAST_IF"})
"""The socket options that choose an interface for multicasts only."""


def is_left_alone(kernel: Kernel, sock: socket.socket) -> bool:
    """Whether the program has bound the socket to a device, or chosen its interface or its routes by a socket option."""
    return kernel.bound(sock) is not None or bool(kernel.chosen_options(sock) - MULTICAST)


def has_chosen_multicast(kernel: Kernel, sock: socket.socket) -> bool:
    """Whether the program has chosen the interface for the multicasts of the socket."""
    return bool(kernel.chosen_options(sock) & MULTICAST)


def own_address(sock: socket.socket) -> IPAddress | None:
    """The local address to which a socket without a peer is bound; ``None`` for the wildcard."""
    address = unmapped(address_of(sock.getsockname()))
    return None if address.is_unspecified else address


def uplink_of(decider: Decider, address: IPAddress | None) -> Interface | None:
    """The interface that has the local address, if it is an uplink that may be used."""
    if address is None or address.is_loopback or decider.pin is not None:
        return None
    owner = decider.network.owner_of(address)
    if owner is None or why_unusable(owner, family_of(address), decider.preferences) is not None:
        return None
    return owner


def on_own_uplink(decider: Decider, address: IPAddress | None) -> Decider:
    """The decider for a socket with that local address: pinned to its uplink, if it belongs to one."""
    uplink = uplink_of(decider, address)
    return decider if uplink is None else decider.with_pin(uplink.name)
