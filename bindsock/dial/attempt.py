"""One address of a dial: a socket that is made, bound, connected and checked."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsock.dial.binding import NONBLOCKING, bind_or_close, check_egress, check_local_address, connect_error, departure
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
    from bindsock.options import ConnectOptions
    from bindsock.routing.effective import Decider

_logger = logging.getLogger("bindsock")

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR})


@dataclass(frozen=True, slots=True)
class Destination:
    """One address of the host, and the interface for it."""

    info: AddrInfo
    address: IPAddress
    decision: Decision
    path: Path | None
    decider: Decider
    """The watcher's own, whatever the dial is pinned to."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket, and on what it rests."""

    sock: FollowedSocket
    address: IPAddress
    decision: Decision
    path: Path | None
    """``None`` where the socket is not bound: a local destination, or ``on_no_interface="unbound"``."""
    local: IPAddress
    """The socket's own address."""
    decider: Decider
    """By which it was decided: if it is still the newest, nothing has changed since."""

    def pinned(self, options: ConnectOptions) -> ConnectOptions:
        """The options of the connection, which its local address may have pinned to an interface."""
        pin = pinned_to(self.decision)
        return options if pin is None or options.interface is not None else dataclasses.replace(options, interface=pin)


class Attempt:
    """The attempt to connect to one address.

    :param local_infos: the local addresses of which the socket is to have one, if it matters
    """

    __slots__ = ("_dialer", "_local_infos", "destination", "sock")

    def __init__(self, dialer: Dialer, destination: Destination, local_infos: Sequence[AddrInfo] | None) -> None:
        self._dialer = dialer
        self._local_infos = local_infos
        self.destination: Destination = destination
        self.sock: FollowedSocket | None = None

    def begin(self) -> bool:
        """Make and bind a socket, and begin to connect it.

        A peer on this host or a virtual machine has answered by the time at which the call returns, although that says otherwise:
        the answer came while the call held the socket (linux net/ipv4/af_inet.c, inet_stream_connect; net/core/sock.c,
        release_sock). Asking costs a microsecond and saves a turn of the event loop.

        :return: whether it is connected already. If not, :meth:`finish` must be called once the socket is writable
        :raises OSError: the attempt has failed
        """
        try:
            sock = self.sock = self._make()
            code = sock.connect_ex(self.destination.info[4])
            if code in _UNDER_WAY:
                if not is_connected(sock):
                    return False
            elif code:
                raise OSError(code, os.strerror(code))
            self._connected(sock)
        except OSError as error:
            explained = self._explained(error)
            self.close()
            raise explained from None
        return True

    def finish(self) -> None:
        """The socket is writable: it is connected, or cannot be.

        :raises OSError: the attempt has failed
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

    def expire(self, seconds: float) -> OSError:
        """Give up: nothing has come from the peer for so long.

        :return: the error that says so
        """
        destination = self.destination
        kernel = self._dialer.watcher.kernel
        self.close()
        family, sockaddr = destination.info[0], destination.info[4]
        departs = departure(kernel, family, destination.decision, sockaddr)
        return no_answer(kernel, sockaddr, destination.decision, destination.path, seconds, departs)

    def close(self) -> None:
        """Give up."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

    def verified(self) -> Dialled:
        """The connected socket, once its local address is known not to be a tunnel's.

        :raises EgressMismatch: it is a tunnel's; the socket is closed
        """
        sock, address, decision = self.sock, self.destination.address, self.destination.decision
        assert sock is not None
        local = address_of(sock.getsockname())
        try:
            check_egress(decision, self._dialer.watcher.latest.network, address, local)
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
                # asyncio does it where the protocol is TCP's (Lib/asyncio/base_events.py, _set_nodelay).
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialer.prepare(sock)
            if self._local_infos is not None:
                # The program has chosen an address itself.
                decision = dataclasses.replace(destination.decision, source=None)
            else:
                decision = destination.decision
            bind_or_close(dialer.watcher.kernel, sock, decision, destination.address)
            if dialer.farewell is not None and family == socket.AF_INET6:
                sock.say_farewell(dialer.farewell)
            if self._local_infos is not None:
                self._bind_local(sock, self._local_infos)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connected(self, sock: FollowedSocket) -> None:
        if sock.proto not in (0, socket.IPPROTO_TCP):
            # It was made for multipath. It may be plain TCP after all, to which more can be said.
            self._dialer.prepare(sock)

    def _bind_local(self, sock: FollowedSocket, local_infos: Sequence[AddrInfo]) -> None:
        """Give the socket the first of the local addresses that it can have, as ``loop.create_connection`` does it."""
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
        """The protocol of a multipath socket, if there is to be one: to a socket that is not bound the system could add subflows
        around the VPN, and to any into it."""
        dialer, address, decision = self._dialer, self.destination.address, self.destination.decision
        if decision.interface is None:
            return None
        paths = dialer.watcher.kernel.multipath
        protocol = paths.protocol(self.destination.info[0]) if paths is not None else None
        if paths is None or protocol is None:
            reason: str | None = "this system has no multipath TCP, or it is switched off"
        else:
            try:
                endpoints = paths.endpoints()
            except OSError as error:
                reason = f"the system does not say by which addresses it would add subflows: {error}"
            else:
                network = dialer.watcher.latest.network
                reason = multipath_obstacle(endpoints, network, decision.interface, address.version, pinned_to(decision))
        if reason is None:
            return protocol
        if reason not in dialer.complaints:
            dialer.complaints.add(reason)
            _logger.warning("connections that are to be multipath ones are plain TCP: %s", reason)
        return None

    def _explained(self, error: OSError) -> OSError:
        """The error, or one that says that the interface is gone or that a firewall has refused it."""
        if isinstance(error, BindsockError):
            return error
        destination, watcher, sock = self.destination, self._dialer.watcher, self.sock
        if sock is None:
            return error
        decision, sockaddr = destination.decision, destination.info[4]
        return connect_error(watcher.kernel, sock, error, decision, sockaddr, lambda: watcher.refresh().network)
