"""An event loop on which the connections of every library leave by the effective interface and follow it.

:class:`EventLoop` is asyncio's own loop. It overrides the methods that make outgoing sockets. :func:`loop_factory` derives such a
class from any other loop class, for example uvloop's. Sockets for this host (loopback, UNIX), listening sockets, and sockets that
are already bound to an interface or an address are left alone.

uvloop connects inside libuv, where no Python code can bind the socket. So the :class:`~bindsock.factory.TransportFactory` dials
the host, and the loop only gets the connected socket. The factory's sockets reach this class a second time, as the ``sock=`` of
a call; they are recognised by their type, or because they are being attached at that moment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from bindsock.default import set_factory
from bindsock.dial.binding import Begun, begin_connect, connect_error, going_on
from bindsock.dial.chosen import is_left_alone
from bindsock.dial.resolving import SockAddr, address_of, numeric_address
from bindsock.dial.unmanaged import is_client
from bindsock.factory import TransportFactory, connector_of
from bindsock.model.decision import path_of, pinned_to
from bindsock.model.network import FAMILIES
from bindsock.model.preferences import Preferences, preferences_or_default
from bindsock.options import (
    CONNECT_TIMEOUT,
    DRAIN_TIMEOUT,
    RECONNECT_TIMEOUT,
    BetterPath,
    check_factory,
    connect_options,
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
    from bindsock.model.network import Network
    from bindsock.resolvers import InterfaceResolver

    _Base = asyncio.BaseEventLoop
else:
    _Base = object

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)

_resolving: ContextVar[bool] = ContextVar("_resolving", default=False)
"""Whether the current ``getaddrinfo()`` call comes from the factory's resolver."""


class BoundLoop(_Base):
    """A mixin that makes a loop class bind its outgoing sockets. :func:`loop_factory` puts it before the base class."""

    transport_factory: TransportFactory
    """Makes the connections of this loop. The functions of the ``bindsock`` module use it, too."""

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

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """Resolve by the factory's resolver, if it has one, so that libraries that resolve names themselves use it as well."""
        if self._connector.has_own_resolver and isinstance(host, str | None) and not _resolving.get():
            # For hosts that are not names, the resolver itself calls this method.
            token = _resolving.set(True)
            try:
                return await self.transport_factory.resolve(host, port, family=family, type=type, proto=proto, flags=flags)
            finally:
                _resolving.reset(token)
        return list(await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags))

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
        """Dial by the factory, with happy eyeballs on uvloop, too. A connected ``sock=`` is followed.

        The keywords are those of :meth:`bindsock.TransportFactory.create_connection`.
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
        watcher = self._connector.watcher

        def network() -> Network:
            return watcher.refresh().network

        try:
            begun = begin_connect(watcher.kernel, sock, decision, network, address)
            if begun is not Begun.CONNECTED:
                with going_on(begun):
                    await super().sock_connect(sock, address)
        except OSError as error:
            raise connect_error(watcher.kernel, sock, error, decision, address, network) from None
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
        """Upgrade a transport to TLS. bindsock's replaceable transport is upgraded itself, and returned."""
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
        """Send a file over a transport, also over bindsock's replaceable transport."""
        if isinstance(transport, ReplaceableTransport | HookTransport):
            return await transport.sendfile(super().sendfile, file, offset, count, fallback=fallback)
        return await super().sendfile(transport, file, offset, count, fallback=fallback)

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
        """Open an endpoint by the factory, unless it is a server: one with a local port and without a peer."""
        options: dict[str, Any] = {
            "family": family,
            "proto": proto,
            "flags": flags,
            "reuse_port": reuse_port,
            "allow_broadcast": allow_broadcast,
            "sock": sock,
        }
        bind = self._is_client(sock) if sock is not None else _for_client(local_addr, remote_addr, family)
        create = self.transport_factory.create_datagram_endpoint if bind else super().create_datagram_endpoint
        endpoint: tuple[asyncio.DatagramTransport, D] = await create(protocol_factory, local_addr, remote_addr, **options)
        return endpoint

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Bind a client's socket to the interface for the destination, and follow it."""
        mover = self._bound_datagrams.get(sock)
        if mover is not None:
            address = await self._numeric(sock, address)
            mover.retarget(sock, address_of(address))
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
        """Close the loop, release its factory's watcher, and remove the routes that it has repaired."""
        if not self.is_closed() and not self.is_running():
            self._connector.stop()
        super().close()

    def _is_client(self, sock: socket.socket) -> bool:
        return not self._connector.is_attaching(sock) and is_client(sock, self._connector.watcher.refresh)

    async def _numeric(self, sock: socket.socket, address: SockAddr) -> SockAddr:
        return await numeric_address(sock, address, self.transport_factory.resolve)


