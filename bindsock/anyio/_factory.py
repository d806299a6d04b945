"""The functions of :mod:`bindsock.anyio`, and the factory whose methods they are."""

from __future__ import annotations

import asyncio
import errno
import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from socket import AddressFamily
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

import anyio
from anyio.abc import ByteStream, ByteStreamConnectable, ConnectedUDPSocket, SocketStream, UDPSocket
from anyio.streams.tls import TLSStream

from bindsock import kernel as kernels
from bindsock.anyio._datagrams import FollowedConnectedUDPSocket, FollowedUDPSocket, open_queue
from bindsock.anyio._reconnecting import OnReconnect, ReconnectingStream
from bindsock.anyio._streams import FollowedStream
from bindsock.default import running_factory, set_factory
from bindsock.extras import needs
from bindsock.factory import TransportFactory as AsyncioFactory
from bindsock.factory import connector_of
from bindsock.model.preferences import Preferences, preferences_or_default
from bindsock.options import (
    DRAIN_TIMEOUT,
    RECONNECT_TIMEOUT,
    ConnectOptions,
    check_factory,
    known_keywords_only,
)

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

    from bindsock.anyio._trio_network import TrioNetwork
    from bindsock.dial.resolving import Resolve
    from bindsock.kernel import Kernel
    from bindsock.options import BetterPath
    from bindsock.stream.guard import StreamGuard

IPAddressType: TypeAlias = str | IPv4Address | IPv6Address
_Family: TypeAlias = Literal[AddressFamily.AF_UNSPEC, AddressFamily.AF_INET, AddressFamily.AF_INET6]


