"""aiodns, whose queries leave by the effective interface. It can also be aiohttp's resolver.

.. code-block:: python

    async with bindsock.integrations.aiodns.DNSResolver(nameservers=["192.0.2.53"]) as resolver:
        await resolver.query_dns("example.com", "A")

    aiohttp.TCPConnector(resolver=bindsock.integrations.aiodns.DNSResolver())

:mod:`bindsock.resolvers.c_ares` describes how it is bound. When the path changes, the c-ares channel is closed, and its queries
    are repeated on a new one.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Self, TypeVar

from bindsock.default import factory_or_running
from bindsock.errors import NoEffectiveInterface
from bindsock.extras import needs
from bindsock.factory import connector_of
from bindsock.netmon.no_interface import until_changed
from bindsock.options import known_keywords_of
from bindsock.resolvers.c_ares import bindings, server_address

with needs("aiodns"):
    import aiodns
    import pycares

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from bindsock.factory import TransportFactory
    from bindsock.model.change import Cause
    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress
    from bindsock.routing.effective import Decider

T = TypeVar("T")

_ATTEMPTS = 6
"""How often a query is sent in all, if its path keeps changing."""


class _Channel:
    """A c-ares channel on one path."""

    def __init__(self, resolver: aiodns.DNSResolver, servers: tuple[IPAddress, ...], paths: tuple[Path | None, ...]) -> None:
        self.resolver = resolver
        self.servers = servers
        self.paths = paths
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self.resolver.cancel()


class DNSResolver:
    """:class:`aiodns.DNSResolver`, over the effective interface, bypassing VPN tunnels.

    Name servers on this machine are asked by unbound sockets, and bindsock does not control where they ask.

    :param nameservers: addresses of name servers, with or without a port; the system's unless given
    :param factory: chooses the interface; the running event loop's own unless given
    :param options: arguments of :class:`aiodns.DNSResolver`, except ``loop``, ``local_dev`` and ``local_ip``
    :raises RuntimeError: no event loop is running
    :raises TypeError: an option is one that bindsock sets itself
    """

    @known_keywords_of(aiodns.DNSResolver, pycares.Channel)
    def __init__(
        self, nameservers: Sequence[str] | None = None, *, factory: TransportFactory | None = None, **options: Any
    ) -> None:
        for name in ("loop", "local_dev", "local_ip", "sock_state_cb"):
            if name in options:
                raise TypeError(f"{name} cannot be given: bindsock sets it")
        self._factory = factory_or_running(factory)
        self._watcher = connector_of(self._factory).watcher
        self._nameservers = tuple(nameservers) if nameservers else None
        self._options = options
        self._channel: _Channel | None = None
        self._closed = False
        aiodns.DNSResolver(**options)  # raises for unknown options

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def nameservers(self) -> Sequence[str]:
        """The name servers in use; the system's present ones unless they were given."""
        return self._nameservers if self._nameservers is not None else _system_servers()

    async def query_dns(self, host: str, qtype: str, qclass: str | None = None) -> pycares.DNSResult:
        """See :meth:`aiodns.DNSResolver.query_dns`.

        :raises NoEffectiveInterface: no interface may be used for the name servers
        :raises NoRoute: no route to the name servers leaves by the interface
        :raises ValueError: the name servers leave by different interfaces
        :raises aiodns.error.DNSError: the query failed
        """
        return await self._ask(lambda resolver: resolver.query_dns(host, qtype, qclass))

    async def query(self, host: str, qtype: str, qclass: str | None = None) -> Any:
        """See :meth:`aiodns.DNSResolver.query`, which is deprecated. It raises what :meth:`query_dns` raises."""
        ask: Callable[[Any], Awaitable[Any]] = lambda resolver: resolver.query(host, qtype, qclass)  # noqa: E731
        return await self._ask(ask)

    async def getaddrinfo(
        self,
        host: str,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        port: int | None = None,
        proto: int = 0,
        type: int = 0,
        flags: int = 0,
    ) -> pycares.AddrInfoResult:
        """See :meth:`aiodns.DNSResolver.getaddrinfo`. It raises what :meth:`query_dns` raises."""
        return await self._ask(lambda resolver: resolver.getaddrinfo(host, family, port, proto, type, flags))

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int = 0) -> pycares.NameInfoResult:
        """See :meth:`aiodns.DNSResolver.getnameinfo`. It raises what :meth:`query_dns` raises."""
        return await self._ask(lambda resolver: resolver.getnameinfo(sockaddr, flags))

    async def gethostbyaddr(self, name: str) -> pycares.HostResult:
        """See :meth:`aiodns.DNSResolver.gethostbyaddr`. It raises what :meth:`query_dns` raises."""
        return await self._ask(lambda resolver: resolver.gethostbyaddr(name))

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[dict[str, Any]]:
        """The addresses of a host, in the form of ``aiohttp.AsyncResolver``.

        :raises OSError: the host has no address
        """
        try:
            found = await self.getaddrinfo(host, family, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except aiodns.error.DNSError as error:
            raise OSError(None, error.args[1] if len(error.args) > 1 else "DNS lookup failed") from error
        if not found.nodes:
            raise OSError(None, "DNS lookup failed")
        return [
            {
                "hostname": host,
                "host": _address_text(node.addr),
                "port": node.addr[1],
                "family": node.family,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for node in found.nodes
        ]

    def cancel(self) -> None:
        """Let pending queries fail."""
        if self._channel is not None:
            self._channel.resolver.cancel()

    async def close(self) -> None:
        """Let pending queries fail, and refuse further ones."""
        self._closed = True
        self._watcher.unfollow(self)
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.resolver.close()

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Close the channel if the path to its name servers has changed."""
        channel = self._channel
        if channel is not None and tuple(decider.path(server) for server in channel.servers) != channel.paths:
            self._channel = None
            channel.end()

    async def _ask(self, ask: Callable[[aiodns.DNSResolver], Awaitable[T]]) -> T:
        for attempt in range(_ATTEMPTS):
            channel = await self._current()
            try:
                return await ask(channel.resolver)
            except aiodns.error.DNSError:
                if not channel.ended or self._closed or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _current(self) -> _Channel:
        """The channel for the present path."""
        if self._closed:
            raise RuntimeError("the resolver is closed")
        self._watcher.follow(self)
        self._watcher.refresh()  # this may close the channel
        while self._channel is None:
            try:
                self._channel = self._open()
            except NoEffectiveInterface:
                if self._factory.preferences.on_no_interface != "wait":
                    raise
                await until_changed(self._watcher)
        return self._channel

    def _open(self) -> _Channel:
        names = self.nameservers
        servers = tuple(server_address(name) for name in names)
        decider = self._watcher.refresh()
        paths = tuple(decider.path(server) for server in servers)
        found = bindings(self._factory, names)
        bound = [binding for binding in found.values() if binding is not None]
        options: dict[str, Any] = {"local_dev": bound[0].device, "local_ip": bound[0].address} if bound else {}
        resolver = aiodns.DNSResolver(tuple(found), **options, **self._options)
        for binding in bound[1:]:
            # c-ares keeps one address for each family; aiodns takes only one.
            resolver._channel.set_local_ip(binding.address)  # type: ignore[no-untyped-call]
        return _Channel(resolver, servers, paths)


def _system_servers() -> tuple[str, ...]:
    return tuple(aiodns.DNSResolver(loop=asyncio.get_running_loop()).nameservers)


def _address_text(address: tuple[Any, ...]) -> str:
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    scope = address[3] if len(address) > 3 else 0
    return f"{host}%{scope}" if scope else host
