"""Binding a socket to an interface, moving a datagram socket to another, and what a stream socket says of itself.

All of it works without privilege: the first ``SO_BINDTOIFINDEX`` of a socket needs none (Linux 5.7, ``net/core/sock.c``,
sock_bindtoindex_locked), and ``connect(AF_UNSPEC)`` makes a datagram socket's next one the first again (``net/ipv4/udp.c``,
__udp_disconnect).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import termios
from typing import TYPE_CHECKING

from bindsock.errors import BindFailed
from bindsock.kernel.chosen import multicast_options
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.sockets import check_local_address, fail, keep_alive, rescoped
from bindsock.model.network import family_of

if TYPE_CHECKING:
    from bindsock.kernel.sockets import Sockaddr
    from bindsock.model.network import Interface, IPAddress

_SO_BINDTODEVICE = 25
_SO_MARK = 36
_SO_BINDTOIFINDEX = 62
_IP_UNICAST_IF = 50
_IPV6_UNICAST_IF = 76
_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("@16si20x")
_TCP_KEEPIDLE = 4
_TCP_KEEPINTVL = 5
_TCP_KEEPCNT = 6
_TCP_INFO = 11
_CLOSES_FIRST = frozenset({1, 4, 5})
"""TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2: the peer has not ended the connection yet (``include/net/tcp_states.h``)."""
_TCP_LINGER2 = 8
_LONGEST_END = 120
"""Seconds in FIN_WAIT2, the most that the kernel takes (``include/net/tcp.h``, TCP_FIN_TIMEOUT_MAX)."""
_TCP_USER_TIMEOUT = 18


def bind(sock: socket.socket, interface: Interface) -> None:
    """Bind a socket that has not been bound to an interface, or to this one already.

    :raises BindFailed: with the call and the errno
    """
    _check(sock, interface)
    try:
        _set_device(sock, interface.index)
    except OSError as error:
        # Set again without privilege it is EPERM, even to what it is.
        if error.errno != errno.EPERM or bound(sock) != interface.index:
            fail(error, "SO_BINDTOIFINDEX", interface)
    if sock.family == socket.AF_INET6 and sock.type == socket.SOCK_STREAM:
        _stay_whole(sock)


def _stay_whole(sock: socket.socket) -> None:
    """Let the kernel keep a whole socket for a minute after it is closed, by whomever, to acknowledge the peer's FIN.

    What it keeps otherwise, once its own FIN is acknowledged, answers by the routes (``net/ipv6/tcp_ipv6.c``,
    tcp_v6_send_response). FIN_WAIT2 is spent as a whole socket but for its last minute (``net/ipv4/tcp_input.c``,
    tcp_rcv_state_process; ``include/net/tcp.h``, TCP_TIMEWAIT_LEN).
    """
    with contextlib.suppress(OSError):  # a multipath socket has no such option
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_LINGER2, _LONGEST_END)


def mark(sock: socket.socket, number: int, interface: Interface) -> None:
    """Give a socket a firewall mark, by which policy rules and firewalls know its packets.

    :param interface: that it is bound to, for the error
    :raises BindFailed: without CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, number)
    except OSError as error:
        fail(error, "SO_MARK", interface)


def unbind(sock: socket.socket) -> None:
    """Take the interface off a socket. A connected datagram socket connects again, since its source address is the interface's.

    :raises BindFailed: a stream socket, without privilege
    """
    try:
        if _is_datagram(sock):
            try:
                peer = sock.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
            else:
                _rebind_and_connect(sock, None, peer, None)
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
    """The index of the interface that the socket is bound to; -1 if it is gone and the kernel, before 5.0, tells no index.

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


def rebind(sock: socket.socket, interface: Interface, peer: Sockaddr | None, port: int | None) -> None:
    """Move a datagram socket to the interface: descriptor, port, queue and peer are kept.

    A stream socket is moved only if its local address is the interface's, which takes CAP_NET_RAW.

    :param peer: what the caller knows the socket to be connected to, for when an earlier call failed half-way
    :param port: the local port likewise
    :raises BindFailed: with the call and the errno; the socket is bound to some interface, or can send no more
    """
    _check(sock, interface)
    if not _is_datagram(sock):
        _move_stream(sock, interface)
        return
    try:
        connected = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            fail(error, "getpeername", interface)
        connected = None
    if connected is None and peer is None and (port is None or sock.getsockname()[1]):
        # Not connected: its source is chosen for each datagram, there is nothing to renew but the device. With CAP_NET_RAW, or
        # if it has none yet, there is no moment without one.
        if bound(sock) == interface.index:
            return
        try:
            _set_device(sock, interface.index)
        except OSError as error:
            if error.errno != errno.EPERM:
                fail(error, "SO_BINDTOIFINDEX", interface)
        else:
            return
    _rebind_and_connect(sock, interface, connected or peer, port)


def _rebind_and_connect(sock: socket.socket, interface: Interface | None, peer: Sockaddr | None, port: int | None) -> None:
    """Disconnect, which takes the device and an automatic port off the socket, and give it all anew.

    The device comes before the port: from the moment that the port is open to everybody until the connect(), strangers can
    only come in by the new device. The peer, too, is a stranger until then, so that the transport must compare sources. A
    port that was asked for explicitly stays on the socket and hears every device between the first two steps, 2 µs.
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
        # What is left is what somebody asked for: such a port is still bound (bind() says EINVAL), and such an address, too.
        left = sock.getsockname()
        if port and not left[1]:
            step = "bind"
            sock.bind((left[0], port, *left[2:]))
        if peer is not None:
            step = "connect"
            sock.connect(rescoped(peer, interface))
    except OSError as error:
        fail(error, step, interface)


