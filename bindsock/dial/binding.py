"""Binds a fresh socket as decided, and checks what came of it."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bindsock.dial.chosen import on_own_uplink, own_address
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.refusal import firewall_error
from bindsock.dial.resolving import address_of
from bindsock.errors import BindFailed, EgressMismatch, NoRoute, UnsupportedSystem
from bindsock.model.decision import Basis, Decision
from bindsock.model.network import Interface, InterfaceKind, IPAddress, Network
from bindsock.model.rejection import Departure
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from bindsock.dial.resolving import SockAddr
    from bindsock.kernel import Kernel
    from bindsock.model.preferences import Preferences

_logger = logging.getLogger("bindsock")

NONBLOCKING: int = getattr(socket, "SOCK_NONBLOCK", 0)
"""Added to a socket's type, makes it non-blocking without another system call; 0 where there is no such flag (Darwin)."""
_NO_DEVICE = frozenset({errno.ENODEV, errno.ENXIO})
_PERHAPS_NO_DEVICE = frozenset({errno.ENETUNREACH, errno.ENETDOWN})
"""What connect() says when the bound interface is gone: SO_BINDTOIFINDEX accepts any index (linux net/core/sock.c)."""


def mark_as_preferred(kernel: Kernel, preferences: Preferences) -> Kernel:
    """Let the kernel mark what it binds, if the preferences have a mark.

    A kernel may be shared: without a mark in the preferences its own is left as it is.

    :return: the kernel
    :raises UnsupportedSystem: the system has no marks
    :raises ValueError: whoever else has the kernel needs another mark
    """
    if not preferences.mark:
        return kernel
    administration = kernel.administration
    if administration is None:
        raise UnsupportedSystem("mark needs Linux: this system has no firewall marks")
    if administration.mark not in (0, preferences.mark):
        raise ValueError(f"the kernel marks its sockets with {administration.mark:#x}: {preferences.mark:#x} needs another one")
    administration.mark = preferences.mark
    return kernel


def decide_and_bind(kernel: Kernel, decider: Decider, sock: socket.socket, destination: IPAddress | None) -> Decision:
    """Bind a fresh socket as decided for its destination, or for its family's default; one with the address of an uplink to that.

    Whatever fails, the socket is closed: it never sends unbound.

    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    """
    try:
        decider = on_own_uplink(decider, own_address(sock))
        decision = decider.decide(destination if destination is not None else socket.AddressFamily(sock.family))
        if decision.interface is None and not decision.unbound and decider.preferences.on_no_interface != "unbound":
            raise no_effective_interface(str(destination or "the default route"), (decision,), kernel, decider.network)
        bind_or_close(kernel, sock, decision, destination)
    except BaseException:
        sock.close()
        raise
    return decision


def bind_or_close(kernel: Kernel, sock: socket.socket, decision: Decision, destination: IPAddress | None) -> None:
    """Bind a fresh socket as decided, after making sure that a route leaves by the interface.

    Whatever fails, the socket is closed: it never sends unbound.
    """
    interface = decision.interface
    if interface is None:
        return
    try:
        kernel.bind(sock, interface)
        check_route(kernel, interface, destination)
        if destination is not None:
            bind_source(sock, decision)
    except BaseException:
        sock.close()
        raise


def check_route(kernel: Kernel, interface: Interface, destination: IPAddress | None) -> None:
    """Without a real route, IPv4 asks the link for the destination and hangs (linux net/ipv4/route.c).

    :param destination: ``None`` where there is no certain one, so that there is nothing to check
    :raises NoRoute: no route to the destination leaves by the interface
    """
    if destination is not None and not kernel.has_route(interface, destination):
        raise NoRoute(kernel.route_hint(interface, destination), interface=interface.name)


def check_local_address(decision: Decision, wanted: Sequence[IPAddress]) -> None:
    """Check that one of the local addresses that a socket is to have is its interface's.

    :raises BindFailed: none is
    """
    interface = decision.interface
    if interface is None:
        return
    own = {a.address for a in interface.addresses} | {decision.source}
    if not any(a.is_unspecified or a in own for a in wanted):
        raise BindFailed(
            f"the local address {', '.join(map(str, wanted))} does not belong to {interface.name}, "
            f"the effective interface for {decision.target}",
            errno=errno.EADDRNOTAVAIL,
            interface=interface.name,
            call="bind",
        )


