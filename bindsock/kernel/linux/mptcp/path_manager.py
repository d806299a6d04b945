"""Ordering subflows from the kernel's multipath path manager. Needs CAP_NET_ADMIN.

There are two path managers; ``net.mptcp.pm_type`` chooses one when a socket is made:

* The userspace one (``net/mptcp/pm_userspace.c``) takes orders for a single connection, by its token.
* The in-kernel one (``net/mptcp/pm_kernel.c``) has endpoints: local addresses from which all multipath connections of the network
  namespace get subflows, those of other programs, too. When an endpoint is removed, all connections lose their subflows with its
  address. So an endpoint that this process added is removed only if no connection, of this or another program, loses its only
  subflow by that. Until then, a connection that leaves the address has only its own subflow reset. The kernel makes one
  subflow from an endpoint for each connection, and another one only if the endpoint is removed and added again.

The removal of an endpoint, by whichever program, takes some 10 ms (``synchronize_rcu``), and the kernel makes every other command
to either path manager wait meanwhile (``net/netlink/genetlink.c``, genl_lock). So all commands are given in the background, and
those that belong together are an operation. The operations of the in-kernel path manager are carried out one after another, so no
other order comes between what one finds out and what it orders. So are those of each connection that the userspace path manager
controls. The subflows of all programs are listed in the background, too.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import struct
import sys
import time
import weakref
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bindsock.errors import KernelError
from bindsock.kernel.linux import netlink, sockets
from bindsock.kernel.linux.mptcp import commands, sock_diag
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.linux.mptcp.commands import Commands, address_attribute
from bindsock.kernel.linux.mptcp.operations import Operation, Operations
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.sockets import RESET_ON_CLOSE
from bindsock.model.network import IPAddress, unmapped
from bindsock.model.subflows import Endpoints, Subflow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from bindsock.kernel import Background, RemovalReason
    from bindsock.kernel.linux.mptcp.commands import Endpoint
    from bindsock.kernel.linux.mptcp.sock_diag import ListedSubflow
    from bindsock.model.network import Interface
    from bindsock.model.subflows import Traffic

_logger = logging.getLogger("bindsock")
T = TypeVar("T")

_ALONE_WITHIN = 0.25
"""How long to wait for another process's order, which takes 20 ms. If that process is stopped, it must not stop this one."""
_EXIT_SECONDS = 0.5
"""How long the process, when it exits, waits for connections to end."""
_ENDING_SECONDS = 0.5
"""How long an endpoint is kept at most while the kernel still lists a subflow of its address that was reset."""
_TOLD_AGAIN_AFTER = 0.2
"""Seconds after which the peers of all connections at an endpoint are told again that their subflows are backups."""
_ANNOUNCED_SECONDS = 0.2
"""How long a peer may take to end the subflows of an address that it was told is gone. The announcement goes by another path than
a new subflow from the address, and can be slower; the peer does not confirm it."""


@dataclass(eq=False)
class _Connection:
    """A connection of this process."""

    token: int
    first: IPAddress
    """The local address of the first subflow."""
    place: IPAddress
    """The local address of the subflow that carries the connection now."""
    userspace: bool
    """Whether the userspace path manager controls the connection."""
    identifiers: dict[IPAddress, int] = field(default_factory=dict)
    """The path manager's numbers of the local addresses; 0 is the first subflow's."""
    indexes: dict[IPAddress, int] = field(default_factory=dict)
    """The indices of the interfaces for which subflows were ordered, by local address."""
    bound: dict[Subflow, int] = field(default_factory=dict)
    """The indices of the interfaces that the subflows are bound to, as far as the kernel has been asked."""
    ordered: IPAddress | None = None
    """The local address of the subflow that was ordered last, until it carries the connection."""
    expected: set[IPAddress] = field(default_factory=set)
    """The local addresses of subflows that the kernel will make without another order."""
    to_prompt: IPAddress | None = None
    """The local address of the subflow by which the peer is to be prompted."""
    backups: set[IPAddress] = field(default_factory=set)
    """The local addresses of subflows that are to be backups."""
    operations: Operations = field(default_factory=Operations)
    """Those of the userspace path manager."""

    def needs(self, address: IPAddress) -> bool:
        """Whether the connection is at an address, moves there, or is leaving it."""
        return address in (self.place, self.ordered) or address in self.backups

    def seen_elsewhere(self, address: IPAddress, index: int) -> bool:
        """Whether a subflow with an address was seen to be bound to another interface."""
        return any(subflow.local == address and by not in (0, index) for subflow, by in self.bound.items())


@dataclass
class _Added:
    """An endpoint that this process has added.

    :ivar index: the index of its interface
    :ivar backup: whether its subflows are backups now
    :ivar told: when the peers were last told that, in monotonic seconds
    """

    index: int
    backup: bool = False
    told: float = 0.0


class _Interfaces:
    """The interfaces that a subflow may be bound to, by their indices.

    :ivar existing: those of the last reading
    :ivar ordered: for each address, the one for which a subflow was ordered last, for whichever connection
    """

    def __init__(self) -> None:
        self.existing: tuple[int, ...] = ()
        self.ordered: dict[IPAddress, int] = {}

    def retain(self, existing: Collection[int]) -> None:
        self.existing = tuple(existing)
        self.ordered = {address: index for address, index in self.ordered.items() if index in existing}


