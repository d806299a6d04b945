"""Binding a socket to an interface, moving a datagram socket to another one, and reading the state of a stream socket.

None of it needs a privilege: the first ``SO_BINDTOIFINDEX`` of a socket needs none (Linux 5.7, ``net/core/sock.c``,
sock_bindtoindex_locked), and ``connect(AF_UNSPEC)`` unbinds a datagram socket, so that the next ``SO_BINDTOIFINDEX`` is a first
one again (``net/ipv4/udp.c``, __udp_disconnect).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING

from bindsock.errors import BindFailed
from bindsock.kernel import sockets as shared
from bindsock.kernel.chosen import multicast_options
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.sockets import bind_by_number, check_local_address, fail, keep_alive, rescoped, sharing_ports
from bindsock.model.network import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bindsock.kernel.sockets import Sockaddr
    from bindsock.model.network import Interface, IPAddress

_SO_BINDTODEVICE = 25
_SO_MARK = 36
_SO_BINDTOIFINDEX = 62
_IP_UNICAST_IF = 50
_IP_LOCAL_PORT_RANGE = 51
_IPV6_UNICAST_IF = 76
_SIOCGIFNAME = 0x8910
_SIOCGIFFLAGS = 0x8913
_RUNNING = 0x1 | 0x40
"""IFF_UP and IFF_RUNNING (``include/uapi/linux/if.h``)."""
_IFREQ = struct.Struct("@16si20x")
_TCP_KEEPIDLE = 4
_TCP_KEEPINTVL = 5
_TCP_KEEPCNT = 6
_TCP_INFO = 11
_POLLRDHUP = 0x2000
_CLOSES_FIRST = frozenset({1, 4, 5})
"""TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2: the peer has not ended the connection yet (``include/net/tcp_states.h``)."""
_TCP_LINGER2 = 8
_LONGEST_FIN_WAIT2 = 120
"""The longest time in FIN_WAIT2 that the kernel accepts, in seconds (``include/net/tcp.h``, TCP_FIN_TIMEOUT_MAX)."""
_TCP_USER_TIMEOUT = 18

_family: Callable[[socket.socket], int] = socket.SocketType.family.__get__
_type: Callable[[socket.socket], int] = socket.SocketType.type.__get__
_connect: Callable[[socket.socket, Sockaddr], None] = socket.SocketType.connect
"""Not the method of a subclass, which may do more."""
_AF_INET6, _SOCK_STREAM, _SOCK_DGRAM = int(socket.AF_INET6), int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM)
_IPPROTO_IP = int(socket.IPPROTO_IP)
"""Plain numbers, because :mod:`socket` converts them to enumerations each time, which takes as long as a system call."""


def bind(sock: socket.socket, interface: Interface) -> None:
    """Bind a socket that is bound to no interface, or already to this one.

    :raises BindFailed: with the call and the errno
    """
    _check(sock, interface)
    try:
        _set_device(sock, interface.index)
    except OSError as error:
        # Without privilege a second call fails with EPERM, even for the same interface.
        if error.errno != errno.EPERM or bound(sock) != interface.index:
            fail(error, "SO_BINDTOIFINDEX", interface)
    if _family(sock) == _AF_INET6 and _type(sock) == _SOCK_STREAM:
        _keep_bound_in_fin_wait(sock)


def _keep_bound_in_fin_wait(sock: socket.socket) -> None:
    """Let the kernel keep the full socket for a minute after it is closed, so that it acknowledges the peer's FIN by its device.

    Otherwise, once its own FIN is acknowledged, the kernel only keeps a reduced socket, which answers by the routing table
    (``net/ipv6/tcp_ipv6.c``, tcp_v6_send_response). A socket in FIN_WAIT2 stays a full one except for the last minute of the
    linger time (``net/ipv4/tcp_input.c``, tcp_rcv_state_process; ``include/net/tcp.h``, TCP_TIMEWAIT_LEN).
    """
    with contextlib.suppress(OSError):  # a multipath socket has no such option
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_LINGER2, _LONGEST_FIN_WAIT2)


def mark(sock: socket.socket, number: int, interface: Interface) -> None:
    """Set a socket's firewall mark, which policy rules and firewalls can match.

    :param interface: the interface that the socket is bound to, for the error
    :raises BindFailed: the process lacks CAP_NET_ADMIN (since Linux 5.17 CAP_NET_RAW is enough)
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, number)
    except OSError as error:
        fail(error, "SO_MARK", interface, f"the mark {number:#x} could not be set, which needs CAP_NET_ADMIN")


