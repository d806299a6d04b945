"""An event loop on which every library's connections leave by the effective interface and follow it.

:class:`EventLoop` is asyncio's own loop with the calls overridden by which outgoing sockets come into being; :func:`loop_factory`
does the same to another loop class, uvloop's for one. What is for this machine itself (loopback, UNIX sockets), what listens, and
what is bound to an interface or an address already, is left as it is.

uvloop connects inside libuv, where no Python code could bind the socket: therefore a host is dialled by the
:class:`~bindsock.factory.TransportFactory` and only the connected socket is given to the loop. The sockets that the factory makes
pass through here a second time, as the ``sock=`` of a call; they are known by their type, or by being attached at that moment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from bindsock.default import set_factory
from bindsock.dial.binding import connect_error
from bindsock.dial.chosen import is_left_alone
from bindsock.dial.resolving import SockAddr, address_of, numeric_address
from bindsock.dial.unmanaged import is_client
from bindsock.factory import TransportFactory, connector_of
from bindsock.model.decision import path_of, pinned_to
from bindsock.model.network import FAMILIES
from bindsock.options import (
    CONNECT_TIMEOUT,
    DRAIN_TIMEOUT,
    RECONNECT_TIMEOUT,
    BetterPath,
    ConnectOptions,
    check_better_path,
    check_interface,
    known_keywords_only,
)
from bindsock.reconnect.hooks import HookTransport
from bindsock.reconnect.transport import ReplaceableTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Literal

    from bindsock.datagram.in_place import InPlaceMover
    from bindsock.dial.resolving import Resolve
    from bindsock.kernel import Kernel
    from bindsock.resolvers import InterfaceResolver
    from bindsock.routing.effective import Preferences

    _Base = asyncio.BaseEventLoop
else:
    _Base = object

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)

_resolving: ContextVar[bool] = ContextVar("_resolving", default=False)
"""Whether it is the factory's resolver that asks."""


