"""What binding and moving a socket have in common on every system."""

from __future__ import annotations

import errno
import ipaddress
import math
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from bindsock.errors import BindFailed
from bindsock.model.network import unmapped

if TYPE_CHECKING:
    import socket

    from bindsock.model.network import Interface

Sockaddr: TypeAlias = tuple[Any, ...]


def fail(error: OSError, call: str, interface: Interface | None, message: str | None = None) -> NoReturn:
    """Raise what became of binding a socket.

    :param call: the system call or socket option that failed
    :param interface: that the socket should have been bound to; ``None`` if it should have been unbound
    :raises BindFailed: always, with the error's number
    """
    name = interface.name if interface is not None else None
    if message is None:
        message = f"the socket could not be bound to {name}" if name else "the socket could not be unbound"
    raise BindFailed(message, errno=error.errno, interface=name, call=call) from error


def check_local_address(sock: socket.socket, interface: Interface, call: str, code: int = errno.EADDRNOTAVAIL) -> None:
    """A stream socket keeps its local address, so that it can only be bound to an interface that has it.

    :param call: the socket option that is to be set
    :param code: the system's number for EADDRNOTAVAIL
    :raises BindFailed: the local address is not the interface's
    """
    try:
        local = ipaddress.ip_address(sock.getsockname()[0].split("%", 1)[0])
    except OSError as error:
        fail(error, "getsockname", interface)
    if not interface.has(unmapped(local)):
        message = f"a stream cannot move to {interface.name}: {local} is not its address"
        fail(OSError(code, message), call, interface, message)


def rescoped(peer: Sockaddr, interface: Interface | None) -> Sockaddr:
    """The peer as the interface reaches it: a link-local one is looked for on the interface's link.

    Its old scope would be refused: with EINVAL by Linux, as unreachable by Darwin.
    """
    if interface is None or len(peer) < 4 or not ipaddress.IPv6Address(peer[0].split("%", 1)[0]).is_link_local:
        return peer
    return (peer[0].split("%", 1)[0], peer[1], peer[2], interface.index)


class KeepAlive(NamedTuple):
    """When a connection at rest is probed."""

    idle: int
    """Seconds until the first probe."""
    interval: int
    """Seconds between probes."""
    probes: int
    """The connection ends when so many have not been answered."""


def keep_alive(seconds: float) -> KeepAlive:
    """The probes by which a connection at rest ends after so much silence: the first one comes after half of it."""
    idle, interval = max(1, int(seconds / 2)), max(1, int(seconds / 4))
    return KeepAlive(idle, interval, max(1, math.ceil((seconds - idle) / interval)))