def unbind(sock: socket.socket, peer: Sockaddr | None, port: int | None) -> None:
    """Unbind a socket from its interface. A connected datagram socket connects again, to get another source address.

    :param peer: the peer to connect to if an earlier call failed half-way and left the socket disconnected
    :param port: the local port, in the same case
    :raises BindFailed: it is a stream socket and the process lacks CAP_NET_RAW, or another socket has the port
    """
    try:
        if _is_datagram(sock):
            try:
                peer = sock.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
            if peer is not None or (port is not None and not sock.getsockname()[1]):
                _rebind_and_connect(sock, None, peer, port)
                return
        try:
            _set_device(sock, 0)
        except OSError as error:
            if error.errno != errno.EPERM or not _is_datagram(sock):
                raise
            _rebind_and_connect(sock, None, None, None)
    except BindFailed:
        raise
    except OSError as error:
        fail(error, "SO_BINDTOIFINDEX", None)


def bound(sock: socket.socket) -> int | None:
    """The index of the interface that the socket is bound to; -1 if the interface is gone and the kernel is older than 5.0.

    :raises OSError: the socket is closed
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX) or None
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    try:
        name = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, 16).split(b"\0", 1)[0]
        return socket.if_nametoindex(os.fsdecode(name)) if name else None
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise
        return -1


def is_running(index: int) -> bool:
    """Whether an interface is up and has carrier; true for the index 0, which no interface has."""
    if not index:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer: bytes = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, _IFREQ.pack(_name(sock, index), 0))
        except OSError:
            return False
    flags = int.from_bytes(answer[16:18], sys.byteorder)
    return flags & _RUNNING == _RUNNING


def existing(indices: Iterable[int]) -> set[int]:
    """Those of the interfaces that exist; 0, which no interface has, counts as one.

    Unlike ``socket.if_nameindex()``, this does not wait until a change of another interface is over, for which the kernel takes
    up to 20 ms (rtnl_lock), and does not keep other threads waiting.
    """
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index in indices:
            with contextlib.suppress(OSError):
                if index:
                    _request(sock, index)
                found.add(index)
    return found


def chosen_options(sock: socket.socket) -> frozenset[str]:
    """The options by which the program has chosen the socket's interface or routes."""
    found = multicast_options(sock)
    with contextlib.suppress(OSError):
        if sock.getsockopt(socket.SOL_SOCKET, _SO_MARK):
            found.add("SO_MARK")
    with contextlib.suppress(OSError):
        if any(sock.getsockopt(socket.IPPROTO_IP, _IP_UNICAST_IF, 4)):
            found.add("IP_UNICAST_IF")
    if sock.family == socket.AF_INET6:
        with contextlib.suppress(OSError):
            if any(sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_UNICAST_IF, 4)):
                found.add("IPV6_UNICAST_IF")
    return frozenset(found)


def check_port(
    sock: socket.socket, interface: Interface, keeps_address: bool, replaceable: bool, sharing: Sequence[socket.socket]
) -> None:
    """Check that no other socket has the port of a datagram socket on the interface to which it is to move.

    While a socket is bound to no interface and to no address, the kernel gives its port to no other on any interface.

    :raises BindFailed: another socket has it, or the socket is closed
    """
    if sock.fileno() < 0:
        fail(_error(errno.EBADF), "bind", interface, "the socket is closed")
    if replaceable and _keeps_its_port(sock):
        return  # the kernel checks it in rebind()
    name, family = sock.getsockname(), _family(sock)
    if not name[1] or bound(sock) in (None, interface.index):
        return
    if any(sock.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT)):
        return
    try:
        with socket.socket(family, _SOCK_DGRAM) as probe:
            if family == _AF_INET6:
                only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            _set_device(probe, interface.index)
            with sharing_ports(probe, sharing):
                probe.bind(rescoped(name, interface) if keeps_address else ("", name[1]))
    except OSError as error:
        # The move itself meets the other errors. Not all of them: a process needs no descriptor to move a socket.
        if error.errno == errno.EADDRINUSE:
            fail(error, "bind", interface, f"another socket has the local port {name[1]} on {interface.name}")


