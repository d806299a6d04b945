"""Telling the kernel's multipath path manager which subflows a connection is to have. It takes CAP_NET_ADMIN.

There are two path managers, chosen by ``net.mptcp.pm_type`` when a socket is made:

* The userspace one (``net/mptcp/pm_userspace.c``) is told of one connection, by its token.
* The in-kernel one (``net/mptcp/pm_kernel.c``) knows endpoints: local addresses that all multipath connections of the network
  namespace get subflows from, those of other programs, too. So an endpoint that this process has added goes when no connection
  of its own needs it; and since the kernel ends every subflow with the address of an endpoint that goes, it stays if another
  program has a connection that began on that address. A connection that has left such an address cannot come back to it: the
  kernel makes one subflow of an endpoint, and another only when the endpoint is made again.

The generic netlink family ``mptcp_pm`` and its numbers are those of ``include/uapi/linux/mptcp_pm.h``.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import struct
import weakref
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bindsock.kernel.linux import mptcp, netlink, sockets
from bindsock.kernel.linux.netlink import Channel
from bindsock.network import IPAddress, unmapped
from bindsock.subflows import Endpoints, Subflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.network import Interface

_logger = logging.getLogger("bindsock")

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_GENERIC_HEADER = struct.Struct("=BBH")
_VERSION = 1
_U16 = struct.Struct("=H")

_CMD_ADD_ADDR = 1
_CMD_DEL_ADDR = 2
_CMD_GET_ADDR = 3
_CMD_GET_LIMITS = 6
_CMD_REMOVE = 9
_CMD_SUBFLOW_CREATE = 10
_CMD_SUBFLOW_DESTROY = 11
_ATTR_ADDR = 1
_ATTR_RCV_ADD_ADDRS = 2
_ATTR_TOKEN = 4
_ATTR_LOC_ID = 5
_ATTR_ADDR_REMOTE = 6
_ADDR_FAMILY = 1
_ADDR_ID = 2
_ADDR_ADDR4 = 3
_ADDR_ADDR6 = 4
_ADDR_PORT = 5
_ADDR_FLAGS = 6
_ADDR_IF_IDX = 7
_FLAG_SUBFLOW = 1 << 1
_FLAG_IMPLICIT = 1 << 4
"""The kernel's own note of an address that has been used. No subflow comes of it."""

_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_INET_DIAG_REQ_PROTOCOL = 3
_DIAG_REQUEST = struct.Struct("=BBBBI")
_DIAG_ENTRY = struct.Struct("!B3xH2x16s")
"""Of ``struct inet_diag_msg``: family, local port and local address."""
_ANY_STATE = 0xFFFFFFFF
_ANY_COOKIE = 0xFFFFFFFF

_GONE = (errno.ENOENT, errno.ESRCH)
"""What is to be ended has ended: the peer, once told, may have been quicker."""


class _Endpoint(NamedTuple):
    address: IPAddress
    identifier: int
    flags: int
    attributes: bytes
    """All that the kernel says of it, as it can be told to it again."""


@dataclass(eq=False)
class _Connection:
    """A connection of this process."""

    token: int
    origin: tuple[IPAddress, int]
    """Address and port of its first subflow, by which the kernel goes on to list it."""
    userspace: bool
    identifiers: dict[IPAddress, int] = field(default_factory=dict)
    """By local address; 0 is the first subflow's."""
    indexes: dict[IPAddress, int] = field(default_factory=dict)
    """The interfaces that the subflows were bound to, by local address."""
    left: set[IPAddress] = field(default_factory=set)


