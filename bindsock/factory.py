"""The transport factory: connections that are bound to the effective interface and follow it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import itertools
import socket
import ssl as ssl_module
import weakref
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

from bindsock import kernel as kernels
from bindsock.datagram.in_place import follow_datagrams, watch_datagrams
from bindsock.datagram.open import DatagramTransport, open_datagram
from bindsock.dial.binding import decide_and_bind
from bindsock.dial.dialer import MAX_REDIALS, Dialer
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.race import Dialled
from bindsock.dial.resolving import AddrInfo, Resolve, address_of, resolve
from bindsock.kernel import Kernel
from bindsock.model.change import Change
from bindsock.model.decision import Decision, Path, path_of
from bindsock.model.network import FAMILIES, Interface, IPAddress, Target, unmapped
from bindsock.model.statistics import Statistics
from bindsock.model.subflows import Multipath, Subflow
from bindsock.netmon.drivers import AsyncioDriver
from bindsock.netmon.listening import ChangeListener
from bindsock.netmon.no_interface import no_effective_interface
from bindsock.netmon.watcher import Watcher
from bindsock.reconnect.connection import Attach, Dial
from bindsock.reconnect.hooks import OnReconnect
from bindsock.reconnect.open import ReplaceOptions, create_replaceable, is_replaceable, open_replaceable
from bindsock.resolvers import InterfaceResolver
from bindsock.routing.effective import Decider, Preferences
from bindsock.stream.guard import BetterPath, StreamGuard, follow_stream

_guards: weakref.WeakKeyDictionary[socket.socket, StreamGuard] = weakref.WeakKeyDictionary()
"""What follows each stream socket, whichever factory it was that began to."""
_attaching: weakref.WeakSet[socket.socket] = weakref.WeakSet()

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)


class ConnectOptions(TypedDict, total=False):
    """The keyword arguments of ``loop.create_connection``, and bindsock's own."""

    ssl: ssl_module.SSLContext | bool | None
    family: int
    proto: int
    flags: int
    sock: socket.socket | None
    local_addr: tuple[str, int] | None
    server_hostname: str | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    happy_eyeballs_delay: float | None
    interleave: int | None
    all_errors: bool
    interface: str | None
    better_path: BetterPath | None
    dead_after: float | None
    multipath: bool
    drain_timeout: float
    reconnect_timeout: float | None


