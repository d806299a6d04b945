"""The module-level functions: one factory for each event loop, made when it is first needed."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl as ssl_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from bindsock import kernel as kernels
from bindsock.dial.resolving import AddrInfo
from bindsock.factory import Changes, TransportFactory
from bindsock.kernel import Kernel
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Target
from bindsock.model.statistics import Statistics
from bindsock.model.subflows import Multipath
from bindsock.netmon.runtime import Runtime, runtime_of, runtimes
from bindsock.options import CONNECT_TIMEOUT, DRAIN_TIMEOUT, LIMIT, RECONNECT_TIMEOUT, BetterPath, known_keywords_only
from bindsock.routing.effective import Preferences

if TYPE_CHECKING:
    from bindsock.datagram.open import DatagramTransport
    from bindsock.reconnect.hooks import OnReconnect

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)


class _Default:
    """What one event loop's module-level functions use: a factory, once it is needed."""

    def __init__(self, runtime: Runtime) -> None:
        self.factory: TransportFactory | None = None


def running_factory() -> TransportFactory:
    """The running loop's factory.

    :raises RuntimeError: no loop is running
    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    default = runtime_of(asyncio.get_running_loop()).shared(_Default)
    if default.factory is None:
        default.factory = TransportFactory()
    return default.factory


def set_factory(loop: asyncio.AbstractEventLoop, factory: TransportFactory) -> None:
    """Make the module-level functions use this factory on that loop."""
    runtime_of(loop).shared(_Default).factory = factory


def find_running() -> tuple[asyncio.AbstractEventLoop, TransportFactory] | None:
    """An event loop that runs in this process, and its factory, for threads that have none. Can be called from any thread."""
    for loop, runtime in runtimes():
        factory = runtime.shared(_Default).factory
        if isinstance(loop, asyncio.AbstractEventLoop) and factory is not None and loop.is_running():
            return loop, factory
    return None


def _documented_by(method: Callable[..., Any]) -> Callable[[F], F]:
    """Give a function of the running loop's factory the docstring of the method that it calls."""

    def documented(function: F) -> F:
        function.__doc__ = inspect.getdoc(method)
        return known_keywords_only(function)

    return documented


@_documented_by(TransportFactory.create_connection)
async def create_connection(
    protocol_factory: Callable[[], P],
    host: str | None = None,
    port: int | str | None = None,
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
    return await running_factory().create_connection(
        protocol_factory,
        host,
        port,
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


@_documented_by(TransportFactory.open_connection)
async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = LIMIT,
    on_reconnect: OnReconnect | None = None,
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
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await running_factory().open_connection(
        host,
        port,
        limit=limit,
        on_reconnect=on_reconnect,
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


@_documented_by(TransportFactory.connect)
async def connect(
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
    connect_timeout: float | None = CONNECT_TIMEOUT,
    dead_after: float | None = None,
    multipath: bool = False,
) -> socket.socket:
    return await running_factory().connect(
        host,
        port,
        family=family,
        proto=proto,
        flags=flags,
        local_addr=local_addr,
        happy_eyeballs_delay=happy_eyeballs_delay,
        interleave=interleave,
        all_errors=all_errors,
        interface=interface,
        better_path=better_path,
        connect_timeout=connect_timeout,
        dead_after=dead_after,
        multipath=multipath,
    )


@_documented_by(TransportFactory.create_datagram_endpoint)
async def create_datagram_endpoint(
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
    return await running_factory().create_datagram_endpoint(
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
    )


@_documented_by(TransportFactory.track)
def track(
    sock: socket.socket,
    *,
    better_path: BetterPath | None = None,
) -> None:
    running_factory().track(
        sock,
        better_path=better_path,
    )


@_documented_by(TransportFactory.changes)
def changes() -> Changes:
    return running_factory().changes()


def statistics() -> Statistics:
    """What the running loop's factory has counted."""
    return running_factory().statistics()


@known_keywords_only
def socket_factory(addr_info: AddrInfo) -> socket.socket:
    """A fresh, bound socket for one address: see :meth:`TransportFactory.socket_factory`.

    Works without an event loop, too; the socket is then bound once and never followed.
    """
    return _here().socket_factory(addr_info)


@known_keywords_only
def bind(
    sock: socket.socket,
    destination: str | IPAddress | None = None,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Decision:
    """Bind a fresh socket to the effective interface: synchronous, once, without a loop. It never follows.

    :param sock: a socket that is neither bound nor connected; it is closed if binding fails
    :param destination: where it will connect to, so that a LAN or the machine itself is reached as it must be
    :param interface: the name of the one interface to use, whatever detection says
    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    """
    return TransportFactory(preferences, interface=interface, kernel=kernel).bind(sock, destination)


@known_keywords_only
def effective_interface(
    family: int = socket.AF_UNSPEC,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Interface:
    """The effective interface: the one beneath whatever VPN owns the default route. Synchronous, without a loop.

    :param family: ``AF_INET`` or ``AF_INET6``; otherwise that of IPv4, or of IPv6 if IPv4 has none
    :raises NoEffectiveInterface: there is none
    :raises OSError: the network could not be read
    """
    return TransportFactory(preferences, interface=interface, kernel=kernel).effective_interface(family)


@known_keywords_only
def explain(
    destination: Target | str,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Decision:
    """Which interface a connection to the destination would leave by, and why. Synchronous, without a loop.

    :param destination: an address, or a family for its default route; names are not resolved
    :raises ValueError: the destination is a name
    :raises OSError: the network could not be read
    """
    return TransportFactory(preferences, interface=interface, kernel=kernel).explain(destination)


def interface_of(
    connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket, *, kernel: Kernel | None = None
) -> str | None:
    """The name of the interface that a connection is bound to, ``None`` if it is bound to none or closed.

    :param connection: a transport of any library, a stream writer, or a socket
    """
    factory = _here() if kernel is None else TransportFactory(kernel=kernel)
    return factory.interface_of(connection)


def multipath_of(
    connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket, *, kernel: Kernel | None = None
) -> Multipath:
    """Whether multipath was negotiated for a connection, and over which subflows it goes.

    :param connection: a transport of any library, a stream writer, or a socket
    """
    factory = _here() if kernel is None else TransportFactory(kernel=kernel)
    return factory.multipath_of(connection)


def _here() -> TransportFactory:
    """The running loop's factory, or a new one where no loop runs."""
    try:
        return running_factory()
    except RuntimeError:
        return TransportFactory(kernel=kernels.current())
