"""A socket factory for trio: the sockets of every library leave by the effective interface, as on :class:`bindsock.EventLoop`.

A socket is bound when it connects or first sends, because its destination is unknown before. Sockets for this host, listening
sockets, and sockets that are already bound are left alone.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from bindsock.datagram.in_place import InPlaceMover
from bindsock.dial.binding import Begun, begin_connect, connect_error, going_on
from bindsock.dial.chosen import is_left_alone
from bindsock.dial.resolving import address_of, numeric_address
from bindsock.dial.unmanaged import is_client
from bindsock.model.decision import path_of, pinned_to
from bindsock.options import ConnectOptions
from bindsock.stream.guard import StreamGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.anyio._trio_network import TrioNetwork
    from bindsock.dial.resolving import SockAddr
    from bindsock.model.network import Network

    _TrioSocket = trio.socket.SocketType
else:
    # trio's own socket class has no public name, but can be taken from an example. Its other methods stay as they are.
    with socket.socket() as _example:
        _TrioSocket = type(trio.socket.from_stdlib_socket(_example))


class BoundSocket(_TrioSocket):
    """A trio socket that leaves by the effective interface."""

    def __init__(self, sock: socket.socket, network: TrioNetwork) -> None:
        super().__init__(sock)  # type: ignore[call-arg]
        self._plain = sock
        self._network = network
        self._guard: StreamGuard | InPlaceMover | None = None

    async def connect(self, address: Any) -> None:
        """Bind the socket to the interface for this address, connect it, and follow it."""
        if not self._is_client() or is_left_alone(self._network.watcher.kernel, self._plain):
            await super().connect(address)
            return
        address = await self._numeric(address)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.close()
            raise
        destination = address_of(address)
        decision = self._network.bind(self._plain, destination)
        watcher = self._network.watcher

        def network() -> Network:
            return watcher.refresh().network

        try:
            begun = begin_connect(watcher.kernel, self._plain, decision, network, address)
            if begun is not Begun.CONNECTED:
                with going_on(begun):
                    await super().connect(address)
        except OSError as error:
            raise connect_error(watcher.kernel, self._plain, error, decision, address, network) from None
        if self._plain.type == socket.SOCK_STREAM:
            pinned = ConnectOptions(interface=pinned_to(decision))
            self._guard = self._network.follow(self._plain, destination, path_of(decision), pinned)
        else:
            self._guard = self._network.watch_datagrams(self._plain, destination, path_of(decision), pinned_to(decision))

    async def sendto(self, *args: Any) -> int:
        """Bind a client's socket to the interface for the destination, and follow it."""
        if isinstance(self._guard, InPlaceMover):
            address = await self._numeric(args[-1])
            args = (*args[:-1], address)
            self._guard.retarget(self._plain, address_of(address))
        elif self._guard is None and self._is_client():
            address = await self._numeric(args[-1])
            args = (*args[:-1], address)
            self._guard = self._network.follow_datagrams(self._plain, address_of(address))
        sent = await super().sendto(*args)
        if isinstance(self._guard, InPlaceMover):
            self._guard.sent(self._plain)
        return sent

    async def recv(self, *args: Any) -> bytes:
        try:
            data: bytes = await super().recv(*args)
        except OSError as error:
            self._ended(error)
        return data

    async def recv_into(self, *args: Any) -> int:
        try:
            count: int = await super().recv_into(*args)
        except OSError as error:
            self._ended(error)
        return count

    async def send(self, *args: Any) -> int:
        try:
            count: int = await super().send(*args)
        except OSError as error:
            self._ended(error)
        return count

    def close(self) -> None:
        self._unfollow()
        lingering = self._network.lingering_close.duplicate(self._plain)
        super().close()
        if lingering is not None:
            self._network.lingering_close.finish(lingering)

    def detach(self) -> int:
        self._unfollow()
        return super().detach()

    def _is_client(self) -> bool:
        return is_client(self._plain, self._network.watcher.refresh)

    def _unfollow(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def _ended(self, error: OSError) -> NoReturn:
        """Raise the guard's error if it has ended the connection, otherwise the error itself."""
        reason = self._guard.error if isinstance(self._guard, StreamGuard) else None
        if reason is not None:
            raise reason from error
        raise error

    async def _numeric(self, address: SockAddr) -> SockAddr:
        return await numeric_address(self._plain, address, trio.socket.getaddrinfo)


class BoundSocketFactory(trio.abc.SocketFactory):
    """Makes sockets that leave by the effective interface.

    :param make: makes a trio socket from one of the standard library
    """

    def __init__(self, network: TrioNetwork, make: Callable[[socket.socket, TrioNetwork], BoundSocket] = BoundSocket) -> None:
        self._network = network
        self._make = make

    def socket(
        self,
        family: socket.AddressFamily | int = socket.AF_INET,
        type: socket.SocketKind | int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> trio.socket.SocketType:
        return self._make(socket.socket(family, type, proto), self._network)
