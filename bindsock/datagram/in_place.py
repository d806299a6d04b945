"""Datagram sockets that somebody else made: bound to the effective interface, and moved in place beneath whoever uses them.

Nothing is put in between: same descriptor, same port, same registration with the event loop. What that cannot do, and
:mod:`bindsock.datagram.open` does, is to receive by the old interface and send by the new one for a while, and to hold what
is sent while there is no path.
"""

from __future__ import annotations

import errno
import logging
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.resolving import address_of
from bindsock.errors import BindFailed
from bindsock.model.change import Cause
from bindsock.model.decision import Decision, Path, path_of
from bindsock.model.network import Target, unmapped, without_scope
from bindsock.netmon.no_interface import no_effective_interface

if TYPE_CHECKING:
    import asyncio

    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

logger = logging.getLogger("bindsock")

_FIRST_RETRY = 0.05
_LAST_RETRY = 5.0
"""Seconds between attempts to move a socket that the system does not let move."""


def follow_datagrams(
    watcher: Watcher,
    sock: socket.socket,
    *,
    target: Target | None = None,
    interface: str | None = None,
    loop: asyncio.AbstractEventLoop,
) -> InPlaceMover | None:
    """Bind a datagram socket to the effective interface, and move it along until it is closed or forgotten.

    A socket that is bound to an interface or to a certain address already, and one whose peer is this host, is left alone.

    :param target: what it is for, where it is not connected; its family's default unless given
    :param interface: the name of the one interface to use instead of the watcher's
    :param loop: the event loop on which the watcher runs
    :return: what follows it, ``None`` if it is left alone
    :raises NoEffectiveInterface: no interface may be used
    :raises BindFailed: the system refused
    :raises ValueError: a socket for both families, whose effective interfaces differ
    """
    peer = _peer_of(sock)
    if watcher.kernel.bound(sock) is not None or (peer is None and _has_certain_address(sock)):
        return None
    guard = InPlaceMover(watcher, sock, peer, unmapped(address_of(peer)) if peer is not None else target, interface, loop)
    return guard if guard.start(sock) else None


def watch_datagrams(
    watcher: Watcher, sock: socket.socket, target: Target, path: Path | None, *, loop: asyncio.AbstractEventLoop
) -> InPlaceMover | None:
    """Move a datagram socket along that has just been bound and connected.

    :param path: on which that was done; ``None`` where it is bound to nothing: then it is not followed
    :raises OSError: the socket is closed
    """
    if path is None:
        return None
    guard = InPlaceMover(watcher, sock, _peer_of(sock), target, None, loop)
    guard.watch(sock, path)
    return guard


