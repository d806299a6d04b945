"""The NAT64 prefixes of a network, asked of its own name servers (RFC 7050), whoever resolves names: a VPN's do not know them."""

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
    """A :data:`bindsock.dial.nat64.FindPrefixes` that asks by the effective interface. What it was told is kept for that path.

    :param resolver: how to ask; the ways that the system has unless given
    """

    def __init__(self, watcher: Watcher, resolver: InterfaceResolver | None = None) -> None:
        if resolver is None:
            resolver = InterfaceResolver(lookups=[DnsSdLookup(), ResolvedLookup(), ConfiguredLookup()])
        self._resolve = resolver.on(watcher)

    async def __call__(self) -> tuple[IPv6Network, ...]:
        """Ask.

        :raises OSError: nobody answers
        """
        infos = await self._resolve(NAME, 0, family=socket.AF_INET6, type=socket.SOCK_STREAM)
        return prefixes_in(IPv6Address(info[4][0]) for info in infos)


def find_prefixes(
    preferences: Preferences, interface: str | None = None, timeout: float | None = None
) -> tuple[IPv6Network, ...]:
    """Ask from a thread that runs no event loop.

    :param interface: the name of the one interface to use, whatever detection says
    :param timeout: seconds; the resolver's own unless given
    :raises OSError: nobody answers (in time)
    """

    async def ask() -> tuple[IPv6Network, ...]:
        kernel = mark_as_preferred(kernels.current(), preferences)
        watcher = Watcher(kernel, preferences, interface=interface, runtime=runtime_of(asyncio.get_running_loop()))
        async with asyncio.timeout(timeout):
            return await PrefixFinder(watcher)()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(ask())
