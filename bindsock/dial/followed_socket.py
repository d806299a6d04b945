"""A socket that calls back when it is closed, and whose connection can have a lingering close."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bindsock.dial.chosen import own_address
from bindsock.dial.lingering_close import duplicate

if TYPE_CHECKING:
    from bindsock.dial.lingering_close import LingeringClose


class FollowedSocket(socket.socket):
    """A socket that calls back when it is closed or detached, so that its follower can stop at once.

    asyncio's transports ``close()`` the socket object that they were given; uvloop's ``detach()`` it, since libuv closes the
    descriptor. Neither transport needs a wrapper.
    """

    _callbacks: list[Callable[[], object]] | None = None
    transport: asyncio.WriteTransport | None = None
    """The transport that uses the socket. It is stored here so that the follower keeps it alive only as long as the socket."""
    guard: object = None
    """The guard that ends the connection when it cannot work any more."""
    _lingering_close: LingeringClose | None = None
    _kept: Callable[[], socket.socket | None] | None = None
    _inode: int | None = None
    _connecting: tuple[Callable[[FollowedSocket, Any, bool], object], ...] = ()

    def set_lingering_close(self, lingering_close: LingeringClose) -> None:
        """Close the connection in this way when the socket is closed."""
        self._lingering_close = lingering_close

    def expect_detach(self) -> None:
        """Keep a duplicate for the lingering close, for a transport that closes the descriptor before it detaches the socket."""
        self._inode = os.fstat(self.fileno()).st_ino
        if self._lingering_close is not None and self._kept is None and (own := duplicate(self)) is not None:
            descriptor = own.detach()
            finalizer = weakref.finalize(self, os.close, descriptor)
            finalizer.atexit = False

            def taken(family: int = self.family, kind: int = self.type, proto: int = self.proto) -> socket.socket | None:
                # The garbage collector has run the finalizer before the transport closes this socket. The number may belong
                # to another file now.
                if finalizer.detach() is None:
                    return None
                return socket.socket(family, kind, proto, fileno=descriptor)

            self._kept = taken

    def detach_if_closed(self) -> None:
        """Detach the socket if its transport has closed the descriptor but has not detached it.

        The number may already belong to another file. uvloop's ``create_connection(sock=)`` attaches the socket one iteration of
        the loop after the transport has taken the descriptor. If the connection ends in between, uvloop closes the descriptor
        and does not detach the socket (``uvloop/loop.pyx``, create_connection).
        """
        if self._inode is None or self.fileno() == -1:
            return
        try:
            if os.fstat(self.fileno()).st_ino == self._inode:
                return
        except OSError:
            pass
        self.detach()

    def on_connect(self, callback: Callable[[FollowedSocket, Any, bool], object]) -> None:
        """Call back once when a ``connect()`` has given the socket a local address. It may still be connecting.

        :param callback: takes the socket, the address of the peer, and whether the program had bound the socket to its local
            address; ``connect()`` raises its errors
        """
        self._connecting += (callback,)

    def connect(self, address: Any) -> None:
        """Connect, or start to connect."""
        chosen = bool(self._connecting) and own_address(self) is not None
        try:
            super().connect(address)
        except (BlockingIOError, InterruptedError):
            self._notify_connecting(address, chosen)
            raise
        self._notify_connecting(address, chosen)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call back once when the socket is closed or detached; at once if it is closed already."""
        if self.fileno() == -1:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        """Close the socket. If a file of ``makefile()`` is still open, the descriptor is closed with that file."""
        lingering = self._duplicate_to_linger()
        super().close()
        if self.fileno() == -1:
            self._finish(lingering)
            self._notify_closed()
        elif lingering is not None:
            lingering.close()

    def detach(self) -> int:
        """Detach the socket from its descriptor, which stays open.

        :return: the descriptor
        """
        kept, self._kept = self._kept, None
        descriptor = super().detach()
        if kept is not None:
            self._finish(kept())
        self._notify_closed()
        return descriptor

    def _duplicate_to_linger(self) -> socket.socket | None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept()
        if self._lingering_close is None or self.fileno() == -1:
            return None
        return self._lingering_close.duplicate(self)

    def _notify_connecting(self, address: Any, chosen: bool) -> None:
        callbacks, self._connecting = self._connecting, ()
        for callback in callbacks:
            callback(self, address, chosen)

    def _finish(self, lingering: socket.socket | None) -> None:
        lingering_close, self._lingering_close = self._lingering_close, None
        if lingering is None:
            return
        if lingering_close is not None:
            lingering_close.finish(lingering)
        else:
            lingering.close()

    def _notify_closed(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        self.transport = None
        for callback in callbacks or ():
            callback()


def watch_end(sock: socket.socket, method: Callable[[], object]) -> weakref.ref[socket.socket]:
    """Call a method once when the socket is closed or detached, or, if it is no :class:`FollowedSocket`, when it is freed.

    :param method: a bound method; its object is held weakly
    :return: a weak reference to the socket
    """
    if isinstance(sock, FollowedSocket):
        sock.on_close(method)
        return weakref.ref(sock)
    weak = weakref.WeakMethod(method)

    def forgotten(_: object) -> None:
        alive = weak()
        if alive is not None:
            alive()

    return weakref.ref(sock, forgotten)