class TransportFactory:
    """Like :class:`bindsock.TransportFactory`, with anyio's functions, for asyncio and trio.

    :param preferences: how to choose among interfaces
    :param interface: the name of the only interface to use; detected unless given
    :param kernel: the kernel to ask; that of the running system unless given
    :param better_path: what to do with a working stream when another interface is better
    :param resolver: resolves names to addresses; the system's resolver unless given. It must support the event loop in use
    :param repair_routes: if a VPN has left no route by any uplink, add one that only bound sockets use, and remove it at the end
        of the run, as :class:`bindsock.TransportFactory` does
    :raises TypeError: a keyword is unknown, or a value has the wrong type
    :raises ValueError: a value is not one of the choices
    :raises UnsupportedSystem: there is no kernel backend for this system
    """

    @known_keywords_only
    def __init__(
        self,
        preferences: Preferences | None = None,
        *,
        interface: str | None = None,
        kernel: Kernel | None = None,
        better_path: BetterPath = "auto",
        resolver: Resolve | None = None,
        repair_routes: bool = False,
    ) -> None:
        check_factory(interface, better_path, resolver, repair_routes, resolver_by_name=False)
        self._preferences = preferences_or_default(preferences)
        self._interface = interface
        self._kernel = kernel if kernel is not None else kernels.current()
        self._on_this_system = kernel is None
        self._better_path: BetterPath = better_path
        self._resolver = resolver
        self._repair_routes = repair_routes
        self._asyncio: AsyncioFactory | None = None
        self._trio: TrioNetwork | None = None

    @overload
    async def connect_tcp(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        happy_eyeballs_delay: float = ...,
        interface: str | None = ...,
        better_path: BetterPath | None = ...,
        dead_after: float | None = ...,
        multipath: bool = ...,
    ) -> SocketStream: ...

    @overload
    async def connect_tcp(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: bool = ...,
        ssl_context: ssl.SSLContext | None = ...,
        tls_standard_compatible: bool = ...,
        tls_hostname: str | None = ...,
        happy_eyeballs_delay: float = ...,
        interface: str | None = ...,
        better_path: BetterPath | None = ...,
        dead_after: float | None = ...,
        multipath: bool = ...,
        on_reconnect: OnReconnect,
        drain_timeout: float = ...,
        reconnect_timeout: float = ...,
    ) -> ReconnectingStream: ...

    @overload
    async def connect_tcp(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: Literal[True],
        ssl_context: ssl.SSLContext | None = ...,
        tls_standard_compatible: bool = ...,
        tls_hostname: str | None = ...,
        happy_eyeballs_delay: float = ...,
        interface: str | None = ...,
        better_path: BetterPath | None = ...,
        dead_after: float | None = ...,
        multipath: bool = ...,
    ) -> TLSStream: ...

    @overload
    async def connect_tcp(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: bool = ...,
        ssl_context: ssl.SSLContext | None = ...,
        tls_standard_compatible: bool = ...,
        tls_hostname: str | None = ...,
        happy_eyeballs_delay: float = ...,
        interface: str | None = ...,
        better_path: BetterPath | None = ...,
        dead_after: float | None = ...,
        multipath: bool = ...,
        on_reconnect: OnReconnect | None = ...,
        drain_timeout: float = ...,
        reconnect_timeout: float = ...,
    ) -> SocketStream | TLSStream | ReconnectingStream: ...

    @known_keywords_only
    async def connect_tcp(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        local_host: IPAddressType | None = None,
        local_port: int | None = None,
        tls: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        tls_standard_compatible: bool = True,
        tls_hostname: str | None = None,
        happy_eyeballs_delay: float = 0.25,
        interface: str | None = None,
        better_path: BetterPath | None = None,
        dead_after: float | None = None,
        multipath: bool = False,
        on_reconnect: OnReconnect | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
    ) -> SocketStream | TLSStream | ReconnectingStream:
        """:func:`anyio.connect_tcp`, over the effective interface.

        When the connection cannot work any more, ``receive()`` and ``send()`` raise :class:`anyio.BrokenResourceError` with an
        :class:`~bindsock.errors.InterfaceChanged` as its cause. With ``on_reconnect`` they go on over a new connection.

        :param interface: the name of the only interface to use; the factory's unless given
        :param better_path: what to do with a working stream when another interface is better; the factory's unless given
        :param dead_after: seconds without an answer from the peer after which the connection fails; no limit unless given
        :param multipath: use multipath TCP if both the system and the peer support it; otherwise plain TCP
        :param on_reconnect: called with each new connection: see :class:`ReconnectingStream`
        :param drain_timeout: seconds to wait for data in flight on the old connection when it is replaced for a better path
        :param reconnect_timeout: seconds within which a new connection must be made
        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises OSError: resolving the name or connecting failed
        """
        options = ConnectOptions(
            local_addr=(str(local_host), local_port or 0) if local_host is not None else None,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interface=interface,
            better_path=better_path,
            dead_after=dead_after,
            multipath=multipath,
            drain_timeout=drain_timeout,
            reconnect_timeout=reconnect_timeout,
        )
        if on_reconnect is None and options.concerns_replacement:
            raise ValueError("drain_timeout and reconnect_timeout need on_reconnect")

        async def connect() -> tuple[SocketStream | TLSStream, StreamGuard | None]:
            sock, guard = await self._connect(str(remote_host), remote_port, options)
            lingering_close = self._trio_network().lingering_close if on_trio() else None
            try:
                stream = FollowedStream(await SocketStream.from_socket(sock), guard, lingering_close)
            except ValueError as error:
                # anyio raises this if the socket is not connected any more: the connection has ended since the dial.
                sock.close()
                ended = guard.error if guard is not None else None
                raise ended or ConnectionResetError(errno.ECONNRESET, "the peer closed the new connection at once") from error
            except BaseException:
                sock.close()
                raise
            if not (tls or ssl_context or tls_hostname):
                return stream, guard
            try:
                wrapped = await TLSStream.wrap(
                    stream,
                    server_side=False,
                    hostname=tls_hostname or str(remote_host),
                    ssl_context=ssl_context,
                    standard_compatible=tls_standard_compatible,
                )
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise
            return wrapped, guard

        if on_reconnect is not None:
            reconnecting = ReconnectingStream(
                _with_os_errors(connect), on_reconnect, timeout=reconnect_timeout, drain_timeout=drain_timeout
            )
            await reconnecting.open()
            return reconnecting
        stream, _ = await connect()
        return stream

    @known_keywords_only
    async def create_udp_socket(
        self,
        family: _Family = AddressFamily.AF_UNSPEC,
        *,
        local_host: IPAddressType | None = None,
        local_port: int = 0,
        reuse_port: bool = False,
        interface: str | None = None,
    ) -> UDPSocket:
        """:func:`anyio.create_udp_socket`, with a socket that moves with the effective interface.

        :param interface: the name of the only interface to use; the factory's unless given
        :raises NoEffectiveInterface: no interface may be used
        :raises OSError: the socket could not be bound
        """
        if family == AddressFamily.AF_UNSPEC and not local_host:
            raise ValueError('Either "family" or "local_host" must be given')
        if not local_host:
            local_host = "::" if family == AddressFamily.AF_INET6 else "0.0.0.0"
        queue = await open_queue(
            self._open_datagram(),
            (str(local_host), local_port),
            None,
            family=family,
            reuse_port=reuse_port or None,
            interface=interface,
        )
        return FollowedUDPSocket(queue)

    @known_keywords_only
    async def create_connected_udp_socket(
        self,
        remote_host: IPAddressType,
        remote_port: int,
        *,
        family: _Family = AddressFamily.AF_UNSPEC,
        local_host: IPAddressType | None = None,
        local_port: int = 0,
        reuse_port: bool = False,
        interface: str | None = None,
    ) -> ConnectedUDPSocket:
        """:func:`anyio.create_connected_udp_socket`, with a socket that moves with the effective interface.

        :param interface: the name of the only interface to use; the factory's unless given
        :raises NoEffectiveInterface: no interface may be used
        :raises OSError: the socket could not be bound or connected
        """
        local_addr: tuple[str | None, int] | None = (str(local_host), local_port) if local_host else None
        if local_addr is None and local_port:
            local_addr = ("::" if family == AddressFamily.AF_INET6 else "0.0.0.0", local_port)
        queue = await open_queue(
            self._open_datagram(),
            local_addr,
            (str(remote_host), remote_port),
            family=family,
            reuse_port=reuse_port or None,
            interface=interface,
        )
        return FollowedConnectedUDPSocket(queue)

    async def _connect(self, host: str, port: int, options: ConnectOptions) -> tuple[socket.socket, StreamGuard | None]:
        if on_trio():
            return await self._trio_network().connect(host, port, options)
        connector = connector_of(self._asyncio_factory())
        sock = await connector.connect(host, port, options)
        return sock, connector.guard_of(sock)

    def _open_datagram(self) -> Any:
        return self._trio_network().open_datagram if on_trio() else self._asyncio_factory().create_datagram_endpoint

    def _asyncio_factory(self) -> AsyncioFactory:
        if self._asyncio is None:
            self._asyncio = AsyncioFactory(
                self._preferences,
                interface=self._interface,
                kernel=self._kernel,
                better_path=self._better_path,
                resolver=self._resolver,
                repair_routes=self._repair_routes,
            )
        return self._asyncio

    def _trio_network(self) -> TrioNetwork:
        from bindsock.anyio._trio import trio_runtime
        from bindsock.anyio._trio_network import TrioNetwork, nat64_finder

        if self._trio is None or self._trio.runtime is not trio_runtime():
            self._trio = TrioNetwork(
                self._preferences,
                self._interface,
                self._kernel,
                self._better_path,
                self._resolver,
                find_nat64=nat64_finder(self._preferences, self._interface) if self._on_this_system else None,
                repair_routes=self._repair_routes,
            )
        return self._trio


