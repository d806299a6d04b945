"""Binds a new socket according to a decision, and checks the result."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from bindsock.dial.chosen import on_own_uplink, own_address
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.refusal import firewall_error
from bindsock.dial.resolving import address_of
from bindsock.dial.unmanaged import is_connected
from bindsock.errors import BindFailed, EgressMismatch, NoRoute, UnsupportedSystem
from bindsock.model.decision import Basis, Decision
from bindsock.model.network import FAMILIES, Interface, InterfaceKind, IPAddress, Network, family_of, unmapped
from bindsock.model.rejection import Departure
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from bindsock.dial.resolving import SockAddr
    from bindsock.kernel import Kernel
    from bindsock.model.preferences import Preferences

_logger = logging.getLogger("bindsock")

NONBLOCKING: int = getattr(socket, "SOCK_NONBLOCK", 0)
"""A flag for the type of a socket: makes it non-blocking without another system call. 0 if the system has none (Darwin)."""
MOST_DOUBTS = 3
"""How many times in a row a source address that the system has chosen is refused."""
_NO_DEVICE = frozenset({errno.ENODEV, errno.ENXIO})
_PERHAPS_NO_DEVICE = frozenset({errno.ENETUNREACH, errno.ENETDOWN})
"""The errors of connect() when the bound interface is gone: SO_BINDTOIFINDEX accepts any index (linux net/core/sock.c)."""
_OF_THIS_HOST = frozenset({InterfaceKind.LOOPBACK, InterfaceKind.DUMMY})
"""Their addresses may be used by any interface."""


def mark_as_preferred(kernel: Kernel, preferences: Preferences) -> Kernel:
    """Make the kernel set a firewall mark on the sockets that it binds, if the preferences have one.

    Factories may share a kernel. Without a mark in the preferences, the kernel's mark stays unchanged.

    :return: the kernel
    :raises UnsupportedSystem: the system has no firewall marks
    :raises ValueError: the kernel already sets another mark
    """
    if not preferences.mark:
        return kernel
    administration = kernel.administration
    if administration is None:
        raise UnsupportedSystem("this system has no firewall marks: Preferences(mark=) needs Linux")
    if administration.mark not in (0, preferences.mark):
        raise ValueError(f"the kernel already marks its sockets with {administration.mark:#x}, not with {preferences.mark:#x}")
    administration.mark = preferences.mark
    return kernel


def set_dead_after(kernel: Kernel, sock: socket.socket, dead_after: float | None) -> None:
    """Set the user timeout of a stream socket, if the program gave ``dead_after``. Other sockets have none.

    :param dead_after: seconds without an answer from the peer after which the connection fails
    :raises OSError: the system refused
    """
    if dead_after is not None and sock.type == socket.SOCK_STREAM:
        kernel.set_user_timeout(sock, dead_after)


def decide_and_bind(kernel: Kernel, decider: Decider, sock: socket.socket, destination: IPAddress | None) -> Decision:
    """Decide for the destination, or for the family's default route, and bind a new socket accordingly.

    A socket that already has the address of an uplink is bound to that uplink. If anything fails, the socket is closed, so that
    it cannot send unbound.

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
        if isinstance(sock, FollowedSocket):
            settle_when_connecting(sock, kernel, decision, decider.network)
    except BaseException:
        sock.close()
        raise
    return decision


