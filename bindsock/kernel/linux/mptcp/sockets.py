"""Multipath sockets: whether multipath was negotiated, the subflows, and their receive buffers.

Nothing here needs a privilege. Layouts and numbers are those of ``include/uapi/linux/mptcp.h`` and ``tcp.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from bindsock.errors import KernelError
from bindsock.kernel import sockets as shared
from bindsock.model.network import IPAddress, unmapped
from bindsock.model.subflows import Subflow, Traffic

IPPROTO_MPTCP = 262
SOL_MPTCP = 284
MPTCP_INFO = 1
_MPTCP_TCPINFO = 2
_MPTCP_SUBFLOW_ADDRS = 3
_TOKEN = struct.Struct("=12xI")
_SUBFLOW_DATA = struct.Struct("=IIII")
_SO_PROTOCOL = 38
_SO_RCVBUFFORCE = 33
_ADDRESS_SIZE = 128
"""The size of ``struct sockaddr_storage``."""
_MOST_SUBFLOWS = 32

_TCP_INFO = struct.Struct("=B23xI24xII8xI20xI48xI")
"""The state, the unacknowledged segments, the milliseconds since data and since an acknowledgement were received, the
microseconds of a round trip as a sender and as a receiver of data, and the bytes that are not sent yet (Linux 4.6)."""
_ESTABLISHED = 1
_ALIVE = (1, 2, 3)
"""ESTABLISHED, SYN_SENT and SYN_RECV."""
_NOT_ENDED = (1, 4, 5)
"""ESTABLISHED, FIN_WAIT1 and FIN_WAIT2: the peer's FIN has not arrived."""


class State(NamedTuple):
    """A subflow and its state."""

    subflow: Subflow
    established: bool
    silence: float
    """Seconds since anything was received over it."""


def protocol(family: int = socket.AF_INET) -> int | None:
    """``IPPROTO_MPTCP`` if the kernel has it and it is switched on, else ``None``.

    Before Linux 5.16 it is ``None``, too, since those kernels do not list a connection's subflows.
    """
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
        _list(sock, _MPTCP_SUBFLOW_ADDRS, 2 * _ADDRESS_SIZE)
        return IPPROTO_MPTCP
    return None


def states(sock: socket.socket) -> list[State] | None:
    """The subflows that are established or being established.

    :return: ``None`` if the socket is no multipath socket, is not connected or has fallen back to TCP
    """
    entries = _entries(sock)
    if entries is None:
        return None
    found = []
    for entry, info in entries:
        state, _, data, acknowledgement, *_ = _TCP_INFO.unpack(info)
        # The first subflow stays in the list after its end, and while the peer does not answer its end (net/mptcp/protocol.c,
        # __mptcp_close_ssk).
        if state in _ALIVE:
            subflow = Subflow(*_address(entry, 0), *_address(entry, _ADDRESS_SIZE))
            found.append(State(subflow, state == _ESTABLISHED, min(data, acknowledgement) / 1000))
    return found


def subflows_not_ended(sock: socket.socket) -> list[IPAddress] | None:
    """The remote addresses of the subflows whose peer has not sent its FIN, also after the end of the stream.

    :return: ``None`` as for :func:`states`
    """
    entries = _entries(sock)
    if entries is None:
        return None
    return [_address(entry, _ADDRESS_SIZE)[0] for entry, info in entries if _TCP_INFO.unpack(info)[0] in _NOT_ENDED]


def traffic(sock: socket.socket, address: IPAddress) -> Traffic | None:
    """What is under way by the established subflows with a local address; ``None`` if there are none."""
    found = [
        Traffic(bool(unacknowledged or unsent), data / 1000, acknowledgement / 1000, max(sending, receiving) / 1e6)
        for entry, info in _entries(sock) or ()
        for state, unacknowledged, data, acknowledgement, sending, receiving, unsent in [_TCP_INFO.unpack(info)]
        if state == _ESTABLISHED and _address(entry, 0)[0] == address
    ]
    if not found:
        return None
    return Traffic(
        any(traffic.pending for traffic in found),
        min(traffic.silence for traffic in found),
        min(traffic.unanswered for traffic in found),
        max(traffic.round_trip for traffic in found),
    )


def addresses_ending(sock: socket.socket) -> set[IPAddress]:
    """The local addresses of the subflows that have ended, or are ending, and that the kernel has not removed yet."""
    entries = _entries(sock) or ()
    return {_address(entry, 0)[0] for entry, info in entries if _TCP_INFO.unpack(info)[0] not in _ALIVE}