def bind_port(sock: socket.socket, address: Sockaddr, port: int) -> None:
    """Bind a socket to an address, and to a port that the kernel chose before, so that it still counts as the kernel's choice.

    A socket keeps a port that was asked for by number when it is disconnected, and the kernel does not check the port when the
    socket is then bound to another interface. So the range of ports to choose from is limited to this one (IP_LOCAL_PORT_RANGE,
    Linux 6.3, ``net/ipv4/ip_sockglue.c``). If the kernel knows no such range, or if the port does not belong to the system's own
    range (net.ipv4.ip_local_port_range), the port is asked for by number.

    :raises OSError: another socket has the port (EADDRINUSE)
    """
    try:
        sock.setsockopt(_IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _only(port))
        sock.bind((address[0], 0, *address[2:]))
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EADDRINUSE):
            raise
    chosen = sock.getsockname()[1]
    if chosen == port:
        return
    if chosen:
        # Give back the wrong port, and with it the interface.
        index = bound(sock)
        _disconnect(sock)
        if index is not None:
            _set_device(sock, index)
    with contextlib.suppress(OSError):
        sock.setsockopt(_IPPROTO_IP, _IP_LOCAL_PORT_RANGE, 0)
    bind_by_number(sock, address, port)


def _keeps_its_port(sock: socket.socket) -> bool:
    """Whether :func:`bind_port` has bound the socket to a port that counts as the kernel's choice."""
    try:
        limited = sock.getsockopt(_IPPROTO_IP, _IP_LOCAL_PORT_RANGE)
    except OSError:
        return False
    return limited != 0 and limited == _only(limited & 0xFFFF)


def _only(port: int) -> int:
    """The range that includes one port, as a signed number: the lowest port in the lower half, the highest in the upper half."""
    return (port << 16 | port) - (port >> 15 << 32)


def rebind(
    sock: socket.socket, interface: Interface, peer: Sockaddr | None, port: int | None, *, replaceable: bool = False
) -> None:
    """Move a datagram socket to the interface. It keeps its descriptor, port, queue and peer.

    A stream socket is moved only if the interface has its local address; that needs CAP_NET_RAW.

    :param peer: the peer to connect to if an earlier call failed half-way and left the socket disconnected
    :param port: the local port, in the same case
    :param replaceable: whether the kernel chose the port, and may refuse to give it again
    :raises BindFailed: with the call and the errno; the socket is bound to an interface, or cannot send any more
    """
    _check(sock, interface)
    if not _is_datagram(sock):
        _move_stream(sock, interface, peer)
        return
    try:
        connected = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            fail(error, "getpeername", interface)
        connected = None
    if connected is None and peer is None and (port is None or sock.getsockname()[1]):
        # Not connected: the kernel chooses the source for each datagram, so only the device changes.
        if bound(sock) == interface.index:
            return
        # With CAP_NET_RAW, or if the socket is unbound, one call is enough and the socket is never without a device.
        if not (replaceable and _keeps_its_port(sock)):
            try:
                _set_device(sock, interface.index)
            except OSError as error:
                if error.errno != errno.EPERM:
                    fail(error, "SO_BINDTOIFINDEX", interface)
            else:
                return
    _rebind_and_connect(sock, interface, connected or peer, port, bind_port if replaceable else bind_by_number)