class PathManager:
    """The :class:`bindsock.kernel.PathManager` of Linux."""

    def __init__(self) -> None:
        self._generic = Channel(functools.partial(netlink.open_query_socket, netlink.NETLINK_GENERIC))
        self._diagnosis = Channel(functools.partial(netlink.open_query_socket, netlink.NETLINK_SOCK_DIAG))
        self._family: int | None = None
        self._connections: weakref.WeakKeyDictionary[socket.socket, _Connection] = weakref.WeakKeyDictionary()
        self._finalizers: weakref.WeakKeyDictionary[socket.socket, Callable[[], object]] = weakref.WeakKeyDictionary()
        self._added: set[IPAddress] = set()
        """The endpoints that this process has added."""
        self._past: set[tuple[IPAddress, int]] = set()
        """Origins of connections of this process that are over; the kernel lists them for some time yet."""

    def protocol(self) -> int | None:
        """``IPPROTO_MPTCP``."""
        return mptcp.protocol()

    def endpoints(self) -> Endpoints:
        """Ask the in-kernel path manager, if it is the one. No privilege is needed."""
        if _is_userspace():
            return Endpoints()
        limits = netlink.attributes(self._ask(_CMD_GET_LIMITS), _GENERIC_HEADER.size)
        return Endpoints(
            tuple(endpoint.address for endpoint in self._endpoints() if not endpoint.flags & _FLAG_IMPLICIT),
            follows_peer=bool(netlink.u32(limits.get(_ATTR_RCV_ADD_ADDRS, bytes(4)))),
        )

    def subflows(self, sock: socket.socket) -> tuple[Subflow, ...] | None:
        """Ask the socket, 5 µs. No privilege is needed."""
        states = mptcp.states(sock)
        return tuple(state.subflow for state in states if state.established) if states is not None else None

    def silence(self, sock: socket.socket) -> float:
        """By each subflow's ``tcp_info``."""
        if not mptcp.unacknowledged(sock):
            return 0.0
        return min((state.silence for state in mptcp.states(sock) or () if state.established), default=float("inf"))

    def register(self, sock: socket.socket) -> None:
        """Note its token, and by which path manager it goes."""
        self._known(sock)

    def add(self, sock: socket.socket, interface: Interface) -> IPAddress:
        """Order a subflow, 0.4 ms."""
        connection = self._known(sock)
        peer = sock.getpeername()
        remote, port = unmapped(ip_address(peer[0].split("%", 1)[0])), peer[1]
        local = sockets.source(interface, remote)
        if self._remaining(sock, local):
            return local
        if connection.userspace:
            # Of an address that has been used before the number is kept, or the kernel refuses.
            used = connection.identifiers.values()
            identifier = connection.identifiers.setdefault(local, max(used, default=0) % 255 + 1)
            self._tell(
                _CMD_SUBFLOW_CREATE,
                netlink.attribute_u32(_ATTR_TOKEN, connection.token),
                _address(_ATTR_ADDR, local, identifier=identifier, index=interface.index),
                _address(_ATTR_ADDR_REMOTE, remote, port=port),
            )
        else:
            self._add_endpoint(local, interface)
        connection.indexes[local] = interface.index
        connection.left.discard(local)
        return local

    def level(self, sock: socket.socket) -> None:
        """See :func:`bindsock.kernel.linux.mptcp.level_receive_buffers`; 20 µs."""
        mptcp.level_receive_buffers(sock)

    def remove(self, sock: socket.socket, address: IPAddress, *, lost: bool) -> bool:
        """Order the end of the subflows with a local address, 0.3 ms, and let the peer know.

        Without that the peer, whom nothing reaches from a dead interface, would go on sending to it, and count it among the
        subflows that it may have.
        """
        connection = self._known(sock)
        connection.left.add(address)
        if connection.userspace:
            for subflow in self._remaining(sock, address):
                self._destroy_one(connection, subflow)
            connection.identifiers.pop(address, None)
            return True
        if not self._remaining(sock, address) and address not in self._added:
            return True
        systems = address not in self._added and any(e.address == address for e in self._endpoints() if e.flags & _FLAG_SUBFLOW)
        if systems and not lost:
            return False
        if not systems and (lost or not self._is_needed(address)) and not self._is_strangers(address):
            self._remove_endpoint(address, first=connection.origin[0] == address)
        for subflow in self._remaining(sock, address):
            self._reset(subflow, (connection.indexes.get(address), sockets.bound(sock)))
        return True

    def release(self, sock: socket.socket) -> None:
        """Remove the endpoints that only this connection needed."""
        finalizer = self._finalizers.get(sock)
        if finalizer is not None:
            finalizer()

    def close(self) -> None:
        """Close the sockets for orders; the next one opens others."""
        self._generic.close()
        self._diagnosis.close()

    # The connections

    def _known(self, sock: socket.socket) -> _Connection:
        connection = self._connections.get(sock)
        if connection is None:
            local = sock.getsockname()
            origin = unmapped(ip_address(local[0].split("%", 1)[0])), local[1]
            connection = self._connections[sock] = _Connection(mptcp.token(sock), origin, _is_userspace())
            # Also when nobody says that it is over: it is forgotten, or the process ends in good order.
            self._finalizers[sock] = weakref.finalize(sock, self._forget, connection)
        return connection

    def _forget(self, connection: _Connection) -> None:
        self._past.add(connection.origin)
        for address in list(self._added):
            connection.left.add(address)
            try:
                if self._is_needed(address):
                    continue
                if self._is_strangers(address):
                    _logger.info("the multipath endpoint %s is left: another connection began there", address)
                else:
                    self._remove_endpoint(address)
            except OSError as error:
                _logger.warning("the multipath endpoint %s could not be removed: %s", address, error)
        if all(sock.fileno() == -1 for sock in self._connections):
            self.close()

    def _is_needed(self, address: IPAddress) -> bool:
        """Whether a connection of this process has stayed on the address."""
        return any(
            address not in connection.left and sock.fileno() != -1 and self._remaining(sock, address)
            for sock, connection in self._connections.items()
        )

    def _is_strangers(self, address: IPAddress) -> bool:
        """Whether a multipath connection that is not of this process, or is not followed, began on the address."""
        origins = self._origins()
        self._past.intersection_update(origins)
        ours = self._past.union(connection.origin for connection in self._connections.values())
        return any(began[0] == address and began not in ours for began in origins)

    def _origins(self) -> list[tuple[IPAddress, int]]:
        """Address and port of the first subflow of each multipath connection in the namespace (``net/mptcp/mptcp_diag.c``)."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _DIAG_REQUEST.pack(family, 0, 0, 0, _ANY_STATE) + bytes(48)
            request += netlink.attribute_u32(_INET_DIAG_REQ_PROTOCOL, mptcp.IPPROTO_MPTCP)
            for entry in self._diagnosis.dump(_SOCK_DIAG_BY_FAMILY, request):
                of, port, address = netlink.fixed(_DIAG_ENTRY, entry)
                found.append((unmapped(ip_address(address[: 4 if of == socket.AF_INET else 16])), port))
        return found

    @staticmethod
    def _remaining(sock: socket.socket, address: IPAddress) -> list[Subflow]:
        return [state.subflow for state in mptcp.states(sock) or () if state.subflow.local == address]

    # The userspace path manager

    def _destroy_one(self, connection: _Connection, subflow: Subflow) -> None:
        token = netlink.attribute_u32(_ATTR_TOKEN, connection.token)
        identifier = connection.identifiers.get(subflow.local, 0)
        self._tell(_CMD_REMOVE, token, netlink.attribute(_ATTR_LOC_ID, bytes([identifier])), harmless=(errno.EINVAL, *_GONE))
        self._tell(
            _CMD_SUBFLOW_DESTROY,
            token,
            _address(_ATTR_ADDR, subflow.local, port=subflow.local_port),
            _address(_ATTR_ADDR_REMOTE, subflow.remote, port=subflow.remote_port),
            harmless=_GONE,
        )

    # The in-kernel path manager

    def _add_endpoint(self, local: IPAddress, interface: Interface) -> None:
        try:
            self._tell(_CMD_ADD_ADDR, _address(_ATTR_ADDR, local, index=interface.index, flags=_FLAG_SUBFLOW))
        except FileExistsError:
            # The system's own, or one of ours. The kernel makes one subflow of each endpoint in a connection's life; one that
            # has ended comes again only if the endpoint does.
            if not self._is_strangers(local):
                self._renew_endpoint(local)
        else:
            self._added.add(local)
            _logger.info("%s of %s is a multipath endpoint now, for all programs", local, interface)

    def _renew_endpoint(self, address: IPAddress) -> None:
        for endpoint in self._endpoints():
            if endpoint.address == address:
                self._tell(_CMD_DEL_ADDR, _address(_ATTR_ADDR, address, identifier=endpoint.identifier))
                self._tell(_CMD_ADD_ADDR, netlink.nested(_ATTR_ADDR, endpoint.attributes))

    def _remove_endpoint(self, address: IPAddress, *, first: bool = False) -> None:
        """End all subflows with the address, and tell the peers.

        :param first: it may be a first subflow's: that has no endpoint, but the number 0
        """
        self._added.discard(address)
        identifiers = [endpoint.identifier for endpoint in self._endpoints() if endpoint.address == address]
        for identifier in [*identifiers, *([0] if first else [])]:
            self._tell(_CMD_DEL_ADDR, _address(_ATTR_ADDR, address, identifier=identifier), harmless=(errno.EINVAL,))

    def _endpoints(self) -> list[_Endpoint]:
        found = []
        for payload in self._generic.dump(self._family_number(), _GENERIC_HEADER.pack(_CMD_GET_ADDR, _VERSION, 0)):
            raw = netlink.attributes(payload, _GENERIC_HEADER.size).get(_ATTR_ADDR, b"")
            entry = netlink.attributes(raw)
            packed = entry.get(_ADDR_ADDR4) or entry.get(_ADDR_ADDR6)
            if packed is None or len(packed) not in (4, 16):
                continue
            address = IPv4Address(packed) if len(packed) == 4 else unmapped(IPv6Address(packed))
            flags = netlink.u32(entry.get(_ADDR_FLAGS, bytes(4)))
            found.append(_Endpoint(address, entry.get(_ADDR_ID, b"\0")[0], flags, raw))
        return found

    def _reset(self, subflow: Subflow, bound: tuple[int | None, ...]) -> None:
        """End one TCP connection, as ``ss -K`` does (``net/ipv4/tcp_diag.c``, tcp_diag_destroy).

        A socket that is bound to an interface is found by that interface alone, and which one it is nobody tells of a subflow
        that the system has made.
        """
        likely = [index for index in bound if index]
        for index in dict.fromkeys([*likely, *(index for index, _ in socket.if_nameindex()), 0]):
            try:
                self._diagnosis.tell(_SOCK_DESTROY, _connection(subflow, index))
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            else:
                return

    # Generic netlink

    def _family_number(self) -> int:
        if self._family is None:
            body = _GENERIC_HEADER.pack(_CTRL_CMD_GETFAMILY, _VERSION, 0)
            answer = self._generic.ask(_GENL_ID_CTRL, body + netlink.attribute(_CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0"))
            found = netlink.attributes(answer.payload, _GENERIC_HEADER.size)
            (self._family,) = netlink.fixed(_U16, found.get(_CTRL_ATTR_FAMILY_ID, b""))
        return self._family

    def _ask(self, command: int) -> bytes:
        return self._generic.ask(self._family_number(), _GENERIC_HEADER.pack(command, _VERSION, 0)).payload

    def _tell(self, command: int, *body: bytes, harmless: tuple[int, ...] = ()) -> None:
        try:
            self._generic.tell(self._family_number(), _GENERIC_HEADER.pack(command, _VERSION, 0) + b"".join(body))
        except OSError as error:
            if error.errno not in harmless:
                raise


def _address(
    kind: int, address: IPAddress, *, port: int = 0, identifier: int | None = None, index: int = 0, flags: int = 0
) -> bytes:
    family, option = (socket.AF_INET, _ADDR_ADDR4) if address.version == 4 else (socket.AF_INET6, _ADDR_ADDR6)
    parts = [netlink.attribute(_ADDR_FAMILY, _U16.pack(family))]
    if identifier is not None:
        parts.append(netlink.attribute(_ADDR_ID, bytes([identifier])))
    parts.append(netlink.attribute(option, address.packed))
    if port:
        parts.append(netlink.attribute(_ADDR_PORT, _U16.pack(port)))
    if flags:
        parts.append(netlink.attribute_u32(_ADDR_FLAGS, flags))
    if index:
        parts.append(netlink.attribute_u32(_ADDR_IF_IDX, index))
    return netlink.nested(kind, *parts)


def _connection(subflow: Subflow, index: int) -> bytes:
    """``struct inet_diag_req_v2`` of ``include/uapi/linux/inet_diag.h``."""
    family = socket.AF_INET if subflow.local.version == 4 else socket.AF_INET6
    return b"".join(
        (
            _DIAG_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE),
            struct.pack("!HH", subflow.local_port, subflow.remote_port),
            subflow.local.packed.ljust(16, b"\0"),
            subflow.remote.packed.ljust(16, b"\0"),
            struct.pack("=III", index, _ANY_COOKIE, _ANY_COOKIE),
        )
    )


def _is_userspace() -> bool:
    try:
        return Path("/proc/sys/net/mptcp/pm_type").read_bytes().strip() == b"1"
    except OSError:
        return False