class TransportFactory:
    """Makes connections that leave by the effective interface, and keeps them on it.

    It belongs to the event loop, the thread and the network namespace in which it is first used. ``async with`` it to end the
    following at a certain point: the sockets then stay open and bound. Without, it ends with the last socket it follows.

    :param preferences: how to choose among interfaces
    :param interface: the name of the one interface to use, whatever detection says
    :param kernel: what to ask; the running system's unless given
    :param better_path: what happens to a stream that still works when the effective interface is another one:
        ``"auto"`` leaves an expensive interface once idle, ``"keep"`` keeps it, ``"abort"`` ends it at once
    :param resolver: names to addresses; the system's resolver unless given. ``"interface"`` or an
        :class:`~bindsock.resolvers.InterfaceResolver` asks by the effective interface, so that a VPN's name servers are passed by
    :raises UnsupportedSystem: there is no kernel backend for this system
    """

    def __init__(
        self,
        preferences: Preferences | None = None,
        *,
        interface: str | None = None,
        kernel: Kernel | None = None,
        better_path: BetterPath = "auto",
        resolver: Resolve | InterfaceResolver | Literal["interface"] | None = None,
    ) -> None:
        self.preferences = preferences if preferences is not None else Preferences()
        self.interface = interface
        self.kernel: Kernel = kernel if kernel is not None else kernels.current()
        self.better_path: BetterPath = better_path
        self._resolver = InterfaceResolver() if resolver == "interface" else resolver
        self._resolve: Resolve | None = None
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._watcher: Watcher | None = None
        self._held: Any = None
        self._complaints: set[str] = set()

    async def __aenter__(self) -> Self:
        self._held = self._watch().hold()
        self._held.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        held.__exit__(exc_type, exc, traceback)
        self._watch().forget_followers()

    # Decisions

    def decide(self, target: Target | str) -> Decision:
        """Which interface traffic to the target leaves by, and why.

        :param target: a destination address, or a family for its default
        :raises ValueError: the target is a name, not an address
        :raises OSError: the network could not be read
        """
        if isinstance(target, str):
            target = ip_address(target)
        with self._asking() as decider:
            return decider.decide(target)

    def explain(self, destination: Target | str) -> Decision:
        """The decision for a destination; ``str()`` of it is the explanation that ``bindsock explain`` prints."""
        return self.decide(destination)

    def effective_interface(self, family: int = socket.AF_UNSPEC) -> Interface:
        """The effective interface: the one beneath whatever VPN owns the default route.

        :param family: ``AF_INET`` or ``AF_INET6``; otherwise that of IPv4, or of IPv6 if IPv4 has none
        :raises NoEffectiveInterface: there is none
        :raises OSError: the network could not be read
        """
        families = [f for f in FAMILIES if family in (socket.AF_UNSPEC, f)]
        with self._asking() as decider:
            decisions = tuple(decider.decide(f) for f in families)
            for decision in decisions:
                if decision.interface is not None:
                    return decision.interface
            raise no_effective_interface("the default route", decisions, self.kernel, decider.network)

    def interface_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> str | None:
        """The name of the interface that a connection is bound to, ``None`` if it is bound to none or closed.

        :param connection: a transport of any library, a stream writer, or a socket
        """
        sock: Any = connection
        if not isinstance(connection, socket.socket):
            name = _extra_info(connection, "interface")
            if isinstance(name, str):
                return name
            sock = _extra_info(connection, "socket")
        if sock is None or sock.fileno() == -1:
            return None
        subflows = self._multipath_of(sock).subflows
        if subflows:
            return self._interface_among(subflows)
        index = self.kernel.bound(sock)
        if index is None:
            return None
        with self._asking() as decider:
            interface = decider.network.interfaces.get(index)
        return interface.name if interface is not None else None

    def multipath_of(self, connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket) -> Multipath:
        """Whether a connection is multipath in truth, and over which subflows.

        :param connection: a transport of any library, a stream writer, or a socket
        """
        return self._multipath_of(connection if isinstance(connection, socket.socket) else _extra_info(connection, "socket"))

    def _multipath_of(self, sock: Any) -> Multipath:
        paths = self.kernel.multipath
        subflows = paths.subflows(sock) if paths is not None and sock is not None else None
        if subflows is None:
            return Multipath(False)
        with self._asking() as decider:
            owners = [decider.network.owner_of(subflow.local) for subflow in subflows]
        names = [owner.name if owner is not None else None for owner in owners]
        return Multipath(True, tuple(dataclasses.replace(s, interface=n) for s, n in zip(subflows, names, strict=True)))

    def _interface_among(self, subflows: tuple[Subflow, ...]) -> str | None:
        """What a multipath socket is bound to is where it began. It is where the effective interface is, if it can be."""
        effective = self.decide(subflows[-1].remote).interface
        names = [subflow.interface for subflow in subflows]
        return effective.name if effective is not None and effective.name in names else names[-1]

    def bind(self, sock: socket.socket, destination: str | IPAddress | None = None) -> Decision:
        """Bind a fresh socket, once; it is not followed. It is closed if that fails.

        :param destination: where it will connect to, so that a LAN or the machine itself is reached as it must be
        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the destination leaves by the interface
        :raises BindFailed: the system refused
        """
        address = unmapped(ip_address(destination)) if isinstance(destination, str) else destination
        try:
            with self._asking() as decider:
                return decide_and_bind(self.kernel, decider, sock, address)
        except BaseException:
            sock.close()
            raise

    # Streams

    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        host: str | None = None,
        port: int | str | None = None,
        **options: Unpack[ConnectOptions],
    ) -> tuple[asyncio.Transport, P]:
        """``loop.create_connection``, beneath the tunnels.

        A protocol with a method ``connection_replaced(transport, unread)``, coroutine method or not, is given one stable
        transport. When its connection is lost, or a better path appears, another takes its place beneath; the method says
        there what has to be said again, and the protocol goes on: see ``docs/streams.md``.

        :param options: those of ``loop.create_connection``, and

            * ``interface=``, the name of the one interface to use instead of the factory's
            * ``better_path=`` instead of the factory's
            * ``dead_after=`` seconds of silence from the peer after which the connection counts as dead, for paths that die
              without an event; never unless given
            * ``multipath=``: a multipath TCP connection where system and peer speak it, whose byte stream moves from one
              interface to another; plain TCP elsewhere. :func:`bindsock.multipath_of` tells which it is
            * ``drain_timeout=`` seconds (1) for which what is on its way over a connection that is replaced is waited for
            * ``reconnect_timeout=`` seconds (30) after which a replacement is given up; ``None`` for never

            A ``sock=`` is connected already: it is followed, never bound and never replaced.
        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises NoRoute: no route leaves by the interface
        :raises BindFailed: the system refused to bind, or the local address is another interface's
        :raises EgressMismatch: the system chose a tunnel's address all the same
        :raises OSError: names, the connection or the handshake failed
        """
        loop = self._running_loop()
        sock = options.get("sock")
        if sock is None and host is None and port is None:
            raise ValueError("host and port was not specified and no sock specified")
        if sock is not None and (host is not None or port is not None):
            raise ValueError("host/port and sock can not be specified at the same time")
        tls = _tls_options(host, options)
        watcher = self._watch()
        dialer = self._dialer(host, port, options)
        if sock is not None:
            if dialer.prepare is not None:
                dialer.prepare(sock)
            guard = self._follow(sock, options)
            return await self._attach(loop, guard, protocol_factory, sock, tls)
        once = functools.cache(protocol_factory)
        with watcher.hold():
            for redials in itertools.count():
                dialled = await dialer.dial()
                if is_replaceable(once()):
                    dial, attach = self._again(dialer, dialled, tls)
                    transport, protocol = await create_replaceable(watcher, loop, once, dial, attach, **self._replacing(options))
                    return transport, protocol
                guard = self._follow_dialled(dialled, options)
                try:
                    return await self._attach(loop, guard, once, dialled.sock, tls)
                except OSError:
                    # The handshake of a connection whose path went away meanwhile is part of the dial.
                    if guard is None or guard.error is None or redials == MAX_REDIALS:
                        raise
                    watcher.statistics.redialled += 1
        raise AssertionError("the last attempt returns or raises")

    async def open_connection(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        limit: int = 2**16,
        on_reconnect: OnReconnect | None = None,
        **options: Unpack[ConnectOptions],
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """``asyncio.open_connection``, beneath the tunnels.

        :param limit: the reader's buffer limit, in bytes
        :param on_reconnect: ``async def on_reconnect(reader, writer, unread) -> bytes | None``. When the connection is lost, or
            a better path appears, it is called with another connection's reader and writer, to say there what has to be said
            again, and with the bytes that came over the old one and were not read. Then the reader and writer that this
            returned go on over the new one; what it returns is read first.
        :param options: as :meth:`create_connection` has them
        :raises OSError: as :meth:`create_connection` raises them
        """
        loop = self._running_loop()
        if on_reconnect is not None:
            if host is None and port is None:
                raise ValueError("on_reconnect needs a host and a port: a sock cannot be connected anew")
            dial, attach = self._again(self._dialer(host, port, options), None, _tls_options(host, options))
            watcher = self._watch()
            with watcher.hold():
                return await open_replaceable(watcher, loop, on_reconnect, dial, attach, limit=limit, **self._replacing(options))
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await self.create_connection(lambda: protocol, host, port, **options)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

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
        dead_after: float | None = None,
        multipath: bool = False,
    ) -> socket.socket:
        """A connected, non-blocking socket for libraries that take ``sock=``. It is followed until it is closed.

        :param happy_eyeballs_delay: seconds after which the next address is tried beside the first; ``None`` for one by one
        :raises OSError: as :meth:`create_connection` raises them
        """
        options: ConnectOptions = {
            "family": family,
            "proto": proto,
            "flags": flags,
            "local_addr": local_addr,
            "happy_eyeballs_delay": happy_eyeballs_delay,
            "interleave": interleave,
            "all_errors": all_errors,
            "interface": interface,
            "better_path": better_path,
            "dead_after": dead_after,
            "multipath": multipath,
        }
        dialled = await self._dialer(host, port, options).dial()
        self._follow_dialled(dialled, options)
        return dialled.sock

    def socket_factory(self, addr_info: AddrInfo) -> socket.socket:
        """A fresh, bound, non-blocking socket for one address, for libraries that take a factory (aiohttp, aiohappyeyeballs).

        Inside a running loop a stream socket is followed until it is closed.

        :raises OSError: as :meth:`bind` raises them
        """
        family, type_, proto, _, sockaddr = addr_info
        sock = FollowedSocket(family, type_, proto)
        sock.setblocking(False)
        address = address_of(sockaddr)
        decision = self.bind(sock, address)
        if sock.type == socket.SOCK_STREAM and decision.interface is not None and _running():
            # Before it connects it has no address, by which to tell whether it can still work.
            sock.on_connect(lambda sock: self._follow(sock, {}, address, path_of(decision)))
        return sock

    def track(self, sock: socket.socket, *, better_path: BetterPath | None = None) -> None:
        """Follow a connected stream socket, or a datagram socket, that bindsock did not make.

        A stream is ended with an error when its interface is gone; a datagram socket is bound, and re-bound in place when the
        effective interface changes. Following ends when the socket is closed or forgotten.

        A datagram socket that is bound to an interface or to a certain address already is left alone, and so is any whose peer
        is this host.

        :raises OSError: the socket is not connected (streams), or could not be bound (datagrams): then it is closed
        :raises ValueError: a dual-stack datagram socket whose families have different effective interfaces
        """
        if sock.type == socket.SOCK_DGRAM:
            self.follow_datagrams(sock)
        else:
            self._follow(sock, {"better_path": better_path})

    def follow(self, sock: socket.socket, address: IPAddress, path: Path | None) -> None:
        """Follow a socket that has just been bound and connected, from the path on which that was done.

        :raises OSError: the socket is closed
        """
        if sock.type == socket.SOCK_DGRAM:
            watch_datagrams(self._watch(), sock, address, path, loop=self._running_loop())
        else:
            self._follow(sock, {}, address, path)

    def follow_datagrams(self, sock: socket.socket, target: Target | None = None) -> bool:
        """As :meth:`track`, for a datagram socket without a peer that is about to send to the target.

        :return: whether it is bound and followed, and not left alone
        """
        try:
            return follow_datagrams(self._watch(), sock, target=target, loop=self._running_loop()) is not None
        except OSError:
            sock.close()
            raise

    def stop_following(self) -> None:
        """Leave everything alone that is followed, and close what that took. The sockets stay open and bound."""
        if self._watcher is not None:
            self._watcher.forget_followers()
            self._watcher.stop()

    # Datagrams

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
        """``loop.create_datagram_endpoint``, beneath the tunnels: one transport that moves with the effective interface.

        :param interface: the name of the one interface to use instead of the factory's
        :raises NoEffectiveInterface: no interface may be used
        :raises NoRoute: no route to the remote address leaves by the interface
        :raises BindFailed: the system refused to bind, or the local address is another interface's
        :raises ValueError: a dual-stack socket whose families have different effective interfaces: give ``family=``
        """
        return await open_datagram(
            self._watch(),
            self._running_loop(),
            protocol_factory,
            local_addr,
            remote_addr,
            family=family,
            proto=proto,
            flags=flags,
            reuse_port=reuse_port,
            allow_broadcast=allow_broadcast,
            sock=sock,
            interface=interface,
            resolve=self._resolving(),
        )

    # Names

    @property
    def resolves_itself(self) -> bool:
        """Whether it was given a resolver of its own."""
        return self._resolver is not None

    async def resolve(
        self, host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[AddrInfo]:
        """``loop.getaddrinfo``, by the factory's resolver.

        :raises OSError: the name cannot be resolved
        """
        return list(await self._resolving()(host, port, family=family, type=type, proto=proto, flags=flags))

    # Watching

    def changes(self) -> Changes:
        """The changes of path from now on, as an asynchronous iterator. A slow reader gets them merged into one.

        :raises RuntimeError: there is no running event loop
        """
        return Changes(self._watch())

    def statistics(self) -> Statistics:
        """What has been counted since the factory was made."""
        return copy.copy(self._watcher.statistics) if self._watcher is not None else Statistics()

    @property
    def watcher(self) -> Watcher:
        """What sees the changes, on the running event loop.

        :raises RuntimeError: there is no running event loop
        """
        return self._watch()

    # The inside

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        mine = self._loop() if self._loop is not None else None
        if mine is not loop:
            if mine is not None and not mine.is_closed():
                raise RuntimeError("this TransportFactory belongs to another event loop")
            self._loop = weakref.ref(loop)
            self._watcher = None
            self._resolve = None
        return loop

    def _watch(self) -> Watcher:
        loop = self._running_loop()
        if self._watcher is None:
            self._watcher = Watcher(self.kernel, self.preferences, interface=self.interface, driver=AsyncioDriver(loop))
        return self._watcher

    def _resolving(self) -> Resolve:
        watcher = self._watch()
        if self._resolve is None:
            resolver = self._resolver if self._resolver is not None else resolve
            self._resolve = resolver.on(watcher) if isinstance(resolver, InterfaceResolver) else resolver
        return self._resolve

    def _decider(self) -> Decider:
        if self._watcher is not None and self._watcher.running:
            return self._watcher.decider()
        return Decider(self.kernel.network(), self.preferences, interface=self.interface)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Decider]:
        """The newest decider, and the kernel for questions; what that opened is closed again unless there is a watcher."""
        try:
            yield self._decider()
        finally:
            if self._watcher is None or not self._watcher.running:
                self.kernel.close()

    def _dialer(self, host: str | None, port: int | str | None, options: ConnectOptions) -> Dialer:
        return Dialer(
            self._watch(),
            self._resolving(),
            host,
            port,
            family=options.get("family", 0),
            proto=options.get("proto", 0),
            flags=options.get("flags", 0),
            local_addr=options.get("local_addr"),
            happy_eyeballs_delay=options.get("happy_eyeballs_delay"),
            interleave=options.get("interleave"),
            all_errors=options.get("all_errors", False),
            interface=options.get("interface"),
            on_no_interface=self.preferences.on_no_interface,
            prepare=self._preparation(options),
            multipath=options.get("multipath", False),
            complaints=self._complaints,
        )

    def _preparation(self, options: ConnectOptions) -> Callable[[socket.socket], None] | None:
        seconds = options.get("dead_after")
        if seconds is None:
            return None
        if not seconds > 0:
            raise ValueError(f"dead_after must be a positive number of seconds, not {seconds!r}")
        return functools.partial(self.kernel.set_user_timeout, seconds=seconds)

    def _again(self, dialer: Dialer, first: Dialled | None, tls: dict[str, Any]) -> tuple[Dial, Attach]:
        """How a connection that is replaced is made, each time.

        :param first: what has been dialled already
        """
        made = [first] if first is not None else []
        loop = self._running_loop()

        async def dial() -> Dialled:
            return made.pop() if made else await dialer.dial()

        async def attach(protocol: asyncio.BaseProtocol, sock: socket.socket) -> asyncio.Transport:
            return (await self._attach(loop, None, lambda: protocol, sock, tls))[0]

        return dial, attach

    def _replacing(self, options: ConnectOptions) -> ReplaceOptions:
        return {
            "interface": options.get("interface"),
            "better_path": options.get("better_path") or self.better_path,
            "drain_timeout": options.get("drain_timeout", 1.0),
            "reconnect_timeout": options.get("reconnect_timeout", 30.0),
            "dead_after": options.get("dead_after"),
            "handshake": bool(options.get("ssl")),
        }

    def _follow(
        self, sock: socket.socket, options: ConnectOptions, address: IPAddress | None = None, path: Path | None = None
    ) -> StreamGuard | None:
        """Follow a connected stream socket, unless its destination is the machine itself, or it is followed already."""
        watcher = self._watch()
        guard = _guards.get(sock)
        if guard is not None and (guard.following or guard.error is not None):
            return guard
        if address is None:
            if sock.family not in FAMILIES:
                return None
            address = address_of(sock.getpeername())
            path = self._path_in_use(sock)
        if path is None:
            return None
        guard = _guards[sock] = follow_stream(
            watcher,
            sock,
            address,
            better_path=options.get("better_path") or self.better_path,
            interface=options.get("interface"),
            dead_after=options.get("dead_after"),
            path=path,
            loop=self._running_loop(),
        )
        return guard

    def _follow_dialled(self, dialled: Dialled, options: ConnectOptions) -> StreamGuard | None:
        try:
            return self._follow(dialled.sock, options, dialled.address, dialled.path)
        except BaseException:
            dialled.sock.close()
            raise

    def _path_in_use(self, sock: socket.socket) -> Path | None:
        """The path of a connected socket that somebody else made: by its bound interface, or its own address."""
        network = self._watch().decider().network
        local = unmapped(address_of(sock.getsockname()))
        index = self.kernel.bound(sock)
        interface = network.interfaces.get(index) if index is not None else network.owner_of(local)
        if interface is None or local.is_loopback:
            return None
        family = socket.AF_INET if local.version == 4 else socket.AF_INET6
        return Path(family, interface.name, interface.index, frozenset(interface.usable_addresses(family)), None)

    async def _attach(
        self,
        loop: asyncio.AbstractEventLoop,
        guard: StreamGuard | None,
        protocol_factory: Callable[[], P],
        sock: socket.socket,
        tls: dict[str, Any],
    ) -> tuple[asyncio.Transport, P]:
        _attaching.add(sock)
        try:
            transport, protocol = await loop.create_connection(protocol_factory, sock=sock, **tls)
        except BaseException:
            if guard is not None:
                guard.close()
            sock.close()
            raise
        finally:
            _attaching.discard(sock)
        if guard is not None:
            guard.attach(transport)
        return transport, protocol


