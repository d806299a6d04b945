"""Finds the NAT64 prefixes of a network by its own name servers (RFC 7050), since a VPN's name servers do not know them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from bindsock import kernel as kernels
from bindsock.dial.binding import mark_as_preferred
from bindsock.dial.nat64 import NAME, prefixes_in
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.watcher import Watcher
from bindsock.resolvers.dnssd import DnsSdLookup
from bindsock.resolvers.interface import InterfaceResolver
from bindsock.resolvers.resolved import ResolvedLookup
from bindsock.resolvers.servers import ConfiguredLookup

if TYPE_CHECKING:
    from bindsock.routing.effective import Preferences


class PrefixFinder:
    """A :data:`bindsock.dial.nat64.FindPrefixes` that asks by the effective interface. The answer is cached for the path.

    :param resolver: the resolver to ask; one with the system's own ways unless given
    """

    def __init__(self, watcher: Watcher, resolver: InterfaceResolver | None = None) -> None:
        if resolver is None:
            resolver = InterfaceResolver(lookups=[DnsSdLookup(), ResolvedLookup(), ConfiguredLookup()])
        self._resolve = resolver.on(watcher)

    async def __call__(self) -> tuple[IPv6Network, ...]:
        """Find the prefixes.

        :raises OSError: no server answered
        """
        infos = await self._resolve(NAME, 0, family=socket.AF_INET6, type=socket.SOCK_STREAM)
        return prefixes_in(IPv6Address(info[4][0]) for info in infos)


def find_prefixes(
    preferences: Preferences, interface: str | None = None, timeout: float | None = None
) -> tuple[IPv6Network, ...]:
    """Find the prefixes, from a thread that runs no event loop.

    :param interface: the name of the only interface to use; detected unless given
    :param timeout: seconds; the resolver's own unless given
    :raises OSError: no server answered in time
    """

    async def ask() -> tuple[IPv6Network, ...]:
        kernel = mark_as_preferred(kernels.current(), preferences)
        watcher = Watcher(kernel, preferences, interface=interface, runtime=runtime_of(asyncio.get_running_loop()))
        async with asyncio.timeout(timeout):
            return await PrefixFinder(watcher)()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(ask())
