"""Binding a socket to an interface, moving a datagram socket to another one, and reading the state of a stream socket.

The option depends on the socket's family: IP_BOUND_IF on AF_INET, IPV6_BOUND_IF on AF_INET6. The other one fails with EINVAL,
since xnu dispatches by the socket's domain, not by the level (xnu bsd/netinet/udp_usrreq.c, udp_ctloutput). An index that does
not exist fails with ENXIO and leaves the socket bound as it was; index 0 unbinds.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
from ctypes import sizeof
from typing import TYPE_CHECKING

from bindsock.errors import BindFailed
from bindsock.kernel import sockets as shared
from bindsock.kernel.darwin import abi
from bindsock.kernel.sockets import check_local_address, fail, keep_alive, rescoped

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel.sockets import Sockaddr
    from bindsock.model.network import Interface

_logger = logging.getLogger("bindsock")

_OPTIONS = {
    abi.AF_INET: (abi.IPPROTO_IP, abi.IP_BOUND_IF, "IP_BOUND_IF"),
    abi.AF_INET6: (abi.IPPROTO_IPV6, abi.IPV6_BOUND_IF, "IPV6_BOUND_IF"),
    # On another system, with a simulated or remote Darwin kernel, the family has that system's number.
    int(socket.AF_INET6): (abi.IPPROTO_IPV6, abi.IPV6_BOUND_IF, "IPV6_BOUND_IF"),
}


def bind(sock: socket.socket, interface: Interface) -> None:
    """Bind a socket, before its bind() and connect().

    A stream socket also gets SO_NOADDRERR: it then fails with EADDRNOTAVAIL once its source address is gone. Without the option
    its packets are dropped silently until the last retransmission (xnu bsd/netinet/tcp_output.c).

    :raises BindFailed: with the call and the errno
    """
    _set(sock, interface)
    if sock.type == abi.SOCK_STREAM:
        try:
            sock.setsockopt(abi.SOL_SOCKET, abi.SO_NOADDRERR, 1)
        except OSError as error:
            _logger.debug("SO_NOADDRERR was refused: %s", error)


def rebind(sock: socket.socket, interface: Interface, peer: Sockaddr | None) -> None:
    """Move a datagram socket to the interface. It keeps its descriptor, port, queue and peer.

    A connected socket keeps its source address until it connects again, and its sends are refused until then. connect()
    disconnects it first and keeps its port (xnu bsd/netinet/in_pcb.c, in_pcbconnect). A stream socket is moved only if the
    interface has its local address.

    :param peer: the peer to connect to if an earlier call failed half-way and left the socket disconnected
    :raises BindFailed: with the call and the errno; the socket is bound to the old interface or to the new one
    """
    if sock.type == abi.SOCK_STREAM:
        # The kernel would accept any interface and all data, but send nothing (recorded from xnu).
        check_local_address(sock, interface, "IP_BOUND_IF", abi.EADDRNOTAVAIL)
        _set(sock, interface)
        return
    try:
        peer = _peer(sock) or peer
    except OSError as error:
        fail(error, "getpeername", interface)
    try:
        _set(sock, interface)
    except BindFailed as failed:
        if failed.errno == abi.EINVAL and peer is not None and _is_mapped(peer[0]):
            # A socket connected to such a peer no longer takes IPv6 options (xnu bsd/netinet6/ip6_output.c, ip6_ctloutput).
            message = (
                f"the socket could not be bound to {interface.name}: it is connected to {peer[0]}, and Darwin cannot bind an "
                "IPv6 socket that is connected to an IPv4-mapped address; use an AF_INET socket"
            )
            raise BindFailed(message, errno=failed.errno, interface=interface.name, call=failed.call) from failed
        raise
    if peer is None:
        # The kernel chooses the source address for each datagram.
        return
    try:
        sock.connect(rescoped(peer, interface))
    except OSError as error:
        fail(error, "connect", interface)


def unbind(sock: socket.socket) -> None:
    """Unbind a socket from its interface. A connected datagram socket connects again, to get the source address of its new route.

    :raises BindFailed: the socket is shut down, or connected to an IPv4-mapped address
    """
    level, option, name = _option(sock, None)
    try:
        peer = None if sock.type == abi.SOCK_STREAM else _peer(sock)
        sock.setsockopt(level, option, 0)
        if peer is not None:
            name = "connect"
            sock.connect(peer)
    except OSError as error:
        fail(error, name, None)


def abort(sock: socket.socket) -> None:
    """Shut a stream socket down in both directions.

    :raises OSError: it is not connected, or closed
    """
    sock.shutdown(socket.SHUT_RDWR)


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Let a stream socket fail when its peer has been silent for that many seconds, rounded up.

    TCP_RXT_CONNDROPTIME applies during retransmissions (xnu bsd/netinet/tcp_timer.c, tcp_timers), keep-alive probes while the
    connection is idle.

    :raises OSError: the kernel refused
    """
    timing = keep_alive(seconds)
    sock.setsockopt(abi.SOL_SOCKET, abi.SO_KEEPALIVE, 1)
    sock.setsockopt(abi.IPPROTO_TCP, abi.TCP_KEEPALIVE, timing.idle)
    sock.setsockopt(abi.IPPROTO_TCP, abi.TCP_KEEPINTVL, timing.interval)
    sock.setsockopt(abi.IPPROTO_TCP, abi.TCP_KEEPCNT, timing.probes)
    sock.setsockopt(abi.IPPROTO_TCP, abi.TCP_RXT_CONNDROPTIME, max(1, math.ceil(seconds)))