class PathManager:
    """The :class:`bindsock.kernel.PathManager` of Linux.

    :param clock: returns monotonic seconds
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._background: Background | None = None
        self._clock = clock
        self._commands = Commands()
        """For the background."""
        self._operations = Operations()
        """Those of the in-kernel path manager."""
        self._diag_channel = _open_diag_channel()
        self._listing_channel = _open_diag_channel()
        """For the background."""
        self._connections: weakref.WeakKeyDictionary[socket.socket, _Connection] = weakref.WeakKeyDictionary()
        self._added: dict[IPAddress, _Added] = {}
        """The endpoints that this process has added."""
        self._going: set[IPAddress | Subflow] = set()
        """The addresses of endpoints that are being removed, and the subflows that the userspace path manager is ending. They do
        not count any more."""
        self._left: dict[IPAddress, float] = {}
        """The addresses whose subflows were reset, and until when their endpoints are kept, in monotonic seconds."""
        self._announced: dict[IPAddress, float] = {}
        """The addresses that peers were told are gone, and until when no subflow is made from them, in monotonic seconds."""
        self._interfaces = _Interfaces()
        self._process = os.getpid()

    @property
    def background(self) -> Background | None:
        """Makes the commands. What another one was to do is given up, since its event loop does not go on."""
        return self._background

    @background.setter
    def background(self, background: Background | None) -> None:
        if background is self._background:
            return
        if self._background is not None:
            self._background.join()
        self._background = background
        for operations in (self._operations, *(connection.operations for connection in self._connections.values())):
            operations.give_up()

    def protocol(self, family: int) -> int | None:
        """``IPPROTO_MPTCP``."""
        return mptcp.protocol(family)

    def endpoints(self, done: Callable[[Endpoints | OSError], object]) -> None:
        """Ask the in-kernel path manager, if it is in use. Needs no privilege."""
        if os.getpid() != self._process:
            done(OSError(errno.ESTALE, "the path manager belongs to the parent of a fork"))
        elif _is_userspace():
            done(Endpoints())
        else:
            self._perform(self._reading_endpoints(done))

    def _reading_endpoints(self, done: Callable[[Endpoints | OSError], object]) -> Operation[None]:
        found: Endpoints | OSError
        try:
            found = yield self._read_endpoints
        except OSError as error:
            found = error
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer must get one
            found = KernelError(f"cannot read the multipath endpoints: {error!r}")
            found.__cause__ = error
        done(found)

    def _read_endpoints(self) -> Endpoints:
        limits = netlink.attributes(self._commands.ask(commands.CMD_GET_LIMITS), commands.HEADER.size)
        endpoints = [endpoint for endpoint in self._commands.endpoints() if not endpoint.flags & commands.FLAG_IMPLICIT]
        return Endpoints(
            tuple(endpoint.address for endpoint in endpoints),
            tuple(endpoint.address for endpoint in endpoints if not endpoint.bound),
            follows_peer=bool(netlink.u32(limits.get(commands.ATTR_RCV_ADD_ADDRS, bytes(4)))),
        )

    def subflows(self, sock: socket.socket) -> tuple[Subflow, ...] | None:
        """Ask the socket, 5 µs. Needs no privilege."""
        states = mptcp.states(sock)
        if states is None:
            return None
        return tuple(s.subflow for s in states if s.established and not self._is_going(s.subflow))

    def bound(self, sock: socket.socket, subflow: Subflow) -> int | None:
        """Ask sock_diag, once for each subflow: 30 µs, more for subflows that the system made. Needs no privilege."""
        connection = self._connections.get(sock)
        if connection is None or subflow not in connection.bound:
            ordered = connection.indexes.get(subflow.local) if connection is not None else None
            likely = (ordered, self._interfaces.ordered.get(subflow.local), sockets.bound(sock), *self._interfaces.existing)
            try:
                index = sock_diag.bound(self._diag_channel, subflow, likely)
            except OSError as error:
                _logger.debug("cannot tell which interface the subflow of %s is bound to: %s", subflow.local, error)
                return 0
            if connection is None or index is None:
                return index
            alive = {state.subflow for state in mptcp.states(sock) or ()}
            connection.bound = {known: by for known, by in connection.bound.items() if known in alive} | {subflow: index}
        return connection.bound[subflow]

    def silence(self, sock: socket.socket) -> float:
        """Read each subflow's ``tcp_info``."""
        if not mptcp.unacknowledged(sock):
            return 0.0
        return min((state.silence for state in mptcp.states(sock) or () if state.established), default=float("inf"))

    def register(self, sock: socket.socket) -> None:
        """Note the connection's token, its address, and its path manager."""
        self._known(sock)

    def add(self, sock: socket.socket, interface: Interface, failed: Callable[[OSError], object]) -> IPAddress:
        """Order a subflow, unless there is one already."""
        connection = self._known(sock)
        peer = sock.getpeername()
        remote, port = unmapped(ip_address(peer[0].split("%", 1)[0])), peer[1]
        local = connection.ordered = sockets.source(interface, remote)
        self._interfaces.ordered[local] = interface.index
        if not self._is_at(sock, local, interface):
            reference = weakref.ref(sock)
            if connection.userspace:
                ordering = self._creating(reference, connection, local, (remote, port), interface)
            else:
                ordering = _alone(self._ordering(reference, connection, local, interface))
            self._perform(self._adding(reference, local, interface, ordering, failed), connection)
        return local

    def _adding(
        self,
        reference: weakref.ref[socket.socket],
        local: IPAddress,
        interface: Interface,
        ordering: Operation[None],
        failed: Callable[[OSError], object],
    ) -> Operation[None]:
        try:
            # Another order may have made a subflow for this connection, too.
            if not self._has_come(reference, local, interface):
                yield from ordering
        except OSError as error:
            if _opened(reference) is not None:  # a closed connection needs no subflow
                failed(error)

    def _creating(
        self,
        reference: weakref.ref[socket.socket],
        connection: _Connection,
        local: IPAddress,
        peer: tuple[IPAddress, int],
        interface: Interface,
    ) -> Operation[None]:
        """Order a subflow from the userspace path manager.

        :param peer: the address and port of the other end
        """
        sock = _opened(reference)
        stale = self._stale(sock, connection, local, interface) if sock is not None else []
        del sock
        if stale:
            yield from self._destroying(reference, connection, local, stale)
        if _opened(reference) is None:
            return
        # An address that was used before must keep its number, or the kernel refuses.
        used = connection.identifiers.values()
        identifier = connection.identifiers.setdefault(local, max(used, default=0) % 255 + 1)
        remote, port = peer
        yield functools.partial(
            self._commands.tell,
            commands.CMD_SUBFLOW_CREATE,
            netlink.attribute_u32(commands.ATTR_TOKEN, connection.token),
            address_attribute(commands.ATTR_ADDR, local, identifier=identifier, index=interface.index),
            address_attribute(commands.ATTR_ADDR_REMOTE, remote, port=port),
        )
        connection.indexes[local] = interface.index

    def _ordering(
        self, reference: weakref.ref[socket.socket], connection: _Connection, local: IPAddress, interface: Interface
    ) -> Operation[None]:
        if self._has_come(reference, local, interface):
            return
        if local in connection.expected and connection.indexes.get(local) == interface.index:
            connection.expected.discard(local)
            return
        if self._clock() < self._announced.get(local, 0.0):
            return  # it is ordered when it is asked for again
        yield from self._adding_endpoint(connection, local, interface)
        # This comes last: when an endpoint's subflow ends, the kernel makes another one.
        self._end_stale(local, interface, connection)
        connection.indexes[local] = interface.index

    def _has_come(self, reference: weakref.ref[socket.socket], local: IPAddress, interface: Interface) -> bool:
        """Whether a connection has a subflow, or needs none any more, because it is closed."""
        sock = _opened(reference)
        return sock is None or self._is_at(sock, local, interface)

    def arrived(self, sock: socket.socket, address: IPAddress) -> None:
        """Note the new address, and enlarge the subflow's receive buffer; 20 µs."""
        connection = self._known(sock)
        connection.place, connection.ordered = address, None
        mptcp.level_receive_buffers(sock)

    def prompt(self, sock: socket.socket, address: IPAddress, failed: Callable[[OSError], object]) -> bool:
        """Send a packet that changes nothing. The in-kernel path manager sends two, by every subflow from the address."""
        connection = self._known(sock)
        for subflow in self.subflows(sock) or ():
            if subflow.local == address and self._is_confirmed(sock, subflow):
                connection.to_prompt = address
                self._perform(self._prompting(connection, subflow, failed), connection)
                return True
        return False

    def _is_confirmed(self, sock: socket.socket, subflow: Subflow) -> bool:
        index = self.bound(sock, subflow)
        return index is not None and sock_diag.is_confirmed(self._diag_channel, subflow, index)

    def _prompting(self, connection: _Connection, subflow: Subflow, failed: Callable[[OSError], object]) -> Operation[None]:
        try:
            if connection.userspace:
                yield functools.partial(self._commands.set_backup, connection.token, subflow, backup=False)
            elif connection.to_prompt == subflow.local:  # otherwise that was done for another connection, and so for this one
                yield from _alone(self._prompting_all(subflow.local))
        except OSError as error:
            failed(error)

    def _prompting_all(self, address: IPAddress) -> Operation[None]:
        for connection in self._connections.values():
            if connection.to_prompt == address:
                connection.to_prompt = None
        yield functools.partial(self._commands.prompt_all, address)

    def traffic(self, sock: socket.socket, address: IPAddress) -> Traffic | None:
        """Read each subflow's ``tcp_info``."""
        try:
            return mptcp.traffic(sock, address)
        except OSError:
            return None

    def set_backup(
        self, sock: socket.socket, address: IPAddress, done: Callable[[bool | OSError], object], *, backup: bool
    ) -> None:
        """Tell the kernel, which tells the peer.

        The in-kernel path manager only knows endpoints, so there it is done for all subflows from one that this process has
        added. A first subflow, before the connection has ever come back to its address, has none.
        """
        connection = self._known(sock)
        again = address in connection.backups
        (connection.backups.add if backup else connection.backups.discard)(address)
        if connection.userspace:
            setting = self._setting_backup(weakref.ref(sock), connection, address, backup=backup)
        elif backup:
            setting = self._beginning_backup(address, again=again)
        else:
            setting = self._ending_backup(address)
        self._perform(_reporting(setting, done), connection)

    def _setting_backup(
        self, reference: weakref.ref[socket.socket], connection: _Connection, address: IPAddress, *, backup: bool
    ) -> Operation[bool]:
        sock = _opened(reference)
        remaining = self._remaining(sock, address) if sock is not None else []
        del sock
        for subflow in remaining:
            yield functools.partial(self._commands.set_backup, connection.token, subflow, backup=backup)
        return True

    def _beginning_backup(self, address: IPAddress, *, again: bool) -> Operation[bool]:
        """Make the subflows from an endpoint backups, or tell the peers again, once for all connections that leave it.

        :return: false if there is no endpoint that this process has added
        """
        added = self._added.get(address)
        if added is None:
            return False
        if not added.backup:
            yield functools.partial(self._mark, address, added, backup=True)
        elif again and self._clock() - added.told >= _TOLD_AGAIN_AFTER:
            added.told = self._clock()
            yield functools.partial(self._commands.prompt_all, address)
        return True

    def _ending_backup(self, address: IPAddress) -> Operation[bool]:
        """Let the subflows from an endpoint be no backups any more, once no connection of this process leaves them."""
        added = self._added.get(address)
        if added and added.backup and not any(address in connection.backups for connection in self._tokens().values()):
            yield functools.partial(self._mark, address, added, backup=False)
        return True

    def _mark(self, address: IPAddress, added: _Added, *, backup: bool) -> None:
        """Make the subflows from an endpoint backups or not, in the background with its bookkeeping."""
        self._commands.set_all_backup(address, backup=backup)
        added.backup, added.told = backup, self._clock()

    def remove(
        self, sock: socket.socket, address: IPAddress, why: RemovalReason, done: Callable[[bool | OSError], object]
    ) -> bool | None:
        """Order the end of the subflows with a local address, and tell the peer by another subflow.

        Otherwise the peer, which a dead interface cannot tell, would go on sending to the address and would count the subflow
        towards its limit.
        """
        connection = self._known(sock)
        connection.backups.discard(address)
        if connection.ordered == address:
            connection.ordered = None
        remaining = self._remaining(sock, address)
        added = address in self._added
        if not connection.userspace and not added and not remaining:
            return True
        if address.version == 6 and why == "lost" and remaining and not self._can_tell_peer(sock, address):
            # The peer would count the subflows for minutes, and soon refuse another one. Over IPv4 the kernel repeats their end
            # once the interface is back; over IPv6 they are reset, which is not repeated.
            return False
        if connection.userspace and why == "forbidden":
            self._reset(sock, remaining)
            self._perform(self._ending(weakref.ref(sock), connection, address, why, _log_failed_removal, remaining), connection)
        elif connection.userspace:
            self._perform(self._ending(weakref.ref(sock), connection, address, why, done), connection)
            return None
        elif why == "forbidden" or (why == "left" and added):
            self._leave(sock, address, remaining)
        else:
            self._perform(self._removing(weakref.ref(sock), connection, address, why, done))
            return None
        return True

    def _leave(self, sock: socket.socket, address: IPAddress, remaining: list[Subflow]) -> None:
        """Reset the subflows with an address, which reaches the peer.

        The endpoint is removed later, by :meth:`sweep`: as long as the kernel lists the subflow, it would also announce that the
        address is gone (RM_ADDR). A peer that acts on that late ends the next subflow from the address, too, if it has the same
        number: the first address always has 0 (``net/mptcp/pm.c``, mptcp_pm_rm_addr_or_subflow).
        """
        self._reset(sock, remaining)
        if remaining:
            self._left[address] = self._clock() + _ENDING_SECONDS

    def _removing(
        self,
        reference: weakref.ref[socket.socket],
        connection: _Connection,
        address: IPAddress,
        why: RemovalReason,
        done: Callable[[bool | OSError], object],
    ) -> Operation[None]:
        try:
            added = address in self._added
            sock = _opened(reference)
            if sock is not None and not added and not self._remaining(sock, address):
                done(True)  # another order has ended them meanwhile
                return
            del sock
            systems = not added and any(e.causes_subflows_from(address) for e in (yield self._commands.endpoints))
            sock = _opened(reference)
            if sock is None or address in (connection.place, connection.ordered):
                done(True)  # the connection has come back meanwhile
            elif why == "left" and systems:
                done(False)
            elif why == "left":
                self._leave(sock, address, self._remaining(sock, address))
                done(True)
            else:
                del sock
                yield from _alone(self._removing_lost(reference, connection, address, systems=systems))
                done(True)
        except OSError as error:
            done(error)

    def _removing_lost(
        self, reference: weakref.ref[socket.socket], connection: _Connection, address: IPAddress, *, systems: bool
    ) -> Operation[None]:
        listed = [] if systems else (yield self._list_subflows)
        sock = _opened(reference)
        if sock is None or address in (connection.place, connection.ordered):
            return
        # Also reset a subflow that is ending: on a lost interface its end could go on later.
        ending = self._remaining(sock, address) if address.version == 6 else []
        del sock
        if not systems and not self._needing(listed, address, connection, lost=True):
            first = connection.first == address and not self._only_at(listed, address)
            yield from self._removing_endpoint(listed, address, first=first)
            self._note_announced(address)
        else:
            yield from self._ending_backup(address)
        sock = _opened(reference)
        if sock is not None:
            self._reset(sock, ending if address.version == 6 else self._remaining(sock, address))

    def _ending(
        self,
        reference: weakref.ref[socket.socket],
        connection: _Connection,
        address: IPAddress,
        why: RemovalReason,
        done: Callable[[bool | OSError], object],
        reset: Sequence[Subflow] = (),
    ) -> Operation[None]:
        """End the subflows with an address by the userspace path manager.

        :param reset: those that have been reset already
        """
        try:
            sock = _opened(reference)
            # Unless the address is forbidden, the connection may have come back meanwhile.
            if sock is not None and (why == "forbidden" or address not in (connection.place, connection.ordered)):
                remaining = list(dict.fromkeys([*reset, *self._remaining(sock, address)]))
                if address.version == 6 and why != "lost":
                    # After an orderly end the kernel answers the peer's FIN by the routing table, whatever the subflow was bound
                    # to (net/ipv6/tcp_ipv6.c, tcp_v6_send_response).
                    self._reset(sock, remaining)
                del sock
                yield from self._destroying(reference, connection, address, remaining)
                sock = _opened(reference)
                if sock is not None and address.version == 6:
                    self._reset(sock, remaining)
        except OSError as error:
            if _opened(reference) is not None:
                done(error)
                return
        done(True)

    def retain(self, interfaces: Collection[int]) -> None:
        """Remove the endpoints of interfaces that no longer exist.

        A new connection may have its first subflow with such an address, which would end with the endpoint.
        """
        self._interfaces.retain(interfaces)
        for address, added in list(self._added.items()):
            if added.index not in interfaces:
                self._perform(_alone(self._removing_deleted(address, added)))

    def _removing_deleted(self, address: IPAddress, added: _Added) -> Operation[None]:
        try:
            if self._added.get(address) is not added:
                return
            listed = yield self._list_subflows
            if not self._needing(listed, address, None, lost=True) and not self._would_announce_later(listed, address):
                yield from self._removing_endpoint(listed, address)
                self._note_announced(address)
        except OSError as error:
            _logger.warning("the multipath endpoint %s could not be removed: %s", address, error)

    def release(self, sock: socket.socket) -> bool:
        """Forget the connection. The kernel may need its endpoint until it has sent the data of the closed connection.

        Orders that have been begun may still add an endpoint.
        """
        self._connections.pop(sock, None)
        if self._added or self._operations:
            return True
        if not self._connections:
            self.close()
        return False

    def sweep(self, done: Callable[[bool], object]) -> None:
        """Remove the endpoints that no connection needs."""
        self._perform(_alone(self._sweeping(done)))

    def _sweeping(self, done: Callable[[bool], object]) -> Operation[None]:
        waiting = False
        for address in list(self._added):
            try:
                listed = yield self._list_subflows
                needing = self._needing(listed, address, None, lost=False)
                if needing or self._is_ending(address):
                    waiting |= needing.isdisjoint(self._tokens())
                    yield from self._ending_backup(address)
                else:
                    yield from self._removing_endpoint(listed, address)
            except OSError as error:
                _logger.warning("the multipath endpoint %s could not be removed: %s", address, error)
                self._added.pop(address, None)
        done(waiting)

    def close(self) -> None:
        """Close the netlink sockets; the next call opens them again."""
        self._diag_channel.close()
        for close in (self._commands.close, self._listing_channel.close):
            if self.background is not None and self.background.busy:
                self.background.submit(close, lambda _: None)
            else:
                close()

    def _perform(self, operation: Operation[None], connection: _Connection | None = None) -> None:
        """Carry out an operation after those that were begun before.

        :param connection: the one that it concerns, if it is not for the in-kernel path manager
        """
        if os.getpid() != self._process:
            return  # the endpoints belong to the parent of a fork
        operations = connection.operations if connection is not None and connection.userspace else self._operations
        operations.perform(self._closing(operation), self._background)

    def _closing(self, operation: Operation[None]) -> Operation[None]:
        """Close the sockets after an operation if nothing is followed any more."""
        try:
            yield from operation
        finally:
            if not self._connections:
                self.close()

    def _known(self, sock: socket.socket) -> _Connection:
        connection = self._connections.get(sock)
        if connection is None:
            local = unmapped(ip_address(sock.getsockname()[0].split("%", 1)[0]))
            connection = self._connections[sock] = _Connection(mptcp.token(sock), local, local, _is_userspace())
        return connection

    def _tokens(self) -> dict[int, _Connection]:
        """The open connections of this process, by their tokens."""
        return {connection.token: connection for sock, connection in self._connections.items() if sock.fileno() != -1}

    def _needing(self, listed: list[ListedSubflow], address: IPAddress, besides: _Connection | None, *, lost: bool) -> set[int]:
        """The tokens of the connections that need a subflow with an address.

        These are connections that have no other subflow; unless the address is lost, also those of other programs, and those of
        this process that are at the address now, move there or are leaving it. Subflows on deleted interfaces do not count.

        :param listed: the subflows of all programs
        :param besides: a connection that does not count
        :param lost: the address can carry nothing any more, so only connections without another subflow count
        """
        existing = sockets.existing({subflow.bound for subflow in listed})
        seen = [subflow for subflow in listed if subflow.bound in existing]
        here = {subflow.token for subflow in seen if subflow.address == address}
        elsewhere = {subflow.token for subflow in seen if subflow.address != address and subflow.established}
        needing = here - elsewhere
        if not lost:
            ours = self._tokens()
            needing |= {token for token in here if token not in ours or ours[token].needs(address)}
        return needing - {besides.token} if besides is not None else needing

    def _is_going(self, subflow: Subflow) -> bool:
        """Whether a subflow is being ended."""
        return subflow.local in self._going or subflow in self._going

    def _open(self) -> list[socket.socket]:
        """The sockets of the connections that may get a subflow from an endpoint at any time."""
        return [sock for sock, connection in self._connections.items() if not connection.userspace and sock.fileno() != -1]

    @staticmethod
    def _remaining(sock: socket.socket, address: IPAddress) -> list[Subflow]:
        return [state.subflow for state in mptcp.states(sock) or () if state.subflow.local == address]

    def _is_ending(self, address: IPAddress) -> bool:
        """Whether the kernel still lists a subflow of this process's that was reset, so that removing its endpoint would announce
        that the address is gone."""
        until = self._left.get(address)
        if until is None:
            return False
        ending = self._clock() < until and any(
            address in mptcp.addresses_ending(sock) for sock in self._connections if sock.fileno() != -1
        )
        if not ending:
            del self._left[address]
        return ending

    def _would_announce_later(self, listed: list[ListedSubflow], address: IPAddress) -> bool:
        """Whether the kernel would announce that an address is gone by the next subflow from it, which has the same number.

        It does if a connection has no other subflow, and the peer then ends the new one. The old subflows of such connections are
        reset here: once the kernel does not list them any more, there is nothing to announce.
        """
        for sock in self._only_at(listed, address):
            self._leave(sock, address, self._remaining(sock, address))
        return self._is_ending(address)

    def _only_at(self, listed: list[ListedSubflow], address: IPAddress) -> list[socket.socket]:
        """The connections of this process that began at an address and have no subflow elsewhere.

        :param listed: the subflows of all programs
        """
        elsewhere = {subflow.token for subflow in listed if subflow.address != address and subflow.established}
        return [
            sock
            for sock, connection in self._connections.items()
            if connection.first == address and sock.fileno() != -1 and connection.token not in elsewhere
        ]

    def _note_announced(self, address: IPAddress) -> None:
        """Note that peers were told that an address is gone, if its next subflow would have the same number."""
        if any(connection.first == address for connection in self._connections.values()):
            self._announced[address] = self._clock() + _ANNOUNCED_SECONDS

    def _is_at(self, sock: socket.socket, local: IPAddress, interface: Interface) -> bool:
        """Whether there is a subflow with an address that is not bound to another interface."""
        return any(
            self.bound(sock, subflow) in (0, interface.index)
            for subflow in self._remaining(sock, local)
            if not self._is_going(subflow)
        )

    def _can_tell_peer(self, sock: socket.socket, address: IPAddress) -> bool:
        """Whether the interface of a subflow with another address works at this moment. The last reading may be older."""
        others = [subflow for subflow in self.subflows(sock) or () if subflow.local != address]
        return any(index is not None and sockets.is_running(index) for index in (self.bound(sock, other) for other in others))

    def _stale(self, sock: socket.socket, connection: _Connection, address: IPAddress, interface: Interface) -> list[Subflow]:
        """The subflows that have an address but are bound to another interface than ``interface``, which has it now.

        This happens when an interface was deleted and made again. A connection whose subflow has not been seen there yet is asked
        when it orders one itself.
        """
        if not connection.seen_elsewhere(address, interface.index):
            return []
        remaining = self._remaining(sock, address)
        return [subflow for subflow in remaining if self.bound(sock, subflow) not in (0, interface.index)]

    def _end_stale(self, address: IPAddress, interface: Interface, first: _Connection) -> None:
        """End the stale subflows of all connections that get another one from the address's endpoint.

        :param first: the connection for which a subflow was ordered
        """
        for sock in self._open():
            connection = self._connections[sock]
            stale = self._stale(sock, connection, address, interface)
            if stale:
                self._reset(sock, stale)
                connection.indexes[address] = interface.index
                if connection is not first:
                    connection.expected.add(address)

    def _reset(self, sock: socket.socket, subflows: list[Subflow]) -> None:
        for subflow in subflows:
            sock_diag.reset(self._diag_channel, subflow, (self.bound(sock, subflow), *self._interfaces.existing))

    def _destroying(
        self, reference: weakref.ref[socket.socket], connection: _Connection, address: IPAddress, subflows: list[Subflow]
    ) -> Operation[None]:
        """End subflows with an address by the userspace path manager, and tell the peer that the address is gone."""
        # The kernel keeps the number of a subflow that the peer ended, and refuses to give it to another address.
        identifier = connection.identifiers.get(address, 0 if subflows else None)
        sock = _opened(reference)
        if identifier is None or sock is None:
            return
        token = netlink.attribute_u32(commands.ATTR_TOKEN, connection.token)

        def destroy() -> None:
            number = netlink.attribute(commands.ATTR_LOC_ID, bytes([identifier]))
            self._commands.tell(commands.CMD_REMOVE, token, number, harmless=(errno.EINVAL, *sock_diag.GONE))
            for subflow in subflows:
                self._commands.tell(
                    commands.CMD_SUBFLOW_DESTROY,
                    token,
                    address_attribute(commands.ATTR_ADDR, subflow.local, port=subflow.local_port),
                    address_attribute(commands.ATTR_ADDR_REMOTE, subflow.remote, port=subflow.remote_port),
                    harmless=sock_diag.GONE,
                )

        self._going.update(subflows)
        try:
            with _ending_by_reset([sock], address):
                del sock
                yield destroy
        finally:
            self._going.difference_update(subflows)
        connection.identifiers.pop(address, None)

    def _adding_endpoint(self, connection: _Connection, local: IPAddress, interface: Interface) -> Operation[None]:
        index = interface.index

        def add() -> None:  # with its bookkeeping, since the event loop may end before it hears of it
            self._commands.add_endpoint(local, index)
            if not self._added:
                atexit.register(self._at_exit)
            self._added[local] = _Added(index)

        try:
            yield add
        except FileExistsError:
            # The endpoint is the system's, or one of ours from which this connection already had a subflow.
            for endpoint in (yield self._commands.endpoints):
                if endpoint.address == local:
                    yield from self._renewing_endpoint(endpoint, connection, interface)
            return
        _logger.info("added the multipath endpoint %s of %s, which all programs use", local, interface)

    def _renewing_endpoint(self, endpoint: Endpoint, connection: _Connection, interface: Interface) -> Operation[None]:
        """Remove and add an endpoint again, for the interface that has its address now, unless other connections need it."""
        address = endpoint.address
        stale = endpoint.bound not in (0, interface.index)
        listed = yield self._list_subflows
        if self._needing(listed, address, connection, lost=stale):
            if stale:
                message = f"the multipath endpoint {address} is bound to an interface that is gone, and other connections need it"
                raise OSError(errno.EBUSY, message)
            return
        if self._is_ending(address) or self._would_announce_later(listed, address):
            return
        attributes = netlink.attributes(endpoint.attributes)
        if stale:
            attributes[commands.ADDR_IF_IDX] = struct.pack("=I", interface.index)
        if stale or address in self._added:
            # A new number: the peer is told by the new subflow that the old number is gone.
            del attributes[commands.ADDR_ID]
        if address in self._added:
            flags = endpoint.flags & ~commands.FLAG_BACKUP
            attributes[commands.ADDR_FLAGS] = flags.to_bytes(4, sys.byteorder)

        def renew() -> None:  # one command, since an endpoint of the system's must not be lost if the event loop ends
            self._reset_late_joins(address)
            self._commands.remove_endpoint(address, endpoint.identifier)
            self._commands.restore_endpoint(attributes)

        with self._going_by_reset(address):
            yield renew
        if address in self._added:
            self._added[address] = _Added(interface.index)

    def _at_exit(self) -> None:
        """Remove the endpoints when the process exits. Its connections are closed first, and may take a moment to end."""
        if os.getpid() != self._process:
            return
        # The system's clock: there is no event loop at exit.
        deadline = time.monotonic() + _EXIT_SECONDS
        for sock in list(self._connections):
            with contextlib.suppress(OSError):
                sock.close()
        self._connections.clear()
        self.background = None
        left: list[bool] = [True]
        while left[-1]:
            self.sweep(left.append)
            if not left[-1]:
                return
            if time.monotonic() > deadline:
                _logger.info("connections still need these multipath endpoints, which stay: %s", ", ".join(map(str, self._added)))
                return
            time.sleep(0.01)

    def _removing_endpoint(self, listed: list[ListedSubflow], address: IPAddress, *, first: bool = False) -> Operation[None]:
        """Remove an endpoint, which ends all subflows with the address and tells the peers.

        After an orderly end of an IPv6 subflow, whichever program's, the kernel would answer the peer's FIN by the routing table:
        so they are reset. Where nothing leaves the peer would not hear of that: there the kernel tells it first, by another
        subflow. Meanwhile the interface may come up: the kernel resets those of this process itself then.

        :param listed: the subflows of all programs
        :param first: the address may be that of a first subflow, which has no endpoint but the number 0
        """
        self._added.pop(address, None)
        if not self._added:
            atexit.unregister(self._at_exit)
        ending = [subflow for subflow in listed if subflow.address == address] if address.version == 6 else []
        working = [subflow for subflow in ending if sockets.is_running(subflow.bound)]
        self._reset_listed(working)

        def remove() -> None:
            identifiers = [endpoint.identifier for endpoint in self._commands.endpoints() if endpoint.address == address]
            self._reset_late_joins(address)
            for identifier in [*identifiers, *([0] if first else [])]:
                self._commands.remove_endpoint(address, identifier)

        with self._going_by_reset(address):
            yield remove
        self._reset_listed([subflow for subflow in ending if subflow not in working])

    def _reset_late_joins(self, address: IPAddress) -> None:
        """Reset what has joined since the subflows were listed, in the background, just before an endpoint is removed.

        Another program's connection may get a subflow from the address at any time.
        """
        if address.version == 6:
            with contextlib.suppress(OSError):
                for each in sock_diag.subflows(self._listing_channel):
                    if each.address == address and sockets.is_running(each.bound):
                        sock_diag.reset(self._listing_channel, each.subflow, (each.bound,))

    @contextlib.contextmanager
    def _going_by_reset(self, address: IPAddress) -> Iterator[None]:
        """While an endpoint is removed, let its subflows not count any more, and end by a reset if they have IPv6 addresses."""
        self._going.add(address)
        try:
            with _ending_by_reset(self._open(), address):
                yield
        finally:
            self._going.discard(address)

    def _list_subflows(self) -> list[ListedSubflow]:
        """The subflows of all programs, 2 ms."""
        return sock_diag.subflows(self._listing_channel)

    def _reset_listed(self, listed: Iterable[ListedSubflow]) -> None:
        for each in listed:
            sock_diag.reset(self._diag_channel, each.subflow, (each.bound,))