class BoundLoop(_Base):
    """What makes a loop class one that binds. :func:`loop_factory` puts it before another class."""

    transport_factory: TransportFactory
    """Makes this loop's connections. The module-level functions use it, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self._begin_binding()
        except BaseException:
            super().close()
            raise

    def _begin_binding(self) -> None:
        self.transport_factory = self._make_factory()
        self._connector = connector_of(self.transport_factory)
        self._bound_datagrams: weakref.WeakKeyDictionary[socket.socket, InPlaceMover] = weakref.WeakKeyDictionary()
        set_factory(self, self.transport_factory)

    @staticmethod
    def _make_factory() -> TransportFactory:
        return TransportFactory()

    # Names

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """By the factory's resolver, if it was given one, so that libraries that resolve names themselves use it as well."""
        if self._connector.has_own_resolver and isinstance(host, str | None) and not _resolving.get():
            # A resolver leaves to the system what is no name, and asks the loop for that.
            token = _resolving.set(True)
            try:
                return await self.transport_factory.resolve(host, port, family=family, type=type, proto=proto, flags=flags)
            finally:
                _resolving.reset(token)
        return list(await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags))

    # Streams

    @known_keywords_only
    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        host: Any = None,
        port: Any = None,
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
        """Dialled by the factory, with happy eyeballs' options on uvloop, too. A connected ``sock=`` is followed.

        The keywords are those of :meth:`bindsock.TransportFactory.create_connection`.
        """
        options = ConnectOptions(
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
        if sock is not None and (sock.family not in FAMILIES or self._connector.is_attaching(sock)):
            made: tuple[asyncio.Transport, P] = await super().create_connection(
                protocol_factory, host, port, sock=sock, **options.tls(host)
            )
            return made
        return await self._connector.create_connection(protocol_factory, host, port, options)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Bind the socket to the interface for this address, connect it, and follow it."""
        if not self._is_client(sock) or is_left_alone(self._connector.kernel, sock):
            await super().sock_connect(sock, address)
            return
        address = await self._numeric(sock, address)
        destination = address_of(address)
        decision = self.transport_factory.bind(sock, destination)
        try:
            await super().sock_connect(sock, address)
        except OSError as error:
            watcher = self._connector.watcher
            raise connect_error(watcher.kernel, sock, error, decision, address, lambda: watcher.refresh().network) from None
        if decision.interface is not None:
            self._connector.follow(sock, destination, path_of(decision), pin=pinned_to(decision))

    @known_keywords_only
    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """TLS over a transport of bindsock's own, too; that one stays the application's."""
        options: dict[str, Any] = {
            "server_side": server_side,
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        if isinstance(transport, ReplaceableTransport | HookTransport):
            transport.set_protocol(protocol)
            await transport.start_tls(super().start_tls, sslcontext, **options)
            return transport
        return await super().start_tls(transport, protocol, sslcontext, **options)

    @known_keywords_only
    async def sendfile(
        self, transport: Any, file: Any, offset: int = 0, count: int | None = None, *, fallback: bool = True
    ) -> Any:
        """Over a transport of bindsock's own, too."""
        if isinstance(transport, ReplaceableTransport | HookTransport):
            return await transport.sendfile(super().sendfile, file, offset, count, fallback=fallback)
        return await super().sendfile(transport, file, offset, count, fallback=fallback)

    # Datagrams

    @known_keywords_only
    async def create_datagram_endpoint(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], D],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        reuse_port: bool | None = None,
        allow_broadcast: bool | None = None,
        sock: socket.socket | None = None,
    ) -> tuple[asyncio.DatagramTransport, D]:
        """A transport of the factory's, unless it is a server's: one with a local port of its own and without a peer."""
        bind = self._is_client(sock) if sock is not None else _for_client(local_addr, remote_addr, family)
        if bind:
            return await self.transport_factory.create_datagram_endpoint(
                protocol_factory,
                local_addr,
                remote_addr,
                family=family,
                proto=proto,
                flags=flags,
                reuse_port=reuse_port,
                allow_broadcast=allow_broadcast,
                sock=sock,
            )
        plain: tuple[asyncio.DatagramTransport, D] = await super().create_datagram_endpoint(
            protocol_factory,
            local_addr,
            remote_addr,
            family=family,
            proto=proto,
            flags=flags,
            reuse_port=reuse_port,
            allow_broadcast=allow_broadcast,
            sock=sock,
        )
        return plain

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Bind a client's socket to the interface for the address that it sends to, and follow it."""
        mover = self._bound_datagrams.get(sock)
        if mover is not None:
            address = await self._numeric(sock, address)
            mover.aim(sock, address_of(address))
        elif self._is_client(sock):
            address = await self._numeric(sock, address)
            mover = self._connector.follow_datagrams(sock, address_of(address))
            if mover is not None:
                self._bound_datagrams[sock] = mover
        sent = await super().sock_sendto(sock, data, address)
        if mover is not None:
            mover.sent(sock)
        return sent

    def close(self) -> None:
        """Close the loop, and what its factory has open."""
        if not self.is_closed() and not self.is_running():
            self._connector.stop_following()
        super().close()

    def _is_client(self, sock: socket.socket) -> bool:
        return not self._connector.is_attaching(sock) and is_client(sock, self._connector.watcher.refresh)

    async def _numeric(self, sock: socket.socket, address: SockAddr) -> SockAddr:
        return await numeric_address(sock, address, self.transport_factory.resolve)


class EventLoop(BoundLoop, asyncio.SelectorEventLoop):
    """asyncio's event loop, on which every library's connections leave by the effective interface and follow it.

    .. code-block:: python

        with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:     # 3.12: asyncio.run(main(), loop_factory=...)
            runner.run(main())
    """