def connect_error(
    kernel: Kernel,
    sock: socket.socket,
    error: OSError,
    decision: Decision,
    sockaddr: SockAddr,
    network: Callable[[], Network],
) -> OSError:
    """The error of a connect: :class:`BindFailed` if it failed since the interface is gone or down, :class:`FirewallBlocked` if
    a firewall refused it, else the same one.

    ``ENETUNREACH`` has two meanings: the socket's own device has no route any more, or a router beyond it said so by ICMP
    (linux net/ipv4/icmp.c, icmp_err_convert). The second is the destination's fault, and the plain error that asyncio raises.

    :param sock: the socket, not closed yet
    :param network: makes a reading, where that has to tell
    """
    rejection = kernel.rejection(sock)
    own_reset = (
        error.errno == errno.ECONNREFUSED
        and rejection is None
        and sock.type == socket.SOCK_STREAM
        and departure(kernel, sock.family, decision, sockaddr) is Departure.RESET
    )
    blocked = firewall_error(error, sockaddr, decision, rejection, network, own_reset=own_reset)
    if blocked is not None:
        return blocked
    interface = decision.interface
    if interface is None or error.errno not in _NO_DEVICE | _PERHAPS_NO_DEVICE:
        return error
    if error.errno in _PERHAPS_NO_DEVICE:
        now = network().interfaces.get(interface.index)
        if now is not None and now.up:
            return error
    return BindFailed(
        f"cannot connect to {sockaddr[0]} port {sockaddr[1]}: the interface is gone",
        errno=error.errno,
        interface=interface.name,
        call="connect",
    )


def departure(kernel: Kernel, family: int, decision: Decision, sockaddr: SockAddr) -> Departure:
    """What becomes of attempts to connect to an address within this host."""
    if decision.interface is None:
        return Departure.UNKNOWN
    try:
        with FollowedSocket(family, socket.SOCK_STREAM) as sock:
            kernel.bind(sock, decision.interface)
            bind_source(sock, decision)
            return kernel.departure(sock, sockaddr)
    except OSError as error:
        _logger.debug("what becomes of a connect to %s within this host is not found out: %s", sockaddr[0], error)
        return Departure.UNKNOWN


def check_egress(decision: Decision, network: Network, address: IPAddress, local: IPAddress) -> None:
    """Check that a bound and connected socket has not got a tunnel's address.

    :param address: the peer's
    :param local: the socket's own
    :raises EgressMismatch: it has
    """
    interface = decision.interface
    if interface is None or interface.has(local):
        return
    current = network.interfaces.get(interface.index)
    owner = current if current is not None and current.has(local) else network.owner_of(local)
    if owner is None or owner.index == interface.index:
        return
    if owner.kind is InterfaceKind.TUNNEL and decision.basis is not Basis.PINNED:
        raise EgressMismatch(
            f"the socket for {address} is bound to {interface.name}, but the system gave it {local} of {owner.name}",
            interface=interface.name,
            call="getsockname",
        )
    _logger.info("the connection to %s is bound to %s but has the address %s of %s", address, interface, local, owner)


def bind_source(sock: socket.socket, decision: Decision) -> None:
    """Bind a fresh socket to the local address that the decision names, if it names one and nobody has chosen another.

    :raises BindFailed: the system refused
    """
    source, interface = decision.source, decision.interface
    if source is None or interface is None or not address_of(sock.getsockname()).is_unspecified:
        return
    try:
        sock.bind((local_text(source, sock.family), 0))
    except OSError as error:
        message = f"cannot bind to {source}, from which {decision.target} is reached"
        raise BindFailed(message, errno=error.errno, interface=interface.name, call="bind") from error


def local_text(source: IPAddress, family: int) -> str:
    """A local address as a socket of the family takes it."""
    return f"::ffff:{source}" if source.version == 4 and family == socket.AF_INET6 else str(source)