def _reporting(operation: Operation[T], done: Callable[[T | OSError], object]) -> Operation[None]:
    """Carry out an operation and report its result, or its error."""
    try:
        outcome: T | OSError = yield from operation
    except OSError as error:
        outcome = error
    done(outcome)


def _alone(operation: Operation[T]) -> Operation[T]:
    """Let no other process of this library add, renew or remove an endpoint of this network namespace meanwhile.

    Otherwise one could remove an endpoint that it found unused, while another one orders a subflow from it: both react to the
    same change of the network. The lock is on the namespace's file, so there is nothing to clean up.
    """
    opened: list[int] = []
    try:
        yield functools.partial(_lock_namespace, opened)
        return (yield from operation)
    finally:
        for namespace in opened:
            fcntl.flock(namespace, fcntl.LOCK_UN)  # the child of a fork may have the descriptor, too
            os.close(namespace)


def _lock_namespace(opened: list[int]) -> None:
    """Lock the network namespace's file, unless another process has it for long.

    :param opened: gets the descriptor, also if the event loop ends meanwhile
    """
    try:
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    opened.append(namespace)
    deadline = time.monotonic() + _ALONE_WITHIN
    while not _lock(namespace) and time.monotonic() < deadline:
        time.sleep(0.001)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


@contextlib.contextmanager
def _ending_by_reset(socks: list[socket.socket], address: IPAddress) -> Iterator[None]:
    """Let the kernel end IPv6 subflows by a reset while it carries out an order.

    It closes them as if the program had set SO_LINGER to 0 (``net/mptcp/sockopt.c``, mptcp_setsockopt_sol_socket_linger). It does
    not end them in an orderly way then, whatever the interface does meanwhile. If the program closes a socket meanwhile, that
    takes effect afterwards, since a duplicate keeps it open.
    """
    before: list[tuple[socket.socket, bytes]] = []
    try:
        for sock in socks if address.version == 6 else ():
            with contextlib.suppress(OSError):
                linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(RESET_ON_CLOSE))
                duplicate = socket.socket(fileno=os.dup(sock.fileno()))
                before.append((duplicate, linger))
                duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        yield
    finally:
        for duplicate, linger in before:
            with duplicate, contextlib.suppress(OSError):
                duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _opened(reference: weakref.ref[socket.socket]) -> socket.socket | None:
    sock = reference()
    return sock if sock is not None and sock.fileno() != -1 else None


def _log_failed_removal(outcome: bool | OSError) -> None:
    if isinstance(outcome, OSError):
        _logger.info("cannot tell a multipath peer that an address is gone: %s", outcome)


def _open_diag_channel() -> Channel:
    return Channel(functools.partial(netlink.open_query_socket, netlink.NETLINK_SOCK_DIAG))


def _is_userspace() -> bool:
    try:
        return Path("/proc/sys/net/mptcp/pm_type").read_bytes().strip() == b"1"
    except OSError:
        return False