def _rebind_and_connect(
    sock: socket.socket,
    interface: Interface | None,
    peer: Sockaddr | None,
    port: int | None,
    bind_to: Callable[[socket.socket, Sockaddr, int], None] = bind_by_number,
) -> None:
    """Disconnect the socket, which removes its device and an automatic port, then set device, port and peer again.

    The device is set before the port. So between bind() and connect(), when the socket receives from any sender, packets can only
    arrive on the new device; the transport must compare their senders with the peer. A port that the program chose explicitly
    stays on the socket; between the first two steps, 2 µs, it receives on every device.
    """
    port = port or sock.getsockname()[1]
    step = "connect(AF_UNSPEC)"
    try:
        _disconnect(sock)
        if interface is not None:
            step = "SO_BINDTOIFINDEX"
            try:
                _set_device(sock, interface.index)
            except OSError:
                _forbid_sending(sock)
                raise
        # A port or an address that the program chose explicitly is still bound (bind() would fail with EINVAL).
        left = sock.getsockname()
        if port and not left[1]:
            step = "bind"
            bind_to(sock, left, port)
        if peer is not None:
            step = "connect"
            sock.connect(rescoped(peer, interface))
    except OSError as error:
        fail(error, step, interface)


def _move_stream(sock: socket.socket, interface: Interface, peer: Sockaddr | None) -> None:
    if peer is not None and bound(sock) == interface.index:
        _start_again(sock, interface, peer)
        return
    # With another local address, answers would arrive on the old interface, match no socket and be answered with a reset.
    check_local_address(sock, interface, "SO_BINDTOIFINDEX")
    if bound(sock) == interface.index:
        return
    try:
        _set_device(sock, interface.index)
    except OSError as error:
        fail(error, "SO_BINDTOIFINDEX", interface)


def _start_again(sock: socket.socket, interface: Interface, peer: Sockaddr) -> None:
    """Give up a connect that is under way, and start another one, for which the kernel chooses the source address anew.

    The socket stays bound to its device (``net/ipv4/tcp.c``, tcp_disconnect).
    """
    step = "connect(AF_UNSPEC)"
    try:
        _disconnect(sock)
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # removes the error of the connect that was given up
        step = "connect"
        with contextlib.suppress(BlockingIOError):
            _connect(sock, rescoped(peer, interface))
    except OSError as error:
        fail(error, step, interface)


def abort(sock: socket.socket) -> None:
    """Reset a stream socket (``net/ipv4/tcp.c``, tcp_disconnect). It stays bound to its device, so it cannot be used again.

    :raises OSError: the socket is closed
    """
    _disconnect(sock)


