"""The functions of the ``bindsock`` module. Each event loop has one factory, which is created on first use."""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from bindsock.dial.resolving import AddrInfo
from bindsock.factory import TransportFactory
from bindsock.kernel import Kernel
from bindsock.model.decision import Decision
from bindsock.model.network import Interface, IPAddress, Target
from bindsock.model.statistics import Statistics
from bindsock.model.subflows import Multipath
from bindsock.netmon.runtime import Runtime, runtime_of, runtimes
from bindsock.options import known_keywords_only
from bindsock.routing.effective import Preferences

Q = ParamSpec("Q")
R = TypeVar("R")


class _Default:
    """The factory that the module's functions use on one event loop; ``None`` until it is needed."""

    def __init__(self, runtime: Runtime) -> None:
        self.factory: TransportFactory | None = None


def running_factory() -> TransportFactory:
    """The factory of the running event loop.

    :raises RuntimeError: no loop is running
    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    default = runtime_of(asyncio.get_running_loop()).shared(_Default)
    if default.factory is None:
        default.factory = TransportFactory()
    return default.factory


def factory_or_running(factory: TransportFactory | None) -> TransportFactory:
    """A factory that the program may have given, or that of the running event loop.

    :raises RuntimeError: none is given, and no loop is running
    :raises TypeError: something else is given
    :raises UnsupportedSystem: there is no kernel backend for this system
    """
    if factory is None:
        return running_factory()
    if not isinstance(factory, TransportFactory):
        raise TypeError(f"factory must be a bindsock.TransportFactory, not {factory!r}")
    return factory


def set_factory(loop: asyncio.AbstractEventLoop, factory: TransportFactory) -> None:
    """Make the module's functions use this factory on the event loop."""
    runtime_of(loop).shared(_Default).factory = factory


def find_running() -> tuple[asyncio.AbstractEventLoop, TransportFactory] | None:
    """A running event loop of this process, and its factory, for threads without a loop. Can be called from any thread."""
    for loop, runtime in runtimes():
        factory = runtime.shared(_Default).factory
        if isinstance(loop, asyncio.AbstractEventLoop) and factory is not None and loop.is_running():
            return loop, factory
    return None


def _on_running_factory(method: Callable[Concatenate[TransportFactory, Q], R]) -> Callable[Q, R]:
    """Make a function that calls the method on the running loop's factory, with the same signature and docstring."""
    name = method.__name__

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(running_factory(), name)(*args, **kwargs)

    async def call_and_wait(*args: Any, **kwargs: Any) -> Any:
        return await getattr(running_factory(), name)(*args, **kwargs)

    is_coroutine_function = inspect.iscoroutinefunction(inspect.unwrap(method))
    function: Any = functools.wraps(method)(call_and_wait if is_coroutine_function else call)
    signature = inspect.signature(method)
    function.__signature__ = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "self"])
    function.__module__, function.__qualname__, function.__doc__ = __name__, name, inspect.getdoc(method)
    return cast("Callable[Q, R]", known_keywords_only(function))


create_connection: Final = _on_running_factory(TransportFactory.create_connection)
open_connection: Final = _on_running_factory(TransportFactory.open_connection)
connect: Final = _on_running_factory(TransportFactory.connect)
create_datagram_endpoint: Final = _on_running_factory(TransportFactory.create_datagram_endpoint)
track: Final = _on_running_factory(TransportFactory.track)
changes: Final = _on_running_factory(TransportFactory.changes)


def statistics() -> Statistics:
    """The counters of the running loop's factory."""
    return running_factory().statistics()


@known_keywords_only
def socket_factory(addr_info: AddrInfo) -> socket.socket:
    """Create and bind a socket for one address: see :meth:`TransportFactory.socket_factory`.

    It can be called without an event loop, too; the socket is then bound once and not followed.
    """
    return _factory().socket_factory(addr_info)


@known_keywords_only
def bind(
    sock: socket.socket,
    destination: str | IPAddress | None = None,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Decision:
    """Bind a new socket to the effective interface, once. The socket is not followed. Needs no event loop.

    Without keywords, the preferences of the running event loop's factory apply, if there is one.

    :param sock: a socket that is neither bound nor connected; it is closed if binding fails
    :param destination: the address to which it will connect, so that a LAN or this host is reached by its own route
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param kernel: the kernel to ask; that of the running system unless given
    :return: the decision by which it was bound
    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    """
    return _factory_for(preferences, interface, kernel).bind(sock, destination)


@known_keywords_only
def effective_interface(
    family: int = socket.AF_UNSPEC,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Interface:
    """The effective interface: the uplink that carries the traffic, even if a VPN owns the default route. Needs no event loop.

    Without keywords, the preferences of the running event loop's factory apply, if there is one.

    :param family: ``AF_INET`` or ``AF_INET6``; otherwise that of IPv4, or of IPv6 if IPv4 has none
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param kernel: the kernel to ask; that of the running system unless given
    :raises NoEffectiveInterface: there is none
    :raises OSError: the network could not be read
    """
    return _factory_for(preferences, interface, kernel).effective_interface(family)


@known_keywords_only
def explain(
    destination: Target | str,
    *,
    interface: str | None = None,
    preferences: Preferences | None = None,
    kernel: Kernel | None = None,
) -> Decision:
    """The interface by which a connection to the destination would leave, and why. Needs no event loop.

    Without keywords, the preferences of the running event loop's factory apply, if there is one.

    :param destination: an address, or a family for its default route; names are not resolved
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param kernel: the kernel to ask; that of the running system unless given
    :raises ValueError: the destination is a name
    :raises OSError: the network could not be read
    """
    return _factory_for(preferences, interface, kernel).explain(destination)


@known_keywords_only
def interface_of(
    connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket, *, kernel: Kernel | None = None
) -> str | None:
    """The name of the interface that a connection is bound to; ``None`` if it is unbound or closed.

    :param connection: a transport of any library, a stream writer, or a socket
    :param kernel: the kernel to ask; that of the running system unless given
    """
    factory = _factory() if kernel is None else TransportFactory(kernel=kernel)
    return factory.interface_of(connection)


@known_keywords_only
def multipath_of(
    connection: asyncio.BaseTransport | asyncio.StreamWriter | socket.socket, *, kernel: Kernel | None = None
) -> Multipath:
    """Whether multipath was negotiated for a connection, and its subflows.

    :param connection: a transport of any library, a stream writer, or a socket
    :param kernel: the kernel to ask; that of the running system unless given
    """
    factory = _factory() if kernel is None else TransportFactory(kernel=kernel)
    return factory.multipath_of(connection)


def _factory_for(preferences: Preferences | None, interface: str | None, kernel: Kernel | None) -> TransportFactory:
    """A new factory with what is given; the running loop's, if there is one and nothing is given."""
    if preferences is None and interface is None and kernel is None:
        return _factory()
    return TransportFactory(preferences, interface=interface, kernel=kernel)


def _factory() -> TransportFactory:
    """The running loop's factory, or a new one if no loop is running."""
    try:
        return running_factory()
    except RuntimeError:
        return TransportFactory()