class _Default(TransportFactory):
    """The factory of the module's functions. It uses the factory of the event loop, or the network of the trio run."""

    def __init__(self) -> None:
        """It has no options."""

    def _asyncio_factory(self) -> AsyncioFactory:
        return running_factory()

    def _trio_network(self) -> TrioNetwork:
        from bindsock.anyio._trio_network import running_network

        return running_network()


_default = _Default()
connect_tcp: Final = _default.connect_tcp
create_udp_socket: Final = _default.create_udp_socket
create_connected_udp_socket: Final = _default.create_connected_udp_socket


@dataclass
class TCPConnectable(ByteStreamConnectable):
    """anyio's ``TCPConnectable``, over the effective interface, for functions that take a ``ByteStreamConnectable``.

    :param host: host name or address
    :param port: TCP port
    :param factory: makes the connections; the event loop's factory unless given
    :raises ValueError: the port is out of range
    """

    host: IPAddressType
    port: int
    factory: TransportFactory = field(default=_default)

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError("TCP port number out of range")

    async def connect(self) -> SocketStream:
        try:
            return await self.factory.connect_tcp(self.host, self.port)
        except OSError as error:
            raise anyio.ConnectionFailed(f"error connecting to {self.host}:{self.port}: {error}") from error


TCPConnectable.__init__ = known_keywords_only(TCPConnectable.__init__)  # type: ignore[method-assign]


def install(factory: TransportFactory) -> None:
    """Make the functions of the module use this factory, on the running event loop or in the current trio run."""
    if on_trio():
        from bindsock.anyio._trio_network import set_network

        set_network(factory._trio_network())
    else:
        set_factory(asyncio.get_running_loop(), factory._asyncio_factory())


@known_keywords_only
def install_trio_socket_factory(factory: TransportFactory | None = None) -> None:
    """Make every socket of this trio run leave by the effective interface: those of trio's streams, anyio's, and httpx's on trio.

    This is for trio what :class:`bindsock.EventLoop` is for asyncio. It uses :func:`trio.socket.set_custom_socket_factory`.

    :param factory: the options; the defaults unless given. The functions of the module use it from now on, too
    """
    with needs("trio"):
        import trio

    from bindsock.anyio._trio_network import running_network
    from bindsock.anyio._trio_sockets import BoundSocketFactory

    if factory is not None:
        install(factory)
    trio.socket.set_custom_socket_factory(BoundSocketFactory(running_network()))


def on_trio() -> bool:
    """Whether the caller runs on trio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def _with_os_errors(connect: Callable[[], Awaitable[tuple[SocketStream | TLSStream, StreamGuard | None]]]) -> Any:
    """Make a failed TLS handshake an :class:`OSError`, like every other error of a dial."""

    async def attempt() -> tuple[ByteStream, StreamGuard | None]:
        try:
            return await connect()
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise OSError(f"the connection ended during the handshake: {error}") from error

    return attempt