def bind_or_close(kernel: Kernel, sock: socket.socket, decision: Decision, destination: IPAddress | None) -> None:
    """Bind a new socket according to a decision, and check that a route leaves by the interface.

    If anything fails, the socket is closed, so that it cannot send unbound.

    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
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
    """Check that a route to the destination leaves by the interface.

    Without a route, IPv4 on a bound socket treats the destination as a neighbour, sends ARP requests and waits (linux
    net/ipv4/route.c).

    :param destination: ``None`` if there is no single one; then nothing is checked
    :raises NoRoute: no route to the destination leaves by the interface
    """
    if destination is not None and not kernel.has_route(interface, destination):
        raise NoRoute(kernel.route_hint(interface, destination), interface=interface.name)


def check_local_address(decision: Decision, wanted: Sequence[IPAddress]) -> None:
    """Check that one of the requested local addresses belongs to the interface of the decision.

    :raises BindFailed: none does
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
    """The error to raise for a failed connect.

    That is :class:`BindFailed` if the interface is gone or down, :class:`FirewallBlocked` if a firewall rejected the connection,
    and otherwise the error itself. ``ENETUNREACH`` has two meanings: the device of the socket has no route any more, or a router
    beyond it sent an ICMP error (linux net/ipv4/icmp.c, icmp_err_convert). In the second case the error stays as it is.

    :param sock: the socket, not closed yet
    :param network: reads the network; called only if the errors alone do not tell
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
    """Whether this host itself drops or resets connections to the address, found out with another socket."""
    if decision.interface is None:
        return Departure.UNKNOWN
    try:
        with FollowedSocket(family, socket.SOCK_STREAM) as sock:
            kernel.bind(sock, decision.interface)
            bind_source(sock, decision)
            return kernel.departure(sock, sockaddr)
    except OSError as error:
        _logger.debug("cannot find out whether this host drops connections to %s: %s", sockaddr[0], error)
        return Departure.UNKNOWN


def check_egress(kernel: Kernel, decision: Decision, network: Network, address: IPAddress, local: IPAddress) -> None:
    """Check that the local address of a bound and connected socket does not belong to a tunnel.

    :param address: the address of the peer
    :param local: the local address of the socket
    :raises EgressMismatch: it belongs to a tunnel
    """
    interface = decision.interface
    if interface is None or interface.has(local):
        return
    current = network.interfaces.get(interface.index)
    owner = current if current is not None and current.has(local) else _owner(kernel, network, local)
    if owner is None or owner.index == interface.index:
        return
    if owner.kind is InterfaceKind.TUNNEL and decision.basis is not Basis.PINNED:
        raise EgressMismatch(
            f"the socket for {address} is bound to {interface.name}, but the system chose the address {local} of {owner.name}",
            interface=interface.name,
            call="getsockname",
        )
    _logger.info("the connection to %s is bound to %s but has the address %s of %s", address, interface, local, owner)


class MakeshiftSource(BindFailed):
    """The system chose a local address while the interface was without its own ones. Another attempt will be better."""


class TunnelSource(MakeshiftSource, EgressMismatch):
    """The address that the system chose is that of a tunnel. If other attempts get it, too, a VPN overrules the binding."""


def check_source(kernel: Kernel, interface: Interface, network: Network, peer: IPAddress, local: IPAddress) -> None:
    """Check that the interface had its addresses when the system chose the local address of a socket that is bound to it.

    If it is without them only until the network is read again, the reading is the same as before. But answers do not reach the
    socket, whose address is link-local, that of another interface or, in IPv4, 0.0.0.0. Only if a route names the address of
    another interface as its source, that is right.

    :param network: the last reading, in which the interface has its addresses
    :raises MakeshiftSource: it had none
    :raises TunnelSource: the address is that of a tunnel
    """
    if peer.is_link_local or peer.is_multicast or not interface.usable_addresses(family_of(local)):
        return
    owner = None
    if interface.has(local):
        makeshift = local.version == 6 and local.is_link_local
    elif local.is_unspecified:
        makeshift = True
    else:
        owner = _owner(kernel, network, local)
        own = owner is not None and (owner.index == interface.index or owner.kind in _OF_THIS_HOST)
        makeshift = not own and _named_source(kernel, interface, network, peer) != local
    if makeshift:
        error = TunnelSource if owner is not None and owner.kind is InterfaceKind.TUNNEL else MakeshiftSource
        whose = f" of {owner.name}" if owner is not None else ""
        raise error(
            f"the socket for {peer} is bound to {interface.name}, but the system chose the address {local}{whose}",
            errno=errno.EADDRNOTAVAIL,
            interface=interface.name,
            call="connect",
        )


def _owner(kernel: Kernel, network: Network, local: IPAddress) -> Interface | None:
    """The interface that has the local address of a socket.

    If none has it in the last reading, the network is read again: the interface or the address may have come between the reading
    and the choice of the system.

    :return: ``None`` if no interface has it any more, or if the system does not tell
    """
    owner = network.owner_of(local)
    if owner is not None:
        return owner
    try:
        return kernel.network().owner_of(local)
    except OSError as error:
        _logger.debug("cannot find out which interface has the address %s: %s", local, error)
        return None


def _named_source(kernel: Kernel, interface: Interface, network: Network, peer: IPAddress) -> IPAddress | None:
    """The source address that the interface's route to the peer names; ``None``, too, if the system does not tell."""
    try:
        lookup = kernel.lookups(network)(peer).by_interface.get(interface.index)
    except OSError as error:
        _logger.debug("cannot find out the source of the route to %s by %s: %s", peer, interface, error)
        return None
    return lookup.source if lookup is not None else None