class EventLoop(BoundLoop, asyncio.SelectorEventLoop):
    """asyncio's event loop. The connections of every library leave by the effective interface and follow it.

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
    """Derive a class like :class:`EventLoop` from another event loop class, with options for its factory.

    The other parameters are those of :class:`~bindsock.factory.TransportFactory`.

    :param base: the loop class: ``uvloop.Loop``, or asyncio's own
    :return: the class, for ``asyncio.Runner(loop_factory=...)``
    :raises TypeError: ``base`` is no such class, or an option has the wrong type
    :raises ValueError: an option is not one of the choices
    """
    if not (isinstance(base, type) and issubclass(base, asyncio.AbstractEventLoop)):
        raise TypeError(f"base must be the class of an event loop, such as uvloop.Loop, not {base!r}")
    check_factory(interface, better_path, resolver, repair_routes)
    preferences = preferences_or_default(preferences)

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
    """The result of :func:`adopt`. The end of a ``with`` block, or :meth:`end`, restores the loop."""

    def __init__(self, loop: BoundLoop, plain: type[asyncio.AbstractEventLoop]) -> None:
        self._loop = loop
        self._plain = plain

    def __enter__(self) -> TransportFactory:
        return self._loop.transport_factory

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Restore the loop's own methods, and remove the repaired routes.

        Existing connections stay bound, and are not followed any more.
        """
        if isinstance(self._loop, BoundLoop):
            self._loop._connector.stop()
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
    repair_routes: bool = False,
) -> Adoption:
    """Make an existing event loop, which may be running, bind its sockets as :class:`EventLoop` does.

    This is for Jupyter, Textual and other frameworks that make their own loop. The class of the loop is replaced by one that
    :func:`loop_factory` derives from it, which works for asyncio's loops and uvloop's. Existing connections stay as they are.

    The other parameters are those of :class:`~bindsock.factory.TransportFactory`.

    :param loop: the event loop; the running one unless given
    :return: an object that restores the loop; also a context manager, whose value is the loop's factory
    :raises RuntimeError: no loop is running, or the loop binds its sockets already
    :raises TypeError: the class of the loop cannot be replaced: use the functions of the ``bindsock`` module there
    """
    loop = loop if loop is not None else asyncio.get_running_loop()
    if isinstance(loop, BoundLoop):
        raise RuntimeError("the event loop binds its sockets already")  # noqa: TRY004
    plain = type(loop)
    bound = loop_factory(
        plain,
        preferences,
        interface=interface,
        kernel=kernel,
        better_path=better_path,
        resolver=resolver,
        repair_routes=repair_routes,
    )
    try:
        _set_class(loop, bound)
    except TypeError as error:
        raise TypeError(f"cannot adopt a {plain.__qualname__}, use the functions of bindsock instead: {error}") from error
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
    """Whether the arguments of ``create_datagram_endpoint`` are those of an IPv4 or IPv6 client."""
    if family not in (0, *FAMILIES) or isinstance(local_addr, str) or isinstance(remote_addr, str):
        return False
    if remote_addr is not None:
        return True
    return not local_addr[1] if local_addr is not None else family != 0
