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
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from bindsock.default import set_factory
from bindsock.dial.resolving import SockAddr, address_of
from bindsock.dial.unmanaged import is_client
from bindsock.factory import TransportFactory, is_attaching
from bindsock.model.decision import path_of
from bindsock.model.network import FAMILIES
from bindsock.reconnect.hooks import HookTransport
from bindsock.reconnect.transport import ReplaceableTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from bindsock.dial.resolving import Resolve
    from bindsock.kernel import Kernel
    from bindsock.resolvers import InterfaceResolver
    from bindsock.routing.effective import Preferences
    from bindsock.stream.guard import BetterPath

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
            self.transport_factory = self._make_factory()
        except BaseException:
            super().close()
            raise
        self._bound_datagrams: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        set_factory(self, self.transport_factory)

    @staticmethod
    def _make_factory() -> TransportFactory:
        return TransportFactory()

    # Names

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """By the factory's resolver, if it was given one, so that libraries that resolve names themselves use it as well."""
        if self.transport_factory.resolves_itself and isinstance(host, str | None) and not _resolving.get():
            # A resolver leaves to the system what is no name, and asks the loop for that.
            token = _resolving.set(True)
            try:
                return await self.transport_factory.resolve(host, port, family=family, type=type, proto=proto, flags=flags)
            finally:
                _resolving.reset(token)
        return list(await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags))

    # Streams

    async def create_connection(
        self, protocol_factory: Callable[[], P], host: Any = None, port: Any = None, **options: Any
    ) -> tuple[asyncio.Transport, P]:
        """Dialled by the factory, with happy eyeballs' options on uvloop, too. A connected ``sock=`` is followed."""
        sock: socket.socket | None = options.get("sock")
        if sock is not None and (sock.family not in FAMILIES or is_attaching(sock)):
            made: tuple[asyncio.Transport, P] = await super().create_connection(protocol_factory, host, port, **options)
            return made
        return await self.transport_factory.create_connection(protocol_factory, host, port, **options)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Bind the socket to the interface for this address, connect it, and follow it."""
        if not self._is_client(sock) or self.transport_factory.kernel.bound(sock) is not None:
            await super().sock_connect(sock, address)
            return
        address = await self._resolved(sock, address)
        destination = address_of(address)
        decision = self.transport_factory.bind(sock, destination)
        await super().sock_connect(sock, address)
        if decision.interface is not None:
            self.transport_factory.follow(sock, destination, path_of(decision))

    async def start_tls(self, transport: Any, protocol: Any, sslcontext: Any, **options: Any) -> Any:
        """TLS over a transport of bindsock's own, too; that one stays the application's."""
        if isinstance(transport, ReplaceableTransport | HookTransport):
            transport.set_protocol(protocol)
            await transport.start_tls(super().start_tls, sslcontext, **options)
            return transport
        return await super().start_tls(transport, protocol, sslcontext, **options)

    async def sendfile(self, transport: Any, file: Any, *args: Any, **options: Any) -> Any:
        """Over a transport of bindsock's own, too."""
        if isinstance(transport, ReplaceableTransport | HookTransport):
            return await transport.sendfile(super().sendfile, file, *args, **options)
        return await super().sendfile(transport, file, *args, **options)

    # Datagrams

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
        """Bind a client's socket to the interface for the first address beyond this host that it sends to, and follow it."""
        if sock not in self._bound_datagrams and self._is_client(sock):
            address = await self._resolved(sock, address)
            if self.transport_factory.follow_datagrams(sock, address_of(address)):
                self._bound_datagrams.add(sock)
        return await super().sock_sendto(sock, data, address)

    def close(self) -> None:
        """Close the loop, and what its factory has open."""
        if not self.is_closed() and not self.is_running():
            self.transport_factory.stop_following()
        super().close()

    # The inside

    def _is_client(self, sock: socket.socket) -> bool:
        return not is_attaching(sock) and is_client(sock)

    async def _resolved(self, sock: socket.socket, address: SockAddr) -> SockAddr:
        """The address with a numeric host, as asyncio's ``sock_connect`` makes it."""
        try:
            address_of(address)
        except ValueError:
            pass
        else:
            return address
        infos = await self.transport_factory.resolve(address[0], address[1], family=sock.family, type=sock.type, proto=sock.proto)
        resolved: SockAddr = infos[0][4]
        return resolved


class EventLoop(BoundLoop, asyncio.SelectorEventLoop):
    """asyncio's event loop, on which every library's connections leave by the effective interface and follow it.

    .. code-block:: python

        with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:     # 3.12: asyncio.run(main(), loop_factory=...)
            runner.run(main())
    """


def loop_factory(
    base: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop,
    preferences: Preferences | None = None,
    *,
    interface: str | None = None,
    kernel: Kernel | None = None,
    better_path: BetterPath = "auto",
    resolver: Resolve | InterfaceResolver | Literal["interface"] | None = None,
) -> type[BoundLoop]:
    """An event loop class as :class:`EventLoop`, made of another one and with a factory of one's own.

    :param base: the class of loop: ``uvloop.Loop``, or asyncio's own
    :param preferences: these and the rest as :class:`~bindsock.factory.TransportFactory` has them
    :return: for ``asyncio.Runner(loop_factory=...)``
    """

    def make_factory() -> TransportFactory:
        return TransportFactory(preferences, interface=interface, kernel=kernel, better_path=better_path, resolver=resolver)

    return type(f"Bound{base.__name__}", (BoundLoop, base), {"_make_factory": staticmethod(make_factory)})


def _for_client(local_addr: Any, remote_addr: Any, family: int) -> bool:
    """Whether the arguments of ``create_datagram_endpoint`` are those of an internet client."""
    if family not in (0, *FAMILIES) or isinstance(local_addr, str) or isinstance(remote_addr, str):
        return False
    if remote_addr is not None:
        return True
    return not local_addr[1] if local_addr is not None else family != 0