def settle_source(
    kernel: Kernel,
    sock: socket.socket,
    decision: Decision,
    network: Network,
    peer: SockAddr,
    *,
    chosen: bool,
) -> None:
    """Check the local address of a socket that has begun to connect. If it is makeshift, connect the socket again.

    :param sock: does not block
    :param network: the reading of the decision, or a newer one
    :param chosen: whether the program has bound the socket to its local address
    :raises MakeshiftSource: the interface still has no address of its own; the socket is closed
    """
    interface = decision.interface
    if interface is None or decision.source is not None or chosen:
        return
    for doubts in range(MOST_DOUBTS + 1):
        if sock.type == socket.SOCK_STREAM and is_connected(sock):
            return
        try:
            check_source(kernel, interface, network, unmapped(address_of(peer)), unmapped(address_of(sock.getsockname())))
        except MakeshiftSource as makeshift:
            try:
                if doubts == MOST_DOUBTS:
                    raise
                kernel.rebind(sock, interface, peer=peer)
            except OSError:
                sock.close()
                raise makeshift from None
        else:
            return


def settle_when_connecting(sock: FollowedSocket, kernel: Kernel, decision: Decision, network: Network) -> None:
    """Do :func:`settle_source` when the program connects a bound socket."""
    if decision.interface is not None:
        sock.on_connect(lambda sock, peer, chosen: settle_source(kernel, sock, decision, network, peer, chosen=chosen))


class Begun(enum.Enum):
    """What has come of the beginning of a connect."""

    NOT = enum.auto()
    CONNECTING = enum.auto()
    CONNECTED = enum.auto()


def begin_connect(
    kernel: Kernel, sock: socket.socket, decision: Decision, network: Callable[[], Network], address: SockAddr
) -> Begun:
    """Begin to connect a stream socket, to check its local address before anything waits for the peer.

    Another ``connect()`` then goes on with it, inside :func:`going_on`.

    :raises MakeshiftSource: as :func:`settle_source`
    :raises OSError: the connect failed at once
    """
    if sock.family not in FAMILIES or sock.type != socket.SOCK_STREAM or decision.interface is None or sock.gettimeout() != 0:
        return Begun.NOT
    if type(sock).connect is not socket.socket.connect:
        return Begun.NOT  # it may do more than connect
    chosen = own_address(sock) is not None
    try:
        sock.connect(address)
    except (BlockingIOError, InterruptedError):
        settle_source(kernel, sock, decision, network(), address, chosen=chosen)
        return Begun.CONNECTED if is_connected(sock) else Begun.CONNECTING
    return Begun.CONNECTED


@contextlib.contextmanager
def going_on(begun: Begun) -> Iterator[None]:
    """Let a block connect a socket again whose connect has begun.

    Linux answers 0 if it is connected meanwhile (linux net/ipv4/af_inet.c, __inet_stream_connect), macOS EISCONN (xnu
    bsd/kern/uipc_socket.c, soconnectlock).
    """
    try:
        yield
    except OSError as error:
        if begun is not Begun.CONNECTING or error.errno != errno.EISCONN:
            raise


def bind_source(sock: socket.socket, decision: Decision) -> None:
    """Bind a new socket to the local address that the decision names, unless the socket has a local address already.

    :raises BindFailed: the system refused
    """
    source, interface = decision.source, decision.interface
    if source is None or interface is None or not address_of(sock.getsockname()).is_unspecified:
        return
    try:
        sock.bind((local_text(source, sock.family), 0))
    except OSError as error:
        message = f"cannot bind to {source}, the source address for {decision.target}"
        raise BindFailed(message, errno=error.errno, interface=interface.name, call="bind") from error


def local_text(source: IPAddress, family: int) -> str:
    """A local address in the form that ``bind()`` of the family takes."""
    return f"::ffff:{source}" if source.version == 4 and family == socket.AF_INET6 else str(source)