@known_keywords_only
def loop_factory(
    base: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop,
    preferences: Preferences | None = None,
    *,
    interface: str | None = None,
    kernel: Kernel | None = None,
    better_path: BetterPath = "auto",
    resolver: Resolve | InterfaceResolver | Literal["interface"] | None = None,
    repair_routes: bool = False,
) -> type[BoundLoop]:
    """An event loop class as :class:`EventLoop`, made of another one and with a factory of one's own.

    :param base: the class of loop: ``uvloop.Loop``, or asyncio's own
    :param preferences: these and the rest as :class:`~bindsock.factory.TransportFactory` has them
    :return: for ``asyncio.Runner(loop_factory=...)``
    """

    check_interface(interface)
    check_better_path(better_path)

    def make_factory() -> TransportFactory:
        return TransportFactory(
            preferences,
            interface=interface,
            kernel=kernel,
            better_path=better_path,
            resolver=resolver,
            repair_routes=repair_routes,
        )

    bases = (base,) if issubclass(base, BoundLoop) else (BoundLoop, base)
    return type(f"Bound{base.__name__.removeprefix('Bound')}", bases, {"_make_factory": staticmethod(make_factory)})


class Adoption:
    """What :func:`adopt` returns. It gives the loop back at the end of a ``with`` block, or by :meth:`end`."""

    def __init__(self, loop: BoundLoop, plain: type[asyncio.AbstractEventLoop]) -> None:
        self._loop = loop
        self._plain = plain

    def __enter__(self) -> TransportFactory:
        return self._loop.transport_factory

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Let new connections be the loop's own again. Those that there are stay bound, and are followed no longer."""
        if isinstance(self._loop, BoundLoop):
            self._loop._connector.stop_following()
            _set_class(self._loop, self._plain)


@known_keywords_only
def adopt(
    loop: asyncio.AbstractEventLoop | None = None,
    preferences: Preferences | None = None,
    *,
    interface: str | None = None,
    kernel: Kernel | None = None,
    better_path: BetterPath = "auto",
    resolver: Resolve | InterfaceResolver | Literal["interface"] | None = None,
) -> Adoption:
    """Make an event loop that somebody else has made, and that may be running, bind as :class:`EventLoop` does.

    For Jupyter, Textual and other frameworks that make their own loop. The loop gets a class that :func:`loop_factory` has
    derived from its own, so asyncio's loops and uvloop's can be adopted. Connections that there are already stay as they are.

    :param loop: the running one unless given
    :param preferences: these and the rest as :class:`~bindsock.factory.TransportFactory` has them
    :return: what gives the loop back, also as a context manager, whose value is the loop's factory
    :raises RuntimeError: no loop is running, or the loop binds already
    :raises TypeError: the loop's class cannot be changed: use the module-level functions there
    """
    loop = loop if loop is not None else asyncio.get_running_loop()
    if isinstance(loop, BoundLoop):
        raise RuntimeError("the event loop binds already")  # noqa: TRY004
    plain = type(loop)
    bound = loop_factory(plain, preferences, interface=interface, kernel=kernel, better_path=better_path, resolver=resolver)
    try:
        _set_class(loop, bound)
    except TypeError as error:
        raise TypeError(f"{plain.__qualname__} cannot be adopted, use bindsock's functions on it: {error}") from error
    adopted: Any = loop
    try:
        adopted._begin_binding()
    except BaseException:
        _set_class(loop, plain)
        raise
    return Adoption(adopted, plain)


def _set_class(loop: Any, to: type[object]) -> None:
    loop.__class__ = to


def _for_client(local_addr: Any, remote_addr: Any, family: int) -> bool:
    """Whether the arguments of ``create_datagram_endpoint`` are those of an internet client."""
    if family not in (0, *FAMILIES) or isinstance(local_addr, str) or isinstance(remote_addr, str):
        return False
    if remote_addr is not None:
        return True
    return not local_addr[1] if local_addr is not None else family != 0
