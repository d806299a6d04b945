"""A socket that tells when it is closed."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bindsock.dial.farewell import duplicate

if TYPE_CHECKING:
    from bindsock.dial.farewell import Farewell


class FollowedSocket(socket.socket):
    """A socket that tells when it is closed, so that whoever follows it can stop at once.

    asyncio's transports ``close()`` the socket object that they were given; uvloop's ``detach()`` it, since libuv closes the
    descriptor. Neither needs to be wrapped.
    """

    _callbacks: list[Callable[[], object]] | None = None
    transport: asyncio.WriteTransport | None = None
    """The transport that uses the socket, where whoever follows it must keep it alive no longer than the socket itself."""

    guard: object = None
    """What ends the connection when it cannot work any more."""
    _farewell: Farewell | None = None
    _kept: Callable[[], socket.socket | None] | None = None

    def say_farewell(self, farewell: Farewell) -> None:
        """End the connection in this way when the socket is closed."""
        self._farewell = farewell

    _inode: int | None = None

    def expect_detach(self) -> None:
        """Prepare for a transport that closes the descriptor before it detaches the socket: keep a duplicate for the farewell."""
        self._inode = os.fstat(self.fileno()).st_ino
        if self._farewell is not None and self._kept is None and (own := duplicate(self)) is not None:
            descriptor = own.detach()
            finalizer = weakref.finalize(self, os.close, descriptor)
            finalizer.atexit = False

            def taken(family: int = self.family, kind: int = self.type, proto: int = self.proto) -> socket.socket | None:
                # The collector calls finalizers before the transport that it frees with this socket closes it. By then the
                # number may be another file's.
                if finalizer.detach() is None:
                    return None
                return socket.socket(family, kind, proto, fileno=descriptor)

            self._kept = taken

    def detach_if_closed(self) -> None:
        """Detach the socket if its transport has closed the descriptor and does not do that: the number may be another file's.

        uvloop's ``create_connection(sock=)`` attaches the socket a turn of the loop after the transport has taken its descriptor.
        A connection that ends in between is closed without it (``uvloop/loop.pyx``, create_connection).
        """
        if self._inode is None or self.fileno() == -1:
            return
        try:
            if os.fstat(self.fileno()).st_ino == self._inode:
                return
        except OSError:
            pass
        self.detach()

    _connecting: Callable[[FollowedSocket], object] | None = None

    def on_connect(self, callback: Callable[[FollowedSocket], object]) -> None:
        """Call it once, with the socket, when ``connect()`` has given it its address; it need not be connected yet."""
        self._connecting = callback

    def connect(self, address: Any) -> None:
        """Connect, or begin to."""
        try:
            super().connect(address)
        except (BlockingIOError, InterruptedError):
            self._tell_connecting()
            raise
        self._tell_connecting()

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call it once, when the socket has been closed or detached; at once if it is closed already."""
        if self.fileno() == -1:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        """Close the socket. With a file of ``makefile()`` open, it is closed with that."""
        left = self._duplicate_for_farewell()
        super().close()
        if self.fileno() == -1:
            self._say(left)
            self._tell()
        elif left is not None:
            left.close()

    def detach(self) -> int:
        """Give the descriptor away, open.

        :return: the descriptor
        """
        kept, self._kept = self._kept, None
        descriptor = super().detach()
        if kept is not None:
            self._say(kept())
        self._tell()
        return descriptor

    def _duplicate_for_farewell(self) -> socket.socket | None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept()
        if self._farewell is None or self.fileno() == -1:
            return None
        return self._farewell.duplicate(self)

    def _say(self, left: socket.socket | None) -> None:
        farewell, self._farewell = self._farewell, None
        if left is None:
            return
        if farewell is not None:
            farewell.say(left)
        else:
            left.close()

    def _tell_connecting(self) -> None:
        callback, self._connecting = self._connecting, None
        if callback is not None:
            callback(self)

    def _tell(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        self.transport = None
        for callback in callbacks or ():
            callback()


def watch_end(sock: socket.socket, method: Callable[[], object]) -> weakref.ref[socket.socket]:
    """Call a method once, when the socket is closed or detached, as far as its class tells, or else when it is forgotten.

    :param method: a bound method; its object is not kept alive by this
    :return: the socket, which is not kept alive either
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