def source(interface: Interface, remote: IPAddress) -> IPAddress:
    """The source address that the kernel chooses for a socket bound to the interface and connected to the remote address.

    :raises OSError: there is no route
    """
    with socket.socket(family_of(remote), socket.SOCK_DGRAM) as sock:
        _set_device(sock, interface.index)
        sock.connect((str(remote), 9))  # sends nothing
        return ipaddress.ip_address(sock.getsockname()[0].split("%", 1)[0])


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Let a stream socket fail when its peer has been silent for that many seconds.

    TCP_USER_TIMEOUT applies while data is unacknowledged. On an idle connection it applies from the first keep-alive probe on
    (``net/ipv4/tcp_timer.c``, tcp_keepalive_timer), which is sent after half of the time.

    :raises OSError: the kernel refused
    """
    timing = keep_alive(seconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPIDLE, timing.idle)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPINTVL, timing.interval)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPCNT, timing.probes)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))
    except OSError as error:
        # Multipath sockets do not have this option, only the probes of an idle connection (net/mptcp/sockopt.c).
        if sock.proto != mptcp.IPPROTO_MPTCP or error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise


def probe(sock: socket.socket) -> Callable[[], None]:
    """See :func:`bindsock.kernel.sockets.probe`."""
    tcp = socket.IPPROTO_TCP
    return shared.probe(sock, (tcp, _TCP_KEEPIDLE), (tcp, _TCP_KEEPINTVL), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))


def needs_lingering_close(sock: socket.socket) -> bool:
    """Whether, once the socket is closed, the kernel would answer the peer's FIN by the routing table instead of the socket's
    device.

    IPv6 does this in TIME_WAIT, the state of the side that closes first (``net/ipv6/tcp_ipv6.c``, tcp_v6_send_response). With
    unread data ``close()`` sends a reset instead, by the socket's own device (``net/ipv4/tcp.c``, __tcp_close).
    Both sides end the subflows of a multipath connection when its stream has ended, whichever side ended that first.
    """
    if sock.family != socket.AF_INET6 or sock.type != socket.SOCK_STREAM:
        return False
    try:
        if sock.proto == mptcp.IPPROTO_MPTCP and (alive := mptcp.subflows_not_ended(sock)) is not None:
            return any(address.version == 6 for address in alive) and bound(sock) is not None and not _has_unread(sock)
        if sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] not in _CLOSES_FIRST:
            return False
        if bound(sock) is None or sock.getpeername()[0].startswith("::ffff:"):
            return False
        return not any(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    except OSError:
        return False


def has_finished(sock: socket.socket) -> bool:
    """Whether the peer has ended its stream and has acknowledged everything from here, but for a FIN."""
    poll = select.poll()
    try:
        poll.register(sock, _POLLRDHUP)
        events = poll.poll(0)
        if not events or not events[0][1] & _POLLRDHUP or events[0][1] & select.POLLERR:
            return False
        left = shared.unacknowledged(sock)
    except (OSError, ValueError):  # closed
        return False
    return left <= bool(events[0][1] & select.POLLHUP)


def _has_unread(sock: socket.socket) -> bool:
    """Whether data waits to be read. FIONREAD counts the end of a multipath connection, too (``net/mptcp/protocol.c``)."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def activity(sock: socket.socket) -> object:
    """The bytes acknowledged, received, and sent without retransmissions; ``None`` if the kernel does not tell.

    ``struct tcp_info``: ``include/uapi/linux/tcp.h``; ``struct mptcp_info``: ``include/uapi/linux/mptcp.h``.
    """
    try:
        if sock.proto == mptcp.IPPROTO_MPTCP:
            with contextlib.suppress(OSError):  # It fell back to plain TCP.
                info = sock.getsockopt(mptcp.SOL_MPTCP, mptcp.MPTCP_INFO, 40)
                # write_seq, snd_una, rcv_nxt
                return struct.unpack_from("=QQQ", info, 16) if len(info) >= 40 else None
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 216)
    except OSError:
        return None
    if len(info) < 136:  # Linux before 4.1
        return None
    acknowledged, received = struct.unpack_from("=QQ", info, 120)
    if len(info) < 216:  # before 4.19
        return acknowledged, received
    sent, again = struct.unpack_from("=QQ", info, 200)
    return acknowledged, received, sent - again


def _is_datagram(sock: socket.socket) -> bool:
    return _type(sock) == _SOCK_DGRAM


def _check(sock: socket.socket, interface: Interface) -> None:
    """Check the socket and the index, since ``SO_BINDTOIFINDEX`` accepts unknown indices, and 0 unbinds."""
    if sock.fileno() < 0:
        fail(_error(errno.EBADF), "SO_BINDTOIFINDEX", interface, "the socket is closed")
    try:
        _request(sock, interface.index)
    except OSError as error:
        fail(error, "SIOCGIFNAME", interface)


def _name(sock: socket.socket, index: int) -> bytes:
    """The present name of the interface, in the socket's network namespace."""
    name: bytes = _IFREQ.unpack(_request(sock, index))[0]
    return name.split(b"\0", 1)[0]


def _request(sock: socket.socket, index: int) -> bytes:
    answer: bytes = fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index))
    return answer


def _set_device(sock: socket.socket, index: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, index)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    else:
        return
    # Linux before 5.0 only accepts names.
    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, _name(sock, index) if index else b"")


def _forbid_sending(sock: socket.socket) -> None:
    """Make all further sends fail with EPIPE, since the socket has lost its device and must not send unbound.

    On an unconnected socket shutdown() fails with ENOTCONN but has its effect (``linux net/ipv4/af_inet.c``, inet_shutdown).
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


_libc = ctypes.CDLL(None, use_errno=True)
_AF_UNSPEC_ADDRESS = bytes(16)


def _disconnect(sock: socket.socket) -> None:
    """connect() to an address of family AF_UNSPEC, which :mod:`socket` cannot express."""
    if _libc.connect(sock.fileno(), _AF_UNSPEC_ADDRESS, len(_AF_UNSPEC_ADDRESS)) == -1:
        raise _error(ctypes.get_errno())
