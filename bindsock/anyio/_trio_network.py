"""Makes and follows connections on trio, like :mod:`bindsock.connector` on asyncio."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from bindsock import kernel as kernels
from bindsock.anyio._trio import trio_runtime
from bindsock.anyio._trio_resolving import resolve as system_resolve
from bindsock.datagram.in_place import InPlaceMover, follow_datagrams, watch_datagrams
from bindsock.datagram.open import DatagramTransport, open_datagram
from bindsock.dial.binding import decide_and_bind, mark_as_preferred
from bindsock.dial.dialer import Dialer
from bindsock.dial.lingering_close import LingeringClose, LingeringSockets
from bindsock.netmon.watcher import Watcher
from bindsock.options import ConnectOptions
from bindsock.repair import Repairer
from bindsock.routing.effective import Preferences
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.plan import Requirement

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from ipaddress import IPv6Network
    from typing import Any, TypeVar

    from bindsock.dial.nat64 import FindPrefixes
    from bindsock.dial.resolving import Resolve
    from bindsock.kernel import Kernel
    from bindsock.model.decision import Decision, Path
    from bindsock.model.network import IPAddress
    from bindsock.netmon.runtime import Runtime
    from bindsock.options import BetterPath

    D = TypeVar("D", bound=asyncio.DatagramProtocol)


_NO_OPTIONS = ConnectOptions()


class TrioNetwork:
    """Makes and follows the connections of one factory on one trio run."""

    def __init__(
        self,
        preferences: Preferences,
        interface: str | None,
        kernel: Kernel,
        better_path: BetterPath,
        resolve: Resolve | None,
        *,
        find_nat64: FindPrefixes | None,
        repair_routes: bool = False,
    ) -> None:
        """
        :param find_nat64: asks for the NAT64 prefixes; ``None`` if the kernel is not that of the running system
        """
        self.runtime = trio_runtime()
        self._better_path = better_path
        self._resolve: Resolve = resolve if resolve is not None else system_resolve
        self._find_nat64 = find_nat64
        self.watcher = Watcher(mark_as_preferred(kernel, preferences), preferences, interface=interface, runtime=self.runtime)
        self.lingering_close = LingeringClose(self.runtime.shared(LingeringSockets), kernel)
        """How IPv6 connections are closed."""
        self._repairer = Repairer(kernel, preferences, interface) if repair_routes else None
        if self._repairer is not None:
            self.runtime.at_end(self._repairer.close)

    async def connect(self, host: str, port: int, options: ConnectOptions) -> tuple[socket.socket, StreamGuard | None]:
        """Connect a socket.

        :return: the socket and its guard
        """
        dialer = Dialer(self.watcher, self._resolve, host, port, options, find_nat64=self._find_nat64)
        await trio.lowlevel.checkpoint()  # a dial that succeeds at once has no checkpoint
        dialled = await dialer.dial()
        # trio only accepts sockets of the standard library's own class.
        sock = _plain(dialled.sock)
        try:
            return sock, self.follow(sock, dialled.address, dialled.path, dialled.pinned(options))
        except BaseException:
            sock.close()
            raise

    async def open_datagram(
        self, protocol_factory: Callable[[], D], local_addr: Any, remote_addr: Any, **options: Any
    ) -> tuple[DatagramTransport, D]:
        """Open a datagram transport on the effective interface."""
        return await open_datagram(
            self.watcher,
            protocol_factory,
            local_addr,
            remote_addr,
            resolve=self._resolve,
            find_nat64=self._find_nat64,
            **options,
        )

    def bind(self, sock: socket.socket, destination: IPAddress) -> Decision:
        """Bind a new socket to the interface for a destination.

        :raises OSError: it could not be bound; it has been closed
        """
        try:
            decider = self.watcher.refresh()
        except BaseException:
            sock.close()
            raise
        return decide_and_bind(self.watcher.kernel, decider, sock, destination)

    def follow(
        self, sock: socket.socket, address: IPAddress, path: Path | None, options: ConnectOptions = _NO_OPTIONS
    ) -> StreamGuard | None:
        """Follow a connected stream socket, unless its peer is this host."""
        if path is None:
            return None
        better_path = options.better_path or self._better_path
        requirement = Requirement(address, options.interface, better_path, options.dead_after)
        return follow_stream(self.watcher, sock, requirement, path)

    def follow_datagrams(self, sock: socket.socket, destination: IPAddress | None) -> InPlaceMover | None:
        """Bind a datagram socket and follow it, unless it must be left alone.

        :raises OSError: it could not be bound; it has been closed
        """
        return follow_datagrams(self.watcher, sock, target=destination)

    def watch_datagrams(
        self, sock: socket.socket, destination: IPAddress, path: Path | None, interface: str | None
    ) -> InPlaceMover | None:
        """Follow a datagram socket that has just been bound and connected."""
        return watch_datagrams(self.watcher, sock, destination, path, interface=interface)


class _Default:
    """The network that the module's functions use on one trio run; ``None`` until it is needed."""

    def __init__(self, runtime: Runtime) -> None:
        self.network: TrioNetwork | None = None


def running_network() -> TrioNetwork:
    """The network of the current trio run. It is made on first use.

    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    default = trio_runtime().shared(_Default)
    if default.network is None:
        find_nat64 = nat64_finder(Preferences(), None)
        default.network = TrioNetwork(Preferences(), None, kernels.current(), "auto", None, find_nat64=find_nat64)
    return default.network


def nat64_finder(preferences: Preferences, interface: str | None) -> FindPrefixes:
    """A function that asks for the NAT64 prefixes, in a thread because bindsock's resolvers need asyncio."""

    def ask() -> tuple[IPv6Network, ...]:
        from bindsock.resolvers.nat64 import find_prefixes

        return find_prefixes(preferences, interface)

    async def find() -> tuple[IPv6Network, ...]:
        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)

    return find


def set_network(network: TrioNetwork) -> None:
    """Make this the network of the current trio run."""
    trio_runtime().shared(_Default).network = network


def _plain(sock: socket.socket) -> socket.socket:
    family, kind, proto = sock.family, sock.type, sock.proto
    plain = socket.socket(family, kind, proto, fileno=sock.detach())
    plain.setblocking(False)
    return plain