def _move_stream(sock: socket.socket, interface: Interface) -> None:
    # Answers to another address would come in by the old interface, match no socket and be answered with a reset.
    check_local_address(sock, interface, "SO_BINDTOIFINDEX")
    if bound(sock) == interface.index:
        return
    try:
        _set_device(sock, interface.index)
    except OSError as error:
        fail(error, "SO_BINDTOIFINDEX", interface)


def abort(sock: socket.socket) -> None:
    """Reset a stream socket (``net/ipv4/tcp.c``, tcp_disconnect). It keeps its device, so that it could not be used again anyway.

    :raises OSError: the socket is closed
    """
    _disconnect(sock)


def source(interface: Interface, remote: IPAddress) -> IPAddress:
    """The address that the kernel would give a socket that is bound to the interface and connected to the remote address.

    :raises OSError: none; there is no route
    """
    with socket.socket(family_of(remote), socket.SOCK_DGRAM) as sock:
        _set_device(sock, interface.index)
        sock.connect((str(remote), 9))  # sends nothing
        return ipaddress.ip_address(sock.getsockname()[0].split("%", 1)[0])


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Let a stream socket fail after so much silence.

    TCP_USER_TIMEOUT counts while something is unacknowledged; at rest it does so only from the first keep-alive probe on
    (``net/ipv4/tcp_timer.c``, tcp_keepalive_timer), which comes after half of the time.

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
        # A multipath socket has none, only the probes, and those only at rest (net/mptcp/sockopt.c).
        if sock.proto != mptcp.IPPROTO_MPTCP or error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise


def needs_lingering_close(sock: socket.socket) -> bool:
    """Whether the kernel would answer the peer's FIN by the routes once the socket is closed.

    That is what TIME_WAIT does for IPv6, which follows if this side closes first (``net/ipv6/tcp_ipv6.c``, tcp_v6_send_response).
    With unread data ``close()`` sends a reset instead, by the socket's own device (``net/ipv4/tcp.c``, __tcp_close).
    """
    if sock.family != socket.AF_INET6 or sock.type != socket.SOCK_STREAM or sock.proto not in (0, socket.IPPROTO_TCP):
        return False
    try:
        if sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] not in _CLOSES_FIRST:
            return False
        if bound(sock) is None or sock.getpeername()[0].startswith("::ffff:"):
            return False
        return not any(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    except OSError:
        return False


def activity(sock: socket.socket) -> object:
    """The bytes that were acknowledged, received and sent for the first time; ``None`` if the kernel does not tell.

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
    return sock.type == socket.SOCK_DGRAM


def _check(sock: socket.socket, interface: Interface) -> None:
    """``SO_BINDTOIFINDEX`` takes an index that nothing has, and 0 to unbind: neither is meant."""
    if sock.fileno() < 0:
        fail(_error(errno.EBADF), "SO_BINDTOIFINDEX", interface, "the socket is closed")
    try:
        _name(sock, interface.index)
    except OSError as error:
        fail(error, "SIOCGIFNAME", interface)


def _name(sock: socket.socket, index: int) -> bytes:
    """The present name of the interface, in the namespace of the socket."""
    name: bytes = _IFREQ.unpack(fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index)))[0]
    return name.split(b"\0", 1)[0]


def _set_device(sock: socket.socket, index: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, index)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    else:
        return
    # Linux before 5.0 knows names alone.
    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, _name(sock, index) if index else b"")


def _forbid_sending(sock: socket.socket) -> None:
    """The socket has lost its device and gets none: it must not send. Its sends are EPIPE from here on.

    On a socket that is not connected shutdown() reports ENOTCONN and works nevertheless (``linux net/ipv4/af_inet.c``,
    inet_shutdown).
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