class InPlaceMover:
    """Follows one datagram socket. The watcher holds it; it holds the socket weakly."""

    def __init__(
        self,
        watcher: Watcher,
        sock: socket.socket,
        peer: tuple[Any, ...] | None,
        target: Target | None,
        pin: str | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._watcher = watcher
        self._sock: weakref.ref[socket.socket] | None = weakref.ref(sock)
        self._peer = peer
        self._port: int | None = None
        self._targets = (target,) if target is not None else _families(sock)
        self._pin = pin
        self._path: Path | None = None
        self._loop = weakref.ref(loop)
        self._retry: asyncio.TimerHandle | None = None
        self._delay = _FIRST_RETRY
        self._complained = False

    @property
    def interface(self) -> str | None:
        """The name of the interface that the socket is bound to."""
        return self._path.interface if self._path is not None else None

    def start(self, sock: socket.socket) -> bool:
        """Bind the socket and begin to follow it.

        :return: false if it is to be left alone
        :raises OSError: it cannot be bound
        """
        watcher = self._watcher
        watcher.follow(self)
        try:
            decider = watcher.decider().with_pin(self._pin)
            decisions = [decider.decide(target) for target in self._targets]
            if len({d.interface.index for d in decisions if d.interface is not None}) > 1:
                raise ValueError("the socket is for both families, whose effective interfaces differ: give family=")
            decision = _first(decisions)
            if decision.interface is None:
                self.close()
                if decision.unbound or decider.preferences.on_no_interface == "unbound":
                    return False
                raise no_effective_interface("the datagram socket", tuple(decisions), watcher.kernel, decider.network)
            watcher.kernel.rebind(sock, decision.interface, peer=self._peer)
            self._begin(sock, path_of(decision))
        except BaseException:
            self.close()
            raise
        return True

    def watch(self, sock: socket.socket, path: Path) -> None:
        """Begin to follow a socket that is bound and connected already.

        :raises OSError: the socket is closed
        """
        self._watcher.follow(self)
        try:
            self._begin(sock, path)
            # What happened since then raises no further event.
            self.network_changed(self._watcher.decider(), Cause.STARTED)
        except BaseException:
            self.close()
            raise

    def _begin(self, sock: socket.socket, path: Path | None) -> None:
        self._path = path
        self._port = sock.getsockname()[1] or None
        if isinstance(sock, FollowedSocket):
            sock.on_close(self.close)
        else:
            forgotten = weakref.WeakMethod(self.close)
            self._sock = weakref.ref(sock, lambda _: _call(forgotten))

    def close(self) -> None:
        """Stop following. The socket stays open, and bound where it is."""
        self._watcher.unfollow(self)
        self._sock = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Move the socket if the path is another one. While there is none it stays where it is."""
        sock = self._sock() if self._sock is not None else None
        if sock is None or sock.fileno() == -1:
            self.close()
            return
        decider = decider.with_pin(self._pin)
        decisions = [decider.decide(target) for target in self._targets]
        decision = _first(decisions)
        path = path_of(decision)
        if decision.interface is None or path is None or path == self._path:
            return
        if not self._complained and len({d.interface.index for d in decisions if d.interface is not None}) > 1:
            self._complained = True
            logger.warning("a socket is for both families, whose effective interfaces differ now: it follows IPv6's")
        if self._path is not None and path.index == self._path.index and _keeps_source(sock, path):
            self._path = path
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        peer = self._peer if self._peer is not None else _peer_of(sock)
        try:
            self._watcher.kernel.rebind(sock, decision.interface, peer=peer, port=self._port)
        except BindFailed as error:
            self._watcher.statistics.rebinds_failed += 1
            logger.info("a datagram socket is not moved to %s yet, again in %g s: %s", path.interface, self._delay, error)
            self._try_again()
            return
        self._path = path
        self._port = sock.getsockname()[1] or self._port
        self._delay = _FIRST_RETRY
        self._watcher.statistics.rebinds += 1

    def _try_again(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            self._retry = loop.call_later(self._delay, self._retry_now)
            self._delay = min(self._delay * 2, _LAST_RETRY)

    def _retry_now(self) -> None:
        self._retry = None
        if self._watcher.follows(self):
            self.network_changed(self._watcher.decider(), Cause.EVENTS)


def _peer_of(sock: socket.socket) -> tuple[Any, ...] | None:
    try:
        peer: tuple[Any, ...] = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    return peer


def _keeps_source(sock: socket.socket, path: Path) -> bool:
    """Whether the address that the socket has as its own, if it has one, is still there."""
    local = unmapped(address_of(sock.getsockname()))
    return local.is_unspecified or without_scope(local) in path.addresses


def _has_certain_address(sock: socket.socket) -> bool:
    return not address_of(sock.getsockname()).is_unspecified


def _families(sock: socket.socket) -> tuple[socket.AddressFamily, ...]:
    """The families that an unconnected socket is for, the one to follow first."""
    family = socket.AddressFamily(sock.family)
    if family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return (socket.AF_INET6, socket.AF_INET)
    return (family,)


def _first(decisions: list[Decision]) -> Decision:
    """The first one that has an interface, else the first."""
    return next((d for d in decisions if d.interface is not None), decisions[0])


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()
