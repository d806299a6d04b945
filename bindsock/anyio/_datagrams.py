"""anyio's UDP sockets, over a datagram transport that moves with the effective interface, on every backend."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
from anyio.abc import ConnectedUDPSocket, SocketAttribute, UDPSocket
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from bindsock.anyio._streams import BindsockAttribute

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from anyio.abc import UDPPacketType

    from bindsock.datagram.open import DatagramTransport

_QUEUE = 100
"""How many received datagrams are queued. If there are more, the oldest are dropped, as in anyio's own sockets."""

T = TypeVar("T")


class _Open(Protocol):
    def __call__(
        self, protocol_factory: Callable[[], DatagramQueue], local_addr: Any, remote_addr: Any, **options: Any
    ) -> Awaitable[tuple[DatagramTransport, DatagramQueue]]: ...


async def open_queue(open_datagram: _Open, local_addr: Any, remote_addr: Any, **options: Any) -> DatagramQueue:
    """Open a datagram transport with a queue for the received datagrams."""
    _, queue = await open_datagram(DatagramQueue, local_addr, remote_addr, **options)
    return queue


class DatagramQueue(asyncio.DatagramProtocol):
    """Queues the datagrams that a transport receives. Apart from its base class, it needs nothing of asyncio."""

    transport: DatagramTransport

    def __init__(self) -> None:
        self._queue: deque[tuple[bytes, tuple[str, int]]] = deque(maxlen=_QUEUE)
        self._received = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()
        self._ended = anyio.Event()
        self._lost: Exception | None = None
        self._closed = False
        self._receiving = anyio.ResourceGuard("reading from")
        self._sending = anyio.ResourceGuard("writing to")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc
        self._ended.set()
        self._received.set()
        self._writable.set()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._queue.append((data, _plain(addr)))
        self._received.set()

    def pause_writing(self) -> None:
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        with self._receiving:
            await checkpoint()
            while not self._queue:
                await self._raise_if_ended()
                self._received = anyio.Event()
                await self._received.wait()
            return self._queue.popleft()

    async def send(self, data: bytes, address: tuple[str, int] | None) -> None:
        with self._sending:
            await checkpoint_if_cancelled()
            await self._writable.wait()
            await self._raise_if_ended()
            self.transport.sendto(data, address)
            # While there is no path, datagrams are held for some seconds. Wait, so that the sender does not fill the queue.
            await self._writable.wait()
            await checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        self.transport.abort()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """anyio's socket attributes, with their present values."""
        transport = self.transport

        def raw_socket() -> Any:
            return transport.get_extra_info("socket")

        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.raw_socket: raw_socket,
            SocketAttribute.family: lambda: raw_socket().family,
            SocketAttribute.local_address: lambda: _plain(transport.get_extra_info("sockname")),
            SocketAttribute.local_port: lambda: transport.get_extra_info("sockname")[1],
            BindsockAttribute.interface: lambda: transport.get_extra_info("interface"),
        }
        peer = transport.get_extra_info("peername")
        if peer is not None:
            attributes[SocketAttribute.remote_address] = lambda: _plain(peer)
            attributes[SocketAttribute.remote_port] = lambda: peer[1]
        return attributes

    async def _raise_if_ended(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self.transport.is_closing():
            await self._ended.wait()
            raise anyio.BrokenResourceError(str(self._lost or "the socket has ended")) from self._lost


class _QueueSocket:
    """The common part of the two kinds of UDP sockets."""

    def __init__(self, queue: DatagramQueue) -> None:
        self._queue = queue

    async def aclose(self) -> None:
        await self._queue.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._queue.extra_attributes

    @property
    def _raw_socket(self) -> socket.socket:
        sock: socket.socket = self.extra_attributes[SocketAttribute.raw_socket]()
        return sock


class FollowedUDPSocket(_QueueSocket, UDPSocket):
    """An unconnected UDP socket that moves with the effective interface."""

    async def receive(self) -> UDPPacketType:
        return await self._queue.receive()

    async def send(self, item: UDPPacketType) -> None:
        data, address = item
        await self._queue.send(data, address)


class FollowedConnectedUDPSocket(_QueueSocket, ConnectedUDPSocket):
    """A connected UDP socket that moves with the effective interface."""

    async def receive(self) -> bytes:
        data, _ = await self._queue.receive()
        return data

    async def send(self, item: bytes) -> None:
        await self._queue.send(item, None)


def _plain(address: Any) -> tuple[str, int]:
    """An address in anyio's form: the host, with its scope, and the port."""
    if len(address) == 4 and address[3] and "%" not in address[0]:
        return f"{address[0]}%{address[3]}", address[1]
    return address[0], address[1]
