"""The transport factory: makes connections that are bound to the effective interface and follow it."""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl as ssl_module
import weakref
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from bindsock import kernel as kernels
from bindsock.connector import Connector
from bindsock.dial.resolving import AddrInfo, Resolve
from bindsock.inspecting import Inspector
from bindsock.kernel import Kernel
from bindsock.model.change import Change
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Target, unmapped
from bindsock.model.preferences import Preferences, preferences_or_default
from bindsock.model.statistics import Statistics
from bindsock.model.subflows import Multipath
from bindsock.netmon.listening import ChangeListener
from bindsock.netmon.watcher import Watcher
from bindsock.options import (
    CONNECT_TIMEOUT,
    DRAIN_TIMEOUT,
    LIMIT,
    RECONNECT_TIMEOUT,
    BetterPath,
    ConnectOptions,
    check_factory,
    connect_options,
    datagram_options,
    known_keywords_only,
)

if TYPE_CHECKING:
    from bindsock.datagram.open import DatagramTransport
    from bindsock.reconnect.hooks import OnReconnect
    from bindsock.resolvers import InterfaceResolver

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)


class TransportFactory:
    """Makes connections that leave by the effective interface, and keeps them on it.

    A factory belongs to the event loop, the thread and the network namespace in which it is first used. At the end of an ``async
    with`` block it stops following its sockets, which stay open and bound. Without a block, and for connections that are made
    after it, it follows each socket until the socket is closed.

    :param preferences: how to choose among interfaces
    :param interface: the name of the only interface to use; detected unless given
    :param kernel: the kernel to ask; that of the running system unless given
    :param better_path: what to do with a working stream when the effective interface has changed: ``"auto"`` ends it on an
        expensive interface once it is idle, ``"keep"`` leaves it, ``"abort"`` ends it at once
    :param resolver: resolves names to addresses; the system's resolver unless given. ``"interface"`` or an
        :class:`~bindsock.resolvers.InterfaceResolver` asks over the effective interface, bypassing the VPN's name servers
    :param repair_routes: if a VPN has left no route by any uplink, add one that only bound sockets use, and remove it at the end
        (Linux, with CAP_NET_ADMIN): see :doc:`linux`. This changes the routing of the host, so it is off by default
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
        resolver: Resolve | InterfaceResolver | Literal["interface"] | None = None,
        repair_routes: bool = False,
    ) -> None:
        check_factory(interface, better_path, resolver, repair_routes)
        self._connector = Connector(
            kernel if kernel is not None else kernels.current(),
            preferences_or_default(preferences),
            interface,
            better_path,
            resolver,
            repair_routes=repair_routes,
        )
        self._inspector = Inspector(self._connector.kernel, self._connector.asking)
        self._held: Any = None

    @property
    def preferences(self) -> Preferences:
        """How to choose among interfaces."""
        return self._connector.preferences

    @property
    def interface(self) -> str | None:
        """The name of the only interface to use; ``None`` if it is detected."""
        return self._connector.interface

    @property
    def kernel(self) -> Kernel:
        """The kernel that the factory asks."""
        return self._connector.kernel

    @property
    def repair_routes(self) -> bool:
        """Whether the factory adds a route if a VPN has left none."""
        return self._connector.repairer is not None

    @property
    def better_path(self) -> BetterPath:
        """What to do with a working stream when another interface is better."""
        return self._connector.better_path

    async def __aenter__(self) -> Self:
        self._held = self._connector.watcher.hold()
        self._held.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        held.__exit__(exc_type, exc, traceback)
        self._connector.stop()

    @known_keywords_only
    def explain(self, destination: Target | str) -> Decision:
        """The interface by which a connection to the destination would leave, and why.

        ``str()`` of the decision is the text that ``bindsock explain`` prints.

        :param destination: an address, or a family for its default route; names are not resolved
        :raises TypeError: the destination is neither an address nor a family
        :raises ValueError: the destination is a name, or another family
        :raises OSError: the network could not be read
        """
        return self._inspector.explain(destination)

    @known_keywords_only
    def effective_interface(self, family: int = socket.AF_UNSPEC) -> Interface:
        """The effective interface: the uplink that carries the traffic, even if a VPN owns the default route.

        :param family: ``AF_INET`` or ``AF_INET6``; otherwise that of IPv4, or of IPv6 if IPv4 has none
        :raises NoEffectiveInterface: there is none
        :raises ValueError: the family is another one
        :raises OSError: the network could not be read
        """
        return self._inspector.effective_interface(family)

    def interface_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> str | None:
        """The name of the interface that a connection is bound to; ``None`` if it is unbound or closed.

        :param connection: a transport of any library, a stream writer, or a socket
        :raises TypeError: it is none of them
        """
        return self._inspector.interface_of(connection)

    def multipath_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> Multipath:
        """Whether multipath was negotiated for a connection, and its subflows.

        :param connection: a transport of any library, a stream writer, or a socket
        :raises TypeError: it is none of them
        """
        return self._inspector.multipath_of(connection)

    @known_keywords_only
    def bind(self, sock: socket.socket, destination: str | IPAddress | None = None) -> Decision:
        """Bind a new socket, once. It is not followed, and it is closed if binding fails.

        :param sock: a socket that is neither bound nor connected
        :param destination: the address to which it will connect, so that a LAN or this host is reached by its own route
        :return: the decision by which it was bound
        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the destination leaves by the interface
        :raises BindFailed: the system refused
        :raises ValueError: the socket is neither AF_INET nor AF_INET6
        """
        try:
            address = unmapped(ip_address(destination)) if isinstance(destination, str) else destination
        except ValueError:
            sock.close()
            raise
        return self._connector.bind(sock, address)

    @known_keywords_only
    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        host: str | None = None,
        port: int | str | None = None,
        *,
        ssl: ssl_module.SSLContext | bool | None = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        local_addr: tuple[str, int] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        happy_eyeballs_delay: float | None = None,
        interleave: int | None = None,
        all_errors: bool = False,
        interface: str | None = None,
        better_path: BetterPath | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        dead_after: float | None = None,
        multipath: bool = False,
        drain_timeout: float = DRAIN_TIMEOUT,
        reconnect_timeout: float | None = RECONNECT_TIMEOUT,
    ) -> tuple[asyncio.Transport, P]:
        """``loop.create_connection``, over the effective interface.

        A protocol with a method ``connection_replaced(transport, unread)``, coroutine method or not, gets one stable transport.
        When its connection is lost, or a better path appears, bindsock makes a new connection and calls the method, which can
        repeat a login or a subscription on it. Then the protocol goes on over the new connection: see :doc:`streams`.

        A ``sock=`` must be connected already: it is followed, but never bound or replaced. The keywords that are not listed here
        are those of ``loop.create_connection``.

        :param interface: the name of the only interface to use; the factory's unless given
        :param better_path: what to do with a working stream when another interface is better; the factory's unless given
        :param connect_timeout: seconds within which each address must answer, instead of the 127 of Linux; ``None`` for the
            system's own limit
        :param dead_after: seconds without an answer from the peer after which the connection fails, for paths that die without
            an event; at most 65,534, no limit unless given
        :param multipath: use multipath TCP if both the system and the peer support it, so that the byte stream itself moves from
            one interface to another; otherwise plain TCP. :func:`bindsock.multipath_of` reports which of them is in use
        :param drain_timeout: seconds to wait for data in flight on the old connection when it is replaced
        :param reconnect_timeout: seconds after which bindsock gives up replacing the connection; ``None`` for never
        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises NoRoute: no route to the host leaves by the interface
        :raises BindFailed: the system refused to bind, or the local address does not belong to an uplink
        :raises FirewallBlocked: a firewall rejected it: one on this host, or one on the path that sent an ICMP error
        :raises NoAnswer: the address did not answer in time; the message reports what is known about the cause
        :raises InterfaceChanged: the path changed again and again during the connect
        :raises EgressMismatch: the system chose the address of a tunnel
        :raises OSError: resolving the name, the connection or the handshake failed
        :raises TypeError: a keyword is unknown, or a value has the wrong type
        :raises ValueError: a value is out of range, or keywords contradict each other
        """
        options = connect_options(
            ssl=ssl,
            family=family,
            proto=proto,
            flags=flags,
            sock=sock,
            local_addr=local_addr,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
            all_errors=all_errors,
            interface=interface,
            better_path=better_path,
            connect_timeout=connect_timeout,
            dead_after=dead_after,
            multipath=multipath,
            drain_timeout=drain_timeout,
            reconnect_timeout=reconnect_timeout,
        )
        return await self._connector.create_connection(protocol_factory, host, port, options)

    @known_keywords_only
    async def open_connection(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        limit: int = LIMIT,
        on_reconnect: OnReconnect | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        local_addr: tuple[str, int] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        happy_eyeballs_delay: float | None = None,
        interleave: int | None = None,
        all_errors: bool = False,
        interface: str | None = None,
        better_path: BetterPath | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        dead_after: float | None = None,
        multipath: bool = False,
        drain_timeout: float = DRAIN_TIMEOUT,
        reconnect_timeout: float | None = RECONNECT_TIMEOUT,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """``asyncio.open_connection``, over the effective interface.

        The other keywords are those of :meth:`create_connection`.

        :param limit: the buffer limit of the reader, in bytes
        :param on_reconnect: ``async def on_reconnect(reader, writer, unread) -> bytes | None``. When the connection is lost, or
            a better path appears, it is called with the reader and writer of a new connection, on which it can repeat a login
            or a subscription, and with the unread bytes of the old connection. Then the reader and writer that this method
            returned go on over the new connection. They read the bytes that the hook returns first.
        :raises OSError: as :meth:`create_connection`
        """
        options = connect_options(
            ssl=ssl,
            family=family,
            proto=proto,
            flags=flags,
            sock=sock,
            local_addr=local_addr,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
            all_errors=all_errors,
            interface=interface,
            better_path=better_path,
            connect_timeout=connect_timeout,
            dead_after=dead_after,
            multipath=multipath,
            drain_timeout=drain_timeout,
            reconnect_timeout=reconnect_timeout,
        )
        return await self._connector.open_connection(host, port, options, limit, on_reconnect)

    @known_keywords_only
    async def connect(
        self,
        host: str,
        port: int | str,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        local_addr: tuple[str, int] | None = None,
        happy_eyeballs_delay: float | None = 0.25,
        interleave: int | None = None,
        all_errors: bool = False,
        interface: str | None = None,
        better_path: BetterPath | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        dead_after: float | None = None,
        multipath: bool = False,
    ) -> socket.socket:
        """Connect a non-blocking socket, for libraries that take ``sock=``. It is followed until it is closed.

        The other keywords are those of :meth:`create_connection`.

        :param happy_eyeballs_delay: seconds after which the next address is tried in parallel; ``None`` to try one by one
        :raises OSError: as :meth:`create_connection`
        """
        options = connect_options(
            family=family,
            proto=proto,
            flags=flags,
            local_addr=local_addr,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
            all_errors=all_errors,
            interface=interface,
            better_path=better_path,
            connect_timeout=connect_timeout,
            dead_after=dead_after,
            multipath=multipath,
        )
        return await self._connector.connect(host, port, options)

    @known_keywords_only
    def socket_factory(self, addr_info: AddrInfo) -> socket.socket:
        """Create and bind a non-blocking socket for one address, for libraries that take a factory (aiohttp, aiohappyeyeballs).

        If an event loop is running, a stream socket is followed until it is closed.

        :raises OSError: as :meth:`bind`
        """
        return self._connector.socket_factory(addr_info)

    @known_keywords_only
    def track(self, sock: socket.socket, *, better_path: BetterPath | None = None) -> None:
        """Follow a connected stream socket, or a datagram socket, that bindsock did not make.

        A stream is ended with an error when its interface is gone. A datagram socket is bound, and bound again in place when the
        effective interface changes. Following ends when the socket is closed or freed.

        A datagram socket is left alone if it is already bound to an interface or to the address of no uplink, or if its peer is
        this host.

        :param better_path: what to do with a working stream when another interface is better; the factory's unless given
        :raises OSError: a stream socket is not connected, or a datagram socket could not be bound; the latter has been closed
        :raises ValueError: the families of a dual-stack datagram socket have different effective interfaces
        """
        options = ConnectOptions(better_path=better_path)
        if sock.type == socket.SOCK_DGRAM:
            self._connector.follow_datagrams(sock)
        else:
            self._connector.follow_stream(sock, options)

    @known_keywords_only
    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], D],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        reuse_port: bool | None = None,
        allow_broadcast: bool | None = None,
        sock: socket.socket | None = None,
        interface: str | None = None,
    ) -> tuple[DatagramTransport, D]:
        """``loop.create_datagram_endpoint``, with one transport that moves with the effective interface.

        The other keywords are those of ``loop.create_datagram_endpoint``.

        :param interface: the name of the only interface to use; the factory's unless given
        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the remote address leaves by the interface
        :raises BindFailed: the system refused to bind, or the local address does not belong to an uplink
        """
        options = datagram_options(
            family=family,
            proto=proto,
            flags=flags,
            reuse_port=reuse_port,
            allow_broadcast=allow_broadcast,
            sock=sock,
            interface=interface,
        )
        return await self._connector.create_datagram_endpoint(protocol_factory, local_addr, remote_addr, options)

    @known_keywords_only
    async def resolve(
        self, host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[AddrInfo]:
        """``loop.getaddrinfo``, by the factory's resolver.

        :raises OSError: the name cannot be resolved
        """
        return list(await self._connector.resolve(host, port, family=family, type=type, proto=proto, flags=flags))

    def changes(self) -> Changes:
        """An asynchronous iterator over path changes from now on. A slow reader gets several changes merged into one.

        :raises RuntimeError: there is no running event loop
        """
        return Changes(self._connector.watcher)

    def statistics(self) -> Statistics:
        """The counters since the factory was made."""
        watcher = self._connector.started_watcher
        return copy.deepcopy(watcher.statistics) if watcher is not None else Statistics()


class Changes:
    """An asynchronous iterator over path changes. It ends with ``aclose()``, or when it is freed."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._wake = asyncio.Event()
        self._listener = ChangeListener(self._wake.set)
        watcher.listen(self._listener)
        self._finalizer = weakref.finalize(self, watcher.unlisten, self._listener)

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Change:
        while True:
            change = self._listener.take()
            if change is not None:
                return change
            if self._listener.ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    async def aclose(self) -> None:
        """Stop listening."""
        self._finalizer()
        self._listener.end()


def connector_of(factory: TransportFactory) -> Connector:
    """The connector of a factory, for modules that follow sockets which the factory did not make."""
    return factory._connector
