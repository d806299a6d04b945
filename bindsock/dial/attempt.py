"""An attempt to connect to one address: makes a socket, binds it, connects it, and checks its local address."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bindsock.dial.binding import (
    NONBLOCKING,
    bind_or_close,
    check_egress,
    check_local_address,
    check_source,
    connect_error,
    departure,
)
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.refusal import no_answer
from bindsock.dial.resolving import AddrInfo, address_of
from bindsock.dial.unmanaged import is_connected
from bindsock.errors import BindsockError, EgressMismatch
from bindsock.model.decision import Decision, Path, pinned_to
from bindsock.model.network import IPAddress, unmapped
from bindsock.routing.multipath import multipath_obstacle

if TYPE_CHECKING:
    from bindsock.dial.dialer import Dialer
    from bindsock.model.subflows import Endpoints
    from bindsock.options import ConnectOptions
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR})


class Destination(NamedTuple):
    """One address of the host, and the interface for it."""

    info: AddrInfo
    address: IPAddress
    decision: Decision
    path: Path | None
    decider: Decider
    """The watcher's newest one, without the pin of the dial."""


class Dialled(NamedTuple):
    """A connected socket, with its decision and its path."""

    sock: FollowedSocket
    address: IPAddress
    decision: Decision
    path: Path | None
    """``None`` if the socket is not bound: the destination is this host, or ``on_no_interface="unbound"`` applies."""
    local: IPAddress
    """The local address of the socket."""
    decider: Decider
    """The decider of the decision. If it is still the newest one, nothing has changed since."""

    def pinned(self, options: ConnectOptions) -> ConnectOptions:
        """The options of the connection, with the interface to which its local address has pinned it, if there is one."""
        pin = pinned_to(self.decision)
        return options if pin is None or options.interface is not None else dataclasses.replace(options, interface=pin)


