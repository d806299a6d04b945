"""aiohttp's client.

.. code-block:: python

    async with aiohttp.ClientSession(connector=bindsock.integrations.aiohttp.TCPConnector()) as session:
        await session.get("https://example.com/")
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from bindsock.default import factory_or_running
from bindsock.extras import needs
from bindsock.factory import connector_of
from bindsock.model.network import FAMILIES
from bindsock.options import known_keywords_of

with needs("aiohttp"):
    import aiohttp
    import aiohttp.abc

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from bindsock.factory import TransportFactory
    from bindsock.model.change import Cause
    from bindsock.model.decision import Path
    from bindsock.routing.effective import Decider


class TCPConnector(aiohttp.TCPConnector):
    """aiohttp's connector, whose connections leave by the effective interface.

    When an interface goes down, its requests fail at once, and its idle connections are removed from the pool. When the path has
    changed, names are resolved again.

    :param factory: makes the sockets; the running event loop's own unless given
    :param options: arguments of :class:`aiohttp.TCPConnector`, except ``socket_factory`` and ``local_addr``
    """

    @known_keywords_of(aiohttp.TCPConnector)
    def __init__(self, factory: TransportFactory | None = None, **options: Any) -> None:
        self._transport_factory = factory_or_running(factory)
        connector = connector_of(self._transport_factory)
        if connector.has_own_resolver:
            options.setdefault("resolver", FactoryResolver(self._transport_factory))
        super().__init__(socket_factory=self._transport_factory.socket_factory, **options)
        self._paths: tuple[Path | None, ...] | None = None
        self._watcher = connector.watcher
        self._watcher.follow(self)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Clear the DNS cache, since names may resolve differently on another path."""
        paths = tuple(decider.path(family) for family in FAMILIES)
        if paths != self._paths:
            self._paths = paths
            self.clear_dns_cache()

    def close(self, **options: Any) -> Awaitable[None]:  # type: ignore[override]
        self._watcher.unfollow(self)
        return super().close(**options)


class FactoryResolver(aiohttp.abc.AbstractResolver):
    """Resolves names by a factory's resolver."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        infos = await self._factory.resolve(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return [
            {
                "hostname": host,
                "host": info[4][0],
                "port": port,
                "family": info[0],
                "proto": info[2],
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for info in infos
        ]

    async def close(self) -> None:
        """Do nothing, since nothing is open."""
