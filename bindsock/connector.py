"""Makes and follows connections, for the transport factory, the event loop and :mod:`bindsock.anyio`.

The options have been checked already and are passed on as one value. Modules that only some programs need (datagrams, replaced
connections, resolvers) are imported on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bindsock.dial.binding import decide_and_bind, mark_as_preferred, set_dead_after
from bindsock.dial.dialer import Dialer, PathChanged
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.lingering_close import LingeringClose, LingeringSockets
from bindsock.dial.resolving import AddrInfo, Resolve, address_of, resolve
from bindsock.model.decision import Decision, Path, path_of, path_on
from bindsock.model.network import FAMILIES, IPAddress, Target, family_of, unmapped
from bindsock.netmon.importing import Imports
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.watcher import Watcher
from bindsock.options import BetterPath, ConnectOptions, DatagramOptions, check_hook
from bindsock.repair import Repairer
from bindsock.routing.effective import Decider, Preferences
from bindsock.stream.guard import StreamGuard, StreamGuards, follow_stream
from bindsock.stream.plan import Requirement

if TYPE_CHECKING:
    from ipaddress import IPv6Network

    from bindsock.datagram.in_place import InPlaceMover
    from bindsock.datagram.open import DatagramTransport
    from bindsock.dial.attempt import Dialled
    from bindsock.kernel import Kernel
    from bindsock.reconnect.connection import Attach, Dial
    from bindsock.reconnect.hooks import OnReconnect
    from bindsock.resolvers import InterfaceResolver
    from bindsock.resolvers.nat64 import PrefixFinder

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)
T = TypeVar("T")

_NO_OPTIONS = ConnectOptions()


@dataclass(frozen=True, slots=True)
class _Shared:
    """The objects that all connections of a connector share on one event loop."""

    watcher: Watcher
    resolve: Resolve
    guards: StreamGuards
    lingering_close: LingeringClose
    """How IPv6 connections are closed."""


class Connector:
    """Makes and follows the connections of one factory, on one event loop at a time.

    :param kernel: the kernel to ask
    :param preferences: how to choose among interfaces
    :param interface: the name of the only interface to use, instead of detecting one
    :param better_path: what to do with a working stream when another interface is better
    :param resolver: resolves names to addresses
    :param repair_routes: add a route for bound sockets if a VPN has removed it
    """

    def __init__(
        self,
        kernel: Kernel,
        preferences: Preferences,
        interface: str | None,
        better_path: BetterPath,
        resolver: Resolve | InterfaceResolver | Literal["interface"] | None,
        *,
        repair_routes: bool = False,
    ) -> None:
        self.kernel: Kernel = mark_as_preferred(kernel, preferences)
        self.preferences = preferences
        self.interface = interface
        self.better_path: BetterPath = better_path
        self.repairer: Repairer | None = Repairer(kernel, preferences, interface) if repair_routes else None
        self._resolver = _interface_resolver() if resolver == "interface" else resolver
        self._nat64: PrefixFinder | None = None
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._shared: _Shared | None = None
        self._complaints: set[str] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop.

        :raises RuntimeError: no loop is running, or the connector belongs to another loop that is still open
        """
        loop = asyncio.get_running_loop()
        mine = self._loop() if self._loop is not None else None
        if mine is not loop:
            if mine is not None and not mine.is_closed():
                raise RuntimeError("this TransportFactory belongs to another event loop")
            self._loop = weakref.ref(loop)
            self._shared = self._nat64 = None
        return loop

    @property
    def shared(self) -> _Shared:
        """The objects that all connections on the running event loop share.

        :raises RuntimeError: as :attr:`loop`
        """
        loop = self.loop
        if self._shared is None:
            runtime = runtime_of(loop)
            if self.repairer is not None:
                runtime.at_end(self.repairer.close)
            watcher = Watcher(self.kernel, self.preferences, interface=self.interface, runtime=runtime)
            self._shared = _Shared(
                watcher,
                resolve if self._resolver is None else _resolver_on(watcher, self._resolver),
                runtime.shared(StreamGuards),
                LingeringClose(runtime.shared(LingeringSockets), self.kernel),
            )
        return self._shared

    @property
    def watcher(self) -> Watcher:
        """The watcher of the running event loop.

        :raises RuntimeError: as :attr:`loop`
        """
        return self.shared.watcher

    @property
    def started_watcher(self) -> Watcher | None:
        """The watcher; ``None`` if there is none yet. Needs no running loop."""
        return self._shared.watcher if self._shared is not None else None

    @contextlib.contextmanager
    def asking(self) -> Iterator[Decider]:
        """Provide the newest decider, and let the block ask the kernel.

        Without a watcher, the kernel's descriptors are closed at the end of the block.

        :raises OSError: the network could not be read
        """
        watcher = self.started_watcher
        if watcher is not None and (watcher.running or watcher.resting):
            yield watcher.refresh()
            return
        try:
            network = self.kernel.network()
            lookups = self.kernel.lookups(network)
            yield Decider(network, self.preferences, interface=self.interface, lookups=lookups)
        finally:
            self.kernel.close()

    def bind(self, sock: socket.socket, destination: IPAddress | None = None) -> Decision:
        """Bind a new socket, once. It is closed if that fails.

        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the destination leaves by the interface
        :raises BindFailed: the system refused
        :raises ValueError: the socket is of another family
        """
        try:
            if sock.family not in FAMILIES:
                raise ValueError(f"only AF_INET and AF_INET6 sockets can be bound to an interface, not {sock!r}")
            with self.asking() as decider:
                return decide_and_bind(self.kernel, decider, sock, destination)
        except BaseException:
            sock.close()
            raise

    @property
    def has_own_resolver(self) -> bool:
        """Whether a resolver was given, to be used instead of the event loop's."""
        return self._resolver is not None

    @property
    def resolve(self) -> Resolve:
        """The resolver for the running event loop."""
        return self.shared.resolve

    async def create_connection(
        self, protocol_factory: Callable[[], P], host: str | None, port: int | str | None, options: ConnectOptions
    ) -> tuple[asyncio.Transport, P]:
        """See :meth:`bindsock.TransportFactory.create_connection`."""
        sock = options.sock
        if sock is None and host is None and port is None:
            raise ValueError("host and port was not specified and no sock specified")
        if sock is not None and (host is not None or port is not None):
            raise ValueError("host/port and sock can not be specified at the same time")
        tls = options.tls(host)
        if sock is not None:
            set_dead_after(self.kernel, sock, options.dead_after)
            sock = self._owned(sock)
            return await self._attach(self.shared, self.follow_stream(sock, options), protocol_factory, sock, tls)
        shared = self.shared
        dialer = self._dialer(shared, host, port, options)
        protocol: P | None = None

        def attach(dialled: Dialled) -> Coroutine[Any, Any, tuple[asyncio.Transport, P]]:
            nonlocal protocol
            if protocol is None:
                protocol = _build_protocol(protocol_factory, dialled)
            return self._attach_dialled(shared, dialer, dialled, protocol, tls)

        return await dialer.complete(attach)

    async def open_connection(
        self, host: str | None, port: int | str | None, options: ConnectOptions, limit: int, on_reconnect: OnReconnect | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See :meth:`bindsock.TransportFactory.open_connection`."""
        loop = self.loop
        if on_reconnect is not None:
            check_hook(on_reconnect, "reader", "writer", "unread")
            if options.sock is not None or (host is None and port is None):
                raise ValueError("on_reconnect needs a host and a port: a sock cannot be connected anew")
            tls, watcher = options.tls(host), self.watcher
            dialer = self._dialer(self.shared, host, port, options)
            with watcher.hold():
                dialled = await dialer.dial() if options.local_addr is not None else None
                if dialled is not None:
                    options = dialled.pinned(options)
                dial, attach = self._replacement(dialer, dialled, tls)
                from bindsock.reconnect.open import open_replaceable

                return await open_replaceable(watcher, loop, on_reconnect, dial, attach, self._with_policy(options), limit=limit)
        if options.concerns_replacement:
            raise ValueError("drain_timeout and reconnect_timeout need on_reconnect")
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await self.create_connection(lambda: protocol, host, port, options)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def connect(self, host: str | None, port: int | str | None, options: ConnectOptions) -> socket.socket:
        """See :meth:`bindsock.TransportFactory.connect`."""
        shared = self.shared
        dialled = await self._dialer(shared, host, port, options).dial()
        self._follow_dialled(shared, dialled, options)
        return dialled.sock

    def socket_factory(self, addr_info: AddrInfo) -> socket.socket:
        """See :meth:`bindsock.TransportFactory.socket_factory`."""
        family, type_, proto, _, sockaddr = addr_info
        sock = FollowedSocket(family, type_, proto)
        sock.setblocking(False)
        address = address_of(sockaddr)
        decision = self.bind(sock, address)
        if family == socket.AF_INET6 and decision.interface is not None and _running():
            sock.set_lingering_close(self.shared.lingering_close)
        if sock.type == socket.SOCK_STREAM and decision.interface is not None and _running():
            # It has no local address before it connects, and the follower needs that address.
            sock.on_connect(lambda sock, *_: self.follow_stream(sock, _NO_OPTIONS, address, path_of(decision)))
        return sock

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], D],
        local_addr: tuple[str, int] | None,
        remote_addr: tuple[str, int] | None,
        options: DatagramOptions,
    ) -> tuple[DatagramTransport, D]:
        """See :meth:`bindsock.TransportFactory.create_datagram_endpoint`."""
        endpoint: tuple[DatagramTransport, D] = await _open_datagram()(
            self.watcher,
            protocol_factory,
            local_addr,
            remote_addr,
            resolve=self.resolve,
            find_nat64=self._nat64_prefixes,
            family=options.family,
            proto=options.proto,
            flags=options.flags,
            reuse_port=options.reuse_port,
            allow_broadcast=options.allow_broadcast,
            sock=options.sock,
            interface=options.interface,
        )
        return endpoint

    def follow(self, sock: socket.socket, address: IPAddress, path: Path | None, *, pin: str | None = None) -> None:
        """Follow a socket that has just been bound and connected.

        :param address: that of its peer
        :param path: the path on which it was connected
        :param pin: the name of the only interface that it may use
        :raises OSError: the socket is closed
        """
        if sock.type == socket.SOCK_DGRAM:
            from bindsock.datagram.in_place import watch_datagrams

            watch_datagrams(self.watcher, sock, address, path, interface=pin)
        else:
            self.follow_stream(sock, ConnectOptions(interface=pin) if pin is not None else _NO_OPTIONS, address, path)

    def follow_datagrams(self, sock: socket.socket, target: Target | None = None) -> InPlaceMover | None:
        """Bind and follow a datagram socket without a peer that is about to send to the target.

        :return: its follower; ``None`` if the socket is left alone
        :raises OSError: it could not be bound; it has been closed
        """
        from bindsock.datagram.in_place import follow_datagrams

        return follow_datagrams(self.watcher, sock, target=target)

    def follow_stream(
        self, sock: socket.socket, options: ConnectOptions, address: IPAddress | None = None, path: Path | None = None
    ) -> StreamGuard | None:
        """Follow a connected stream socket, unless its destination is this host or it is followed already.

        :param address: that of its peer, if it is known
        :param path: the path on which it was connected, if it is known
        :return: its guard; ``None`` if it is not followed
        """
        shared = self.shared
        watcher, guards = shared.watcher, shared.guards
        guard = guards.find(sock)
        if guard is not None and (guard.following or guard.error is not None):
            return guard
        if address is None:
            if sock.family not in FAMILIES:
                return None
            address = address_of(sock.getpeername())
            path = self._path_in_use(sock)
        if path is None:
            return None
        return guards.add(sock, follow_stream(watcher, sock, self._requirement(address, options), path))

    def _requirement(self, address: IPAddress, options: ConnectOptions) -> Requirement:
        return Requirement(address, options.interface, options.better_path or self.better_path, options.dead_after)

    def guard_of(self, sock: socket.socket) -> StreamGuard | None:
        """The guard that follows a stream socket or has ended it; ``None`` if there is none."""
        return self.shared.guards.find(sock)

    def is_attaching(self, sock: socket.socket) -> bool:
        """Whether a transport is being made for the socket now. :class:`bindsock.EventLoop` leaves such a socket alone."""
        return self.shared.guards.is_attaching(sock)

    def stop(self) -> None:
        """Stop following all sockets, release the watcher, and remove the repaired routes. The sockets stay open and bound."""
        watcher = self.started_watcher
        if watcher is not None:
            watcher.forget_followers()
            watcher.stop()
        if self.repairer is not None:
            self.repairer.close()

    async def _attach_dialled(
        self, shared: _Shared, dialer: Dialer, dialled: Dialled, protocol: P, tls: dict[str, Any]
    ) -> tuple[asyncio.Transport, P]:
        """Make a transport for a connected socket. If the protocol supports it, the transport can replace its connection.

        :raises PathChanged: the handshake failed because the path changed
        """
        options = dialer.options
        if callable(getattr(protocol, "connection_replaced", None)):
            from bindsock.reconnect.open import create_replaceable

            dial, attach = self._replacement(dialer, dialled, tls)
            policy = self._with_policy(dialled.pinned(options))
            return await create_replaceable(shared.watcher, self.loop, lambda: protocol, dial, attach, policy)
        if options.concerns_replacement:
            dialled.sock.close()
            raise ValueError(
                "drain_timeout and reconnect_timeout need a protocol with a method connection_replaced(transport, unread)"
            )
        guard = self._follow_dialled(shared, dialled, options)
        try:
            return await self._attach(shared, guard, lambda: protocol, dialled.sock, tls)
        except OSError as error:
            if guard is None or guard.error is None:
                raise
            raise PathChanged(error) from error

    def _follow_dialled(self, shared: _Shared, dialled: Dialled, options: ConnectOptions) -> StreamGuard | None:
        if dialled.path is None:
            return None
        requirement = self._requirement(dialled.address, dialled.pinned(options))
        sock = dialled.sock
        try:
            guard = follow_stream(shared.watcher, sock, requirement, dialled.path, local=dialled.local, decider=dialled.decider)
            return shared.guards.add(sock, guard)
        except BaseException:
            dialled.sock.close()
            raise

    def _path_in_use(self, sock: socket.socket) -> Path | None:
        """The path of a connected socket that bindsock did not make, by its bound interface or its local address."""
        network = self.watcher.refresh().network
        local = unmapped(address_of(sock.getsockname()))
        index = self.kernel.bound(sock)
        interface = network.interfaces.get(index) if index is not None else network.owner_of(local)
        if interface is None or local.is_loopback:
            return None
        return path_on(interface, family_of(local))

    async def _nat64_prefixes(self) -> tuple[IPv6Network, ...]:
        """
        :raises OSError: no name server answers
        """
        await self.watcher.runtime.shared(Imports).ready("bindsock.resolvers.nat64")
        if self._nat64 is None:
            from bindsock.resolvers import InterfaceResolver
            from bindsock.resolvers.nat64 import PrefixFinder

            own = self._resolver if isinstance(self._resolver, InterfaceResolver) else None
            self._nat64 = PrefixFinder(self.watcher, own)
        return await self._nat64()

    def _owned(self, sock: socket.socket) -> socket.socket:
        """A socket that a transport is about to own, with a lingering close if the connection needs one.

        ``create_connection(sock=)`` takes the socket over from its caller, so another object may take its place.
        """
        if isinstance(sock, FollowedSocket) or not self.kernel.needs_lingering_close(sock):
            return sock
        guard = self.shared.guards.find(sock)
        if guard is not None:
            guard.close()
        own = FollowedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        own.setblocking(False)
        own.set_lingering_close(self.shared.lingering_close)
        return own

    def _dialer(self, shared: _Shared, host: str | None, port: int | str | None, options: ConnectOptions) -> Dialer:
        return Dialer(
            shared.watcher,
            shared.resolve,
            host,
            port,
            options,
            complaints=self._complaints,
            lingering_close=shared.lingering_close,
            find_nat64=self._nat64_prefixes,
        )

    def _with_policy(self, options: ConnectOptions) -> ConnectOptions:
        """The options for a connection that can be replaced, with the factory's ``better_path`` unless one is given."""
        return options if options.better_path is not None else dataclasses.replace(options, better_path=self.better_path)

    def _replacement(self, dialer: Dialer, first: Dialled | None, tls: dict[str, Any]) -> tuple[Dial, Attach]:
        """The functions that dial each connection of a replaceable transport, and attach it to a protocol.

        :param first: the first connection, if it has been dialled already
        """
        made = [first] if first is not None else []

        async def dial(rest: Callable[[Dialled], Awaitable[T]]) -> T:
            if made:
                with contextlib.suppress(PathChanged):
                    return await rest(made.pop())
                dialer.watcher.statistics.redialled += 1
            return await dialer.complete(rest)

        async def attach(protocol: asyncio.BaseProtocol, sock: socket.socket) -> asyncio.Transport:
            return (await self._attach(self.shared, None, lambda: protocol, sock, tls))[0]

        return dial, attach

    async def _attach(
        self,
        shared: _Shared,
        guard: StreamGuard | None,
        protocol_factory: Callable[[], P],
        sock: socket.socket,
        tls: dict[str, Any],
    ) -> tuple[asyncio.Transport, P]:
        """Let the event loop make its own transport for a connected socket."""
        loop, guards = asyncio.get_running_loop(), shared.guards
        if isinstance(sock, FollowedSocket) and not isinstance(loop, asyncio.BaseEventLoop):
            sock.expect_detach()
        guards.begin_attaching(sock)
        try:
            if tls and not isinstance(loop, asyncio.BaseEventLoop):
                transport, protocol = await _attach_tls(loop, protocol_factory, sock, tls)
            else:
                transport, protocol = await loop.create_connection(protocol_factory, sock=sock, **tls)
        except BaseException:
            if guard is not None:
                guard.close()
            if isinstance(sock, FollowedSocket):
                sock.detach_if_closed()
            _close_unattached(loop, sock)
            raise
        finally:
            guards.end_attaching(sock)
        if isinstance(sock, FollowedSocket) and transport.is_closing():
            sock.detach_if_closed()
        if guard is not None:
            guard.attach(transport)
        return transport, protocol


class _Attaching(asyncio.Protocol):
    """The protocol of a TLS transport until it has one, which then takes its place."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.transport: asyncio.Transport | None = None
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)


async def _attach_tls(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], sock: socket.socket, tls: dict[str, Any]
) -> tuple[asyncio.Transport, P]:
    """Let uvloop make a TLS transport.

    If it is cancelled before it has noticed that TCP is attached, it closes the TCP transport and tells the TLS protocol nothing
    (``uvloop/loop.pyx``, create_connection). If the handshake has been completed meanwhile, that protocol then reports a fatal
    error to the event loop, so it is aborted first.
    """
    protocol = protocol_factory()
    attaching = _Attaching(protocol)
    try:
        transport, _ = await loop.create_connection(lambda: attaching, sock=sock, **tls)
    except BaseException:
        if attaching.transport is not None and not attaching.transport.is_closing():
            attaching.transport.abort()
        raise
    return transport, protocol


def _close_unattached(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """End a connection after the event loop failed, or was cancelled, while it made a transport for it.

    The transport may exist nevertheless and close the socket later: if its TLS handshake has just been completed, it shuts TLS
    down first (CPython ``Lib/asyncio/sslproto.py``, _start_shutdown). Closing the socket now would leave the descriptor
    registered with the loop, and the next file that is opened gets the same number.
    """
    if sock.fileno() == -1:
        return
    try:
        loop.remove_reader(sock)  # raises if a transport owns the descriptor
    except RuntimeError:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    else:
        sock.close()


@functools.cache
def _open_datagram() -> Any:
    """Import the function on first use, and cache it: an import statement for each endpoint takes a microsecond."""
    from bindsock.datagram.open import open_datagram

    return open_datagram


def _interface_resolver() -> InterfaceResolver:
    from bindsock.resolvers import InterfaceResolver

    return InterfaceResolver()


def _resolver_on(watcher: Watcher, resolver: Resolve | InterfaceResolver) -> Resolve:
    """The given resolver, for the connections of one watcher."""
    from bindsock.resolvers import InterfaceResolver

    return resolver.on(watcher) if isinstance(resolver, InterfaceResolver) else resolver


def _build_protocol(protocol_factory: Callable[[], P], dialled: Dialled) -> P:
    try:
        return protocol_factory()
    except BaseException:
        dialled.sock.close()
        raise


def _running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
