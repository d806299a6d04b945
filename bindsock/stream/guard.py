"""Streams that bindsock cannot move: ended with an error as soon as they can no longer work.

TCP does not survive the loss of its address, and nobody tells it: on Linux a reader waits for 15 minutes, or for ever if nothing
was unacknowledged. Until that moment the transport that the application has is the event loop's own, with nothing in between.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from bindsock.dial.followed_socket import FollowedSocket, watch_end
from bindsock.errors import InterfaceChanged
from bindsock.model.change import Cause
from bindsock.model.decision import Path
from bindsock.model.network import Target
from bindsock.netmon.turns import callback_budget
from bindsock.options import BetterPath
from bindsock.stream import viability
from bindsock.stream.follower import PathFollower
from bindsock.stream.viability import Assessment, Countdown, Viability, leaves

if TYPE_CHECKING:
    from bindsock.kernel import Kernel
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

__all__ = ["StreamGuard", "end_transport", "follow_stream"]

logger = logging.getLogger("bindsock")


def follow_stream(
    watcher: Watcher,
    sock: socket.socket,
    target: Target,
    *,
    better_path: BetterPath = "auto",
    interface: str | None = None,
    dead_after: float | None = None,
    path: Path | None,
    loop: asyncio.AbstractEventLoop,
) -> StreamGuard:
    """End a connected socket with :class:`InterfaceChanged` when it can no longer work and another interface can.

    Following stops when the socket is closed or forgotten.

    :param target: the peer's address
    :param better_path: what to do when it works but the effective interface is another one
    :param interface: the name of the interface to which the connection is pinned
    :param dead_after: seconds of silence that a multipath connection may keep
    :param path: the path on which it was dialled, ``None`` where it is bound to nothing: then it is not followed
    :param loop: the event loop on which the watcher runs
    :raises OSError: the socket is closed
    """
    guard = StreamGuard(watcher, sock, target, better_path, interface, dead_after, path, loop)
    if path is not None:
        guard.start(sock, path)
    return guard


class StreamGuard:
    """Follows one stream socket. The watcher holds it; it holds socket and transport weakly."""

    def __init__(
        self,
        watcher: Watcher,
        sock: socket.socket,
        target: Target,
        better_path: BetterPath,
        pin: str | None,
        dead_after: float | None,
        path: Path | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.error: InterfaceChanged | None = None
        """Why it was ended, once it has been."""
        self._watcher = watcher
        self._target = target
        self._better_path: BetterPath = better_path
        self._pin = pin
        self._dead_after = dead_after
        self._path = path
        self._loop = weakref.ref(loop)
        self._standing: PathFollower | None = None
        self._sock: weakref.ref[socket.socket] | None = weakref.ref(sock)
        self._transport: weakref.ref[asyncio.WriteTransport] | None = None
        self._kept_transport: asyncio.WriteTransport | None = None
        self._sample_timer: asyncio.TimerHandle | None = None
        self._countdown: Countdown | None = None

    @property
    def interface(self) -> str | None:
        """The name of the interface that the connection uses, ``None`` if it is bound to none."""
        if self._standing is not None:
            return self._standing.place.interface
        return self._path.interface if self._path is not None else None

    @property
    def following(self) -> bool:
        """Whether it still does: not once the connection has ended, or the factory has let go of it."""
        return self._watcher.follows(self)

    def is_viable(self) -> bool:
        """Whether the connection can still work, as far as the system has announced it; the event loop may not know yet."""
        if self.following:
            self._watcher.refresh()
        return self.error is None

    def start(self, sock: socket.socket, path: Path) -> None:
        """Begin to follow.

        :raises OSError: the socket is closed
        """
        self._watcher.follow(self)
        try:
            loop = self._loop()
            assert loop is not None
            self._standing = PathFollower(
                self._watcher,
                sock,
                self._target,
                self._pin,
                path,
                loop,
                self._look,
                stays=self._better_path == "keep",
                dead_after=self._dead_after,
            )
            self._sock = watch_end(sock, self.close)
            # What happened between the dial and now raises no further event.
            self._look()
        except BaseException:
            self.close()
            raise

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Say which transport has been made of the socket, so that its protocol is told the reason of an end."""
        if self.error is not None:
            end_transport(transport, self.error)
            return
        sock = self._socket()
        if sock is None:
            return
        try:
            self._transport = weakref.ref(transport)
        except TypeError:
            # uvloop's TLS transport. The socket lives as long as it does, and may hold it.
            if isinstance(sock, FollowedSocket):
                sock.transport = transport
            else:
                self._kept_transport = transport

    def close(self) -> None:
        """Stop following. The connection stays as it is."""
        self._watcher.unfollow(self)
        self._stay()
        if self._standing is not None:
            self._standing.close()
        self._sock = None
        self._transport = None
        self._kept_transport = None

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """End the connection if it is dead and something else is usable; else wait, or count down, or leave it alone."""
        sock = self._socket()
        if sock is None:
            self.close()
            return
        if self._standing is None:
            return  # it is being made, and what was announced before is read for that; start() looks afterwards
        found = self._standing.judge(sock, decider)
        if found.viability is not Viability.WORKS:
            self._stay()
            if found.viability is Viability.DEAD and found.usable:
                self._end(sock, found)
            return
        place = self._standing.place
        if found.better is None or not leaves(self._better_path, decider.network, place, found.better, decider.preferences):
            self._stay()
        elif self._better_path == "abort":
            self._end(sock, found)
        elif self._countdown is None:
            self._countdown = Countdown(self._watcher.runtime.time(), self._watcher.kernel.activity(sock))
            self._sample_timer = self._call_later(viability.SAMPLE, self._sample)

    def _look(self) -> None:
        if self._watcher.follows(self):
            self.network_changed(self._watcher.refresh(), Cause.EVENTS)

    def _sample(self) -> None:
        self._sample_timer = None
        sock = self._socket()
        if sock is None or self._countdown is None or not self._watcher.follows(self):
            return
        if not self._countdown.due(self._watcher.runtime.time(), self._watcher.kernel.activity(sock)):
            self._sample_timer = self._call_later(viability.SAMPLE, self._sample)
            return
        decider = self._watcher.refresh()
        # The newest reading may have ended it already, or made it stay.
        if self._countdown is not None and self._standing is not None:
            self._end(sock, self._standing.judge(sock, decider))

    def _stay(self) -> None:
        self._countdown = None
        if self._sample_timer is not None:
            self._sample_timer.cancel()
            self._sample_timer = None

    def _end(self, sock: socket.socket, found: Assessment) -> None:
        connection = f"the connection to {self._target} over {self.interface}"
        successor = found.target.name if found.target is not None else None
        self.error = InterfaceChanged(
            f"{connection} was ended: {found.reason}", interface=self.interface, new_interface=successor
        )
        logger.info(
            "%s is ended: %s; a new one leaves by %s", connection, found.reason, successor or "no interface in particular"
        )
        transport = self._attached(sock)
        self.close()
        self._watcher.statistics.ended += 1
        loop = self._loop()
        if loop is not None:
            callback_budget(loop).do(functools.partial(_end, self._watcher.kernel, sock, transport, self.error))

    def _attached(self, sock: socket.socket) -> asyncio.WriteTransport | None:
        if self._transport is not None:
            return self._transport()
        return sock.transport if isinstance(sock, FollowedSocket) else self._kept_transport

    def _socket(self) -> socket.socket | None:
        sock = self._sock() if self._sock is not None else None
        return sock if sock is not None and sock.fileno() != -1 else None

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle | None:
        loop = self._loop()
        return loop.call_later(seconds, callback) if loop is not None and not loop.is_closed() else None