class Changes:
    """Changes of path, as ``async for``. Closed by ``aclose()``, or when it is forgotten."""

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


def is_attaching(sock: socket.socket) -> bool:
    """Whether a factory is making a transport of the socket at this moment: an event loop that binds leaves it alone."""
    return sock in _attaching


def guard_of(sock: socket.socket) -> StreamGuard | None:
    """What follows a stream socket, or has ended it; ``None`` if nothing does."""
    return _guards.get(sock)


def _extra_info(connection: asyncio.BaseTransport | asyncio.StreamWriter, name: str) -> object:
    try:
        return connection.get_extra_info(name)
    except AttributeError:  # CPython's TLS transport, once closed (Lib/asyncio/sslproto.py)
        return None


def _tls_options(host: str | None, options: ConnectOptions) -> dict[str, Any]:
    """What of the options concerns TLS, checked and completed as ``loop.create_connection`` does it."""
    ssl = options.get("ssl")
    names: tuple[Literal["server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout"], ...] = (
        "server_hostname",
        "ssl_handshake_timeout",
        "ssl_shutdown_timeout",
    )
    tls: dict[str, Any] = {name: options[name] for name in names if options.get(name) is not None}
    if not ssl:
        for name in tls:
            raise ValueError(f"{name} is only meaningful with ssl")
        return {}
    if "server_hostname" not in tls:
        if not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        tls["server_hostname"] = host
    return {"ssl": ssl, **tls}


def _running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