def probe(sock: socket.socket) -> Callable[[], None]:
    """See :func:`bindsock.kernel.sockets.probe`."""
    tcp = abi.IPPROTO_TCP
    return shared.probe(sock, (tcp, abi.TCP_KEEPALIVE), (tcp, abi.TCP_KEEPINTVL), (abi.SOL_SOCKET, abi.SO_KEEPALIVE))


def bound(sock: socket.socket) -> int | None:
    """The index of the interface that the socket is bound to, even after the interface is gone.

    :raises OSError: the socket is closed
    """
    entry = _OPTIONS.get(int(sock.family))
    if entry is None:
        return None
    index = sock.getsockopt(entry[0], entry[1])
    return index or None


def activity(sock: socket.socket) -> object:
    """The bytes that a TCP socket has sent and received; ``None`` if the kernel does not tell."""
    size = sizeof(abi.tcp_connection_info)
    try:
        raw = sock.getsockopt(abi.IPPROTO_TCP, abi.TCP_CONNECTION_INFO, size)
    except OSError:
        return None
    if len(raw) < size:
        return None
    info = abi.tcp_connection_info.from_buffer_copy(raw)
    return info.tcpi_txbytes, info.tcpi_rxbytes


def _option(sock: socket.socket, interface: Interface | None) -> tuple[int, int, str]:
    entry = _OPTIONS.get(int(sock.family))
    if entry is None:
        message = "only AF_INET and AF_INET6 sockets can be bound to interfaces"
        fail(OSError(abi.EAFNOSUPPORT, message), "IP_BOUND_IF", interface, message)
    return entry


def _set(sock: socket.socket, interface: Interface) -> None:
    level, option, name = _option(sock, interface)
    if interface.index <= 0:
        # Index 0 would unbind the socket.
        fail(OSError(abi.ENXIO, "no such interface"), name, interface)
    try:
        sock.setsockopt(level, option, interface.index)
    except OSError as error:
        message = None
        if error.errno == abi.EINVAL:
            message = (
                f"the socket could not be bound to {interface.name}: it is shut down, "
                "or it is an IPv6 socket with an IPv4-mapped address"
            )
        fail(error, name, interface, message)


def _peer(sock: socket.socket) -> Sockaddr | None:
    """The socket's peer; ``None`` if it is not connected."""
    try:
        peer: Sockaddr = sock.getpeername()
    except OSError as error:
        # After a shutdown it is EINVAL.
        if error.errno not in (abi.ENOTCONN, abi.EINVAL):
            raise
        return None
    return peer


def _is_mapped(host: str) -> bool:
    address = ipaddress.ip_address(host.split("%", 1)[0])
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