def _entries(sock: socket.socket) -> list[tuple[bytes, bytes]] | None:
    """Addresses and ``tcp_info`` of each subflow."""
    if not _is_multipath(sock):
        return None
    try:
        addresses = _list(sock, _MPTCP_SUBFLOW_ADDRS, 2 * _ADDRESS_SIZE)
        infos = _list(sock, _MPTCP_TCPINFO, _TCP_INFO.size)
    except OSError as error:
        # ENOPROTOOPT is IPv6's answer after a fallback (net/ipv6/ipv6_sockglue.c, ipv6_getsockopt).
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENOTCONN, errno.EINVAL):
            raise
        return None
    return list(zip(addresses, infos, strict=False))


def token(sock: socket.socket) -> int:
    """The number by which the path manager knows the connection.

    :raises OSError: the socket is no multipath socket
    """
    info = sock.getsockopt(SOL_MPTCP, MPTCP_INFO, 64)
    if len(info) < _TOKEN.size:
        raise KernelError("mptcp_info is too short for a token")
    return int(_TOKEN.unpack_from(info)[0])


def unacknowledged(sock: socket.socket) -> bool:
    """Whether written data waits to be acknowledged."""
    try:
        return shared.unacknowledged(sock) != 0
    except OSError:
        return False


def level_receive_buffers(sock: socket.socket) -> None:
    """Give a subflow that has joined late as large a receive buffer as the connection has.

    A subflow begins with the small buffer of any new connection. The kernel enlarges it only when the buffer of the whole
    connection grows, which already has its final size (``net/mptcp/protocol.c``, mptcp_rcv_space_adjust). The announced window
    shrinks to what the subflow can take, and a burst fills it. If the last acknowledgement of the burst is sent before the
    program has read the data, nothing announces free space: the peer waits for its retransmission timer, 200 ms and more
    (seen on 6.18, in three of four downloads).

    ``SO_RCVLOWAT`` above the capacity of the buffers enlarges all of them at once, and does not fix their size as ``SO_RCVBUF``
    would (``net/mptcp/sockopt.c``, mptcp_set_rcvlowat, Linux 6.7). The kernel does not tell the capacity, so the option is
    raised in small steps. This can enlarge a buffer to half of the maximum (``net.ipv4.tcp_rmem``); the size of a larger one is
    fixed by ``SO_RCVBUFFORCE``, which needs CAP_NET_ADMIN outside of user namespaces.
    """
    with contextlib.suppress(OSError):
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if not _enlarge(sock, before) and before >= _largest_receive_buffer() // 2:
            # The kernel doubles the value.
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, before // 2)


def _enlarge(sock: socket.socket, size: int) -> bool:
    mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    try:
        for sixteenths in range(4, 18):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size * sixteenths // 16)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > size:
                return True
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
    return False


def _largest_receive_buffer() -> int:
    return int(Path("/proc/sys/net/ipv4/tcp_rmem").read_bytes().split()[2])


_libc = ctypes.CDLL(None, use_errno=True)


def _is_multipath(sock: socket.socket) -> bool:
    """Ask the kernel for the protocol, since ``sock.proto`` may differ: a BPF program (``mptcpize``) can change it."""
    if isinstance(sock, socket.socket):
        try:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == IPPROTO_MPTCP
        except OSError:
            return False
    # uvloop's wrapper of a transport's socket cannot read this option.
    number, length = ctypes.c_int(), ctypes.c_uint32(4)
    failed = _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PROTOCOL, ctypes.byref(number), ctypes.byref(length))
    return not failed and number.value == IPPROTO_MPTCP


def _list(sock: socket.socket, option: int, size: int) -> list[bytes]:
    """The entries of an option that begins with ``struct mptcp_subflow_data``.

    The caller must pass that struct in, to tell which version it knows. Python's getsockopt() cannot do this.
    """
    buffer = ctypes.create_string_buffer(_SUBFLOW_DATA.size + _MOST_SUBFLOWS * size)
    _SUBFLOW_DATA.pack_into(buffer, 0, _SUBFLOW_DATA.size, 0, 0, size)
    length = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(sock.fileno(), SOL_MPTCP, option, buffer, ctypes.byref(length)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    head, count, _, _ = _SUBFLOW_DATA.unpack_from(buffer, 0)
    raw = buffer.raw
    return [raw[head + n * size : head + (n + 1) * size] for n in range(min(count, _MOST_SUBFLOWS))]


def _address(entry: bytes, offset: int) -> tuple[IPAddress, int]:
    (family,) = struct.unpack_from("=H", entry, offset)
    (port,) = struct.unpack_from("!H", entry, offset + 2)
    if family == socket.AF_INET:
        return IPv4Address(entry[offset + 4 : offset + 8]), port
    return unmapped(IPv6Address(entry[offset + 8 : offset + 24])), port