class Attempt:
    """An attempt to connect to one address.

    :param local_infos: the local addresses to choose from, if the program gave ``local_addr``
    :param endpoints: the endpoints of multipath connections, if one was requested and the system has any
    """

    __slots__ = ("_dialer", "_endpoints", "_local_infos", "destination", "sock")

    def __init__(
        self,
        dialer: Dialer,
        destination: Destination,
        local_infos: Sequence[AddrInfo] | None,
        endpoints: Endpoints | OSError | None = None,
    ) -> None:
        self._dialer = dialer
        self._endpoints = endpoints
        self._local_infos = local_infos
        self.destination: Destination = destination
        self.sock: FollowedSocket | None = None

    def begin(self) -> bool:
        """Make and bind a socket, and start to connect it.

        A peer on this host or on a virtual machine answers before ``connect()`` returns. The call reports ``EINPROGRESS``
        nevertheless, because the answer arrived while the call held the socket (linux net/ipv4/af_inet.c, inet_stream_connect;
        net/core/sock.c, release_sock). To check again takes a microsecond and saves an iteration of the event loop.

        :return: whether it is connected already. If not, call :meth:`finish` once the socket is writable
        :raises OSError: the attempt failed
        """
        try:
            sock = self.sock = self._make()
            code = sock.connect_ex(self.destination.info[4])
            if code in _UNDER_WAY:
                if not is_connected(sock):
                    self._check_source(sock)
                    return False
            elif code:
                raise OSError(code, os.strerror(code))
            self._connected(sock)
        except OSError as error:
            explained = self._explained(error)
            self.close()
            raise explained from None
        return True

    def _check_source(self, sock: FollowedSocket) -> None:
        """
        :raises MakeshiftSource: the interface was without its own addresses when the system chose one for the socket
        """
        destination = self.destination
        path = destination.path
        if path is not None and path.source is None and self._local_infos is None:
            network, kernel = destination.decider.network, self._dialer.watcher.kernel
            local = unmapped(address_of(sock.getsockname()))
            check_source(kernel, network.interfaces[path.index], network, unmapped(destination.address), local)

    def finish(self) -> None:
        """Complete the attempt, once the socket is writable.

        :raises OSError: the attempt failed
        """
        sock = self.sock
        assert sock is not None
        try:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, f"Connect call failed {self.destination.info[4]}")
            self._connected(sock)
        except OSError as error:
            explained = self._explained(error)
            self.close()
            raise explained from None

    @property
    def answered(self) -> bool:
        """Whether the peer has answered, even if the event loop has not noticed yet."""
        assert self.sock is not None
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        return bool(poll.poll(0))

    def expire(self, seconds: float) -> OSError:
        """Give up, because the peer has not answered within the given seconds.

        :return: the error to raise
        """
        destination = self.destination
        kernel = self._dialer.watcher.kernel
        self.close()
        family, sockaddr = destination.info[0], destination.info[4]
        departs = departure(kernel, family, destination.decision, sockaddr)
        return no_answer(kernel, sockaddr, destination.decision, destination.path, seconds, departs)

    def close(self) -> None:
        """Give up, and close the socket."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

    def verified(self) -> Dialled:
        """Check that the local address does not belong to a tunnel, and return the connected socket.

        :raises EgressMismatch: it belongs to a tunnel; the socket is closed
        """
        sock, address, decision = self.sock, self.destination.address, self.destination.decision
        assert sock is not None
        local = address_of(sock.getsockname())
        try:
            watcher = self._dialer.watcher
            check_egress(watcher.kernel, decision, watcher.latest.network, address, local)
        except EgressMismatch:
            sock.close()
            raise
        return Dialled(sock, address, decision, self.destination.path, unmapped(local), self.destination.decider)

    def _make(self) -> FollowedSocket:
        dialer, destination = self._dialer, self.destination
        family, type_, proto = destination.info[:3]
        if self._local_infos is not None:
            check_local_address(destination.decision, [address_of(info[4]) for info in self._local_infos])
        multipath = self._multipath() if dialer.options.multipath else None
        sock = FollowedSocket(family, type_ | NONBLOCKING, multipath or proto)
        try:
            if not NONBLOCKING:
                sock.setblocking(False)
            if multipath is not None:
                # asyncio sets it only if the protocol is TCP (Lib/asyncio/base_events.py, _set_nodelay).
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialer.prepare(sock)
            if self._local_infos is not None:
                # The program has chosen the local address itself.
                decision = dataclasses.replace(destination.decision, source=None)
            else:
                decision = destination.decision
            bind_or_close(dialer.watcher.kernel, sock, decision, destination.address)
            if dialer.lingering_close is not None and family == socket.AF_INET6:
                sock.set_lingering_close(dialer.lingering_close)
            if self._local_infos is not None:
                self._bind_local(sock, self._local_infos)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connected(self, sock: FollowedSocket) -> None:
        if sock.proto not in (0, socket.IPPROTO_TCP):
            # A multipath socket may have fallen back to plain TCP, which supports more options.
            self._dialer.prepare(sock)

    def _bind_local(self, sock: FollowedSocket, local_infos: Sequence[AddrInfo]) -> None:
        """Bind the socket to the first possible local address, as ``loop.create_connection`` does."""
        failure = OSError(errno.EAFNOSUPPORT, f"no matching local address with family={sock.family} found")
        for info in local_infos:
            if info[0] == sock.family:
                try:
                    sock.bind(info[4])
                except OSError as error:
                    failure = OSError(error.errno, f"error while attempting to bind on address {info[4]}: {error}")
                else:
                    return
        raise failure

    def _multipath(self) -> int | None:
        """The protocol number of a multipath socket; ``None`` for plain TCP.

        The system adds subflows without regard to the binding of the socket: to an unbound socket it could add some that bypass
        the VPN, and to a bound socket some that enter it. In these cases the connection is plain TCP.
        """
        dialer, address, decision = self._dialer, self.destination.address, self.destination.decision
        if decision.interface is None:
            return None
        paths = dialer.watcher.kernel.multipath
        protocol = paths.protocol(self.destination.info[0]) if paths is not None else None
        endpoints = self._endpoints
        if protocol is None or endpoints is None:
            reason: str | None = "this system has no multipath TCP, or it is switched off"
        elif isinstance(endpoints, OSError):
            reason = f"cannot find out by which addresses the system would add subflows: {endpoints}"
        else:
            network = dialer.watcher.latest.network
            reason = multipath_obstacle(endpoints, network, decision.interface, address.version, pinned_to(decision))
        if reason is None:
            return protocol
        if reason not in dialer.complaints:
            dialer.complaints.add(reason)
            _logger.warning("multipath is not used, connections are plain TCP: %s", reason)
        return None

    def _explained(self, error: OSError) -> OSError:
        """The error to raise: another one if the interface is gone or a firewall rejected the connection."""
        if isinstance(error, BindsockError):
            return error
        destination, watcher, sock = self.destination, self._dialer.watcher, self.sock
        if sock is None:
            return error
        decision, sockaddr = destination.decision, destination.info[4]
        return connect_error(watcher.kernel, sock, error, decision, sockaddr, lambda: watcher.refresh().network)