def _end(kernel: Kernel, sock: socket.socket, transport: asyncio.WriteTransport | None, error: InterfaceChanged) -> None:
    if transport is not None:
        end_transport(transport, error)
    if sock.fileno() == -1:
        return
    # Also where there is a transport: it wakes a sendfile(), which asyncio's abort() leaves asleep for ever, and the peer gets a
    # reset, so that it does not take half a message for the whole of it.
    try:
        kernel.abort(sock)
    except OSError as failure:
        logger.info("a socket could not be aborted: %s", failure)


def end_transport(transport: asyncio.WriteTransport, error: InterfaceChanged) -> None:
    """Abort a transport so that its protocol's ``connection_lost()`` gets the error.

    ``transport.abort()`` alone looks like a clean end of file: ``connection_lost(None)``, and ``readline()`` returns ``b""``. So
    another protocol is put in between at this moment. On a raw transport beneath ``start_tls()`` that is in front of the TLS
    protocol, which tells the application's. Whoever is closing the transport already is not told.
    """
    if not transport.is_closing():
        transport.set_protocol(_Ending(transport.get_protocol(), error))
        transport.abort()


class _Ending(asyncio.Protocol):
    """Passes the end on with an error. Nothing but the end comes after abort()."""

    __slots__ = ("_error", "_protocol")

    def __init__(self, protocol: asyncio.BaseProtocol, error: InterfaceChanged) -> None:
        self._protocol = protocol
        self._error = error

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(self._error)
