"""sock_diag: listing the subflows of all multipath connections, and ending one.

Layouts and numbers are those of ``include/uapi/linux/inet_diag.h``, ``sock_diag.h`` and ``mptcp.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.linux import netlink
from bindsock.model.network import IPAddress, family_of, unmapped
from bindsock.model.subflows import Subflow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bindsock.kernel.linux.netlink import Channel

_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_DIAG_REQUEST = struct.Struct("=BBBBI")
_DIAG_ENTRY = struct.Struct("=BB2x2s2s16s16sI28x")
"""From ``struct inet_diag_msg``: family, state, both ports and addresses, and the interface that the socket is bound to."""
_DIAG_ULP_INFO = 19
_DIAG_WITH_INFO = 1 << 1
"""Ask for INET_DIAG_INFO, since INET_DIAG_ULP_INFO only comes with it (``net/ipv4/inet_diag.c``, inet_sk_diag_fill)."""
_ULP_INFO_MPTCP = 3
_SUBFLOW_ATTR_TOKEN_LOC = 2
_SUBFLOW_ATTR_FLAGS = 8
_FLAG_FULLY_ESTABLISHED = 1 << 6
_ANY_STATE = 0xFFFFFFFF
_AT_ONCE = 32
"""How many entries of a list are parsed before another thread gets the interpreter."""
_PAUSE = 1e-6
"""Seconds for which it gets it. Without a pause, the thread of the event loop would wait for up to 5 ms each time
(``sys.getswitchinterval()``)."""
_ANY_COOKIE = 0xFFFFFFFF

GONE = (errno.ENOENT, errno.ESRCH)
"""Errors that mean that the subflow has already ended; the peer may have been quicker."""

_TCP_ESTABLISHED = 1
_TCP_OVER = (6, 7)
"""TIME_WAIT and CLOSE."""
_NOT_OVER = _ANY_STATE & ~sum(1 << state for state in _TCP_OVER)


class ListedSubflow(NamedTuple):
    """A subflow of any program's connection."""

    token: int
    subflow: Subflow
    established: bool
    bound: int
    """The index of the interface that it is bound to; 0 if it is bound to none."""

    @property
    def address(self) -> IPAddress:
        """The local address."""
        return self.subflow.local


def subflows(channel: Channel) -> list[ListedSubflow]:
    """The subflows of all multipath connections in the network namespace (``net/mptcp/diag.c``)."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _DIAG_REQUEST.pack(family, socket.IPPROTO_TCP, _DIAG_WITH_INFO, 0, _NOT_OVER) + bytes(48)
        for number, entry in enumerate(channel.dump(_SOCK_DIAG_BY_FAMILY, request), 1):
            if number % _AT_ONCE == 0:
                time.sleep(_PAUSE)
            of, state, local_port, remote_port, local, remote, bound = netlink.fixed(_DIAG_ENTRY, entry)
            token = _multipath_attributes(entry).get(_SUBFLOW_ATTR_TOKEN_LOC)
            if token is not None and state not in _TCP_OVER:
                subflow = Subflow(
                    _address(of, local),
                    int.from_bytes(local_port, "big"),
                    _address(of, remote),
                    int.from_bytes(remote_port, "big"),
                )
                found.append(ListedSubflow(netlink.u32(token), subflow, state == _TCP_ESTABLISHED, bound))
    return found


def bound(channel: Channel, subflow: Subflow, likely: Iterable[int | None]) -> int | None:
    """The index of the interface that a subflow is bound to; 12 µs if it is the first likely one, 2 ms if it is none of them.

    :param likely: indices to try first: the kernel finds a bound socket only by its own interface, even if that was deleted
    :return: 0 if the subflow is bound to no interface; ``None`` if there is no such subflow
    """
    for index in _candidates(likely):
        try:
            answer = channel.ask(_SOCK_DIAG_BY_FAMILY, _connection(subflow, index))
        except OSError as error:
            if error.errno not in GONE:
                raise
        else:
            return int(netlink.fixed(_DIAG_ENTRY, answer.payload)[-1])
    seen = subflows(channel)
    return next((s.bound for s in seen if s.subflow == subflow), None)


def is_confirmed(channel: Channel, subflow: Subflow, index: int) -> bool:
    """Whether the peer has confirmed a subflow, half a round trip after it was established; 15 µs.

    Before that, every packet repeats the join (``net/mptcp/options.c``, mptcp_established_options_mp).

    :param index: the index of the interface that it is bound to
    """
    try:
        answer = channel.ask(_SOCK_DIAG_BY_FAMILY, _connection(subflow, index, _DIAG_WITH_INFO))
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    flags = _multipath_attributes(answer.payload).get(_SUBFLOW_ATTR_FLAGS, bytes(4))
    return bool(netlink.u32(flags) & _FLAG_FULLY_ESTABLISHED)


def reset(channel: Channel, subflow: Subflow, likely: Iterable[int | None]) -> None:
    """End one TCP connection, as ``ss -K`` does (``net/ipv4/tcp_diag.c``, tcp_diag_destroy).

    :param likely: indices to try, since the kernel finds a bound socket only by its own interface
    """
    for index in _candidates(likely):
        try:
            channel.tell(_SOCK_DESTROY, _connection(subflow, index))
        except OSError as error:
            if error.errno not in GONE:
                raise
        else:
            return


def _candidates(likely: Iterable[int | None]) -> Iterable[int]:
    """By 0, which comes last, the kernel finds an unbound socket, as by any other index."""
    return dict.fromkeys([*filter(None, likely), 0])


def _multipath_attributes(entry: bytes) -> dict[int, bytes]:
    protocols = netlink.attributes(netlink.attributes(entry, _DIAG_ENTRY.size).get(_DIAG_ULP_INFO, b""))
    return netlink.attributes(protocols.get(_ULP_INFO_MPTCP, b""))


def _address(family: int, packed: bytes) -> IPAddress:
    return unmapped(ip_address(packed[: 4 if family == socket.AF_INET else 16]))


def _connection(subflow: Subflow, index: int, extensions: int = 0) -> bytes:
    """``struct inet_diag_req_v2`` of ``include/uapi/linux/inet_diag.h``."""
    return b"".join(
        (
            _DIAG_REQUEST.pack(family_of(subflow.local), socket.IPPROTO_TCP, extensions, 0, _ANY_STATE),
            struct.pack("!HH", subflow.local_port, subflow.remote_port),
            subflow.local.packed.ljust(16, b"\0"),
            subflow.remote.packed.ljust(16, b"\0"),
            struct.pack("=III", index, _ANY_COOKIE, _ANY_COOKIE),
        )
    )
