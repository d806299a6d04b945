"""gRPC's asyncio channels, over connections that leave by the effective interface.

.. code-block:: python

    async with bindsock.integrations.grpc.secure_channel("example.com:443", grpc.ssl_channel_credentials()) as channel:
        ...

gRPC connects in its C core, where Python code cannot bind a socket. So each channel connects to a proxy on loopback in this
process: gRPC asks it for the server by HTTP CONNECT, and the proxy's own connection is bound and followed. TLS stays end to end.
When the interface is gone, the proxy resets gRPC's connection, and gRPC reconnects by itself: pending calls end with
``UNAVAILABLE``, later calls use a new connection.

The proxy is not given as the option ``grpc.http_proxy``: gRPC ignores that option if ``no_proxy`` is set in the environment
(grpc src/core/handshaker/http_connect/http_proxy_mapper.cc, HttpProxyMapper::MapName), and the call would leave unbound. Instead
the channel's target is the proxy itself, with the options that gRPC sets internally for a channel that uses a proxy.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import socket
import weakref
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from bindsock.default import factory_or_running
from bindsock.extras import needs
from bindsock.netmon.runtime import runtime_of
from bindsock.options import known_keywords_only
from bindsock.proxy import Proxy

with needs("grpc"):
    import grpc  # type: ignore[import-untyped]
    import grpc.aio  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from bindsock.factory import TransportFactory
    from bindsock.netmon.runtime import Runtime

ChannelOptions: TypeAlias = Sequence[tuple[str, Any]]

_USER = "grpc"
_DEFAULT_PORT = 443
"""gRPC's default port (src/core/resolver/dns/native/dns_resolver.cc, kDefaultSecurePort)."""
_MAX_CONNECTIONS = 4096
_LOCAL_SCHEMES = ("unix", "unix-abstract", "vsock")
_HOST_SCHEMES = ("dns", "ipv4", "ipv6")
_OTHER_SCHEMES = ("xds", "google-c2p", "google-c2p-experimental")
_PROXY_OPTIONS = ("grpc.http_proxy", "grpc.http_connect_server", "grpc.http_connect_headers", "grpc.address_http_proxy")
"""The options that make a channel use a proxy. Only this module may set them."""


@known_keywords_only
def insecure_channel(
    target: str,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    *,
    factory: TransportFactory | None = None,
) -> grpc.aio.Channel:
    """:func:`grpc.aio.insecure_channel`, over the effective interface, bypassing VPN tunnels.

    ``unix:`` and ``vsock:`` targets and loopback addresses stay on this machine and are connected directly.

    :param target: a host and port as gRPC writes them: ``name:port``, ``dns:///name:port``, or ``ipv4:`` and ``ipv6:`` with one
        address
    :param factory: makes the connections; the running event loop's own unless given
    :raises RuntimeError: no event loop is running
    :raises ValueError: the target or an option cannot use one interface: ``xds:``, several addresses, a proxy
    """
    return _open(grpc.aio.insecure_channel, target, options, compression, interceptors, factory)


@known_keywords_only
def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    *,
    factory: TransportFactory | None = None,
) -> grpc.aio.Channel:
    """:func:`grpc.aio.secure_channel`, over the effective interface, bypassing VPN tunnels. TLS is end to end.

    :param target: as in :func:`insecure_channel`
    :param factory: makes the connections; the running event loop's own unless given
    :raises RuntimeError: no event loop is running
    :raises ValueError: as in :func:`insecure_channel`
    """

    def connect(target: str, **arguments: Any) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, credentials, **arguments)

    return _open(connect, target, options, compression, interceptors, factory)


def _open(
    connect: Callable[..., grpc.aio.Channel],
    target: str,
    options: ChannelOptions | None,
    compression: grpc.Compression | None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None,
    factory: TransportFactory | None,
) -> grpc.aio.Channel:
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {"compression": compression, "interceptors": interceptors}
    factory = factory_or_running(factory)
    endpoints: list[Endpoint] = []

    def endpoint() -> Endpoint:
        endpoints.append(endpoint_of(loop, factory))
        return endpoints[0]

    target, leading = redirect(target, list(options or ()), endpoint)
    channel = connect(target, options=leading, **arguments)
    return Channel(channel, endpoints[0]) if endpoints else channel


def redirect(target: str, options: ChannelOptions, endpoint: Callable[[], Endpoint]) -> tuple[str, ChannelOptions]:
    """Redirect a channel through a proxy in this process, unless its target is on this machine.

    :param endpoint: returns the proxy; only called if it is needed
    :return: the target and the options to make the channel with
    :raises ValueError: the target or an option cannot use one interface: ``xds:``, several addresses, a proxy
    """
    for name, value in options:
        if name in _PROXY_OPTIONS or (name == "grpc.enable_http_proxy" and value):
            raise ValueError(f"the option {name} cannot be given: bindsock connects to the server itself")
    destination = split_target(target)
    if destination is None or _is_loopback(destination[1]):
        # A proxy in the environment must not be used for targets on this machine.
        return target, [*options, *_NO_PROXY]
    authority, host, port = destination
    proxy = endpoint()
    leading = [*_NO_PROXY, *proxy.options(host, port)]
    if not any(name == "grpc.default_authority" for name, _ in options):
        leading.append(("grpc.default_authority", authority))
    return proxy.target, [*options, *leading]


def is_redirected(options: ChannelOptions) -> bool:
    """Whether the options are those of a channel that :func:`redirect` has redirected."""
    return any(name == "grpc.address_http_proxy_enabled_addresses" and value == "" for name, value in options)


_NO_PROXY: ChannelOptions = (
    # This overrides http_proxy, grpc_proxy and GRPC_ADDRESS_HTTP_PROXY in the environment.
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
)


def split_target(target: str) -> tuple[str, str, int] | None:
    """Parse a channel's target.

    :return: the authority that gRPC would send, the host, and the port; ``None`` if it is no internet address
    :raises ValueError: the target is not a single host and port
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in _LOCAL_SCHEMES:
        return None
    if colon and scheme in _OTHER_SCHEMES:
        raise ValueError(f"{scheme}: targets make their own connections, which cannot be bound to an interface")
    if not colon or scheme not in _HOST_SCHEMES:
        return (target, *_host_and_port(target))
    if rest.startswith("//"):
        server, _, rest = rest[2:].partition("/")
        if server:
            raise ValueError(f"gRPC cannot ask the name server {server} by the interface: give the factory a resolver instead")
    rest = rest.lstrip("/")
    if "," in rest:
        raise ValueError(f"{target} has several addresses: open a channel for each")
    return (rest, *_host_and_port(rest))


def _host_and_port(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError(f"the target {text!r} has no host")
    try:
        number = int(port) if port else _DEFAULT_PORT
    except ValueError:
        raise ValueError(f"the port of the target {text!r} is not a number") from None
    return host, number


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Endpoint:
    """The proxy on loopback that the gRPC channels of one factory use. It ends with the last channel.

    Other programs cannot use it, since it requires a secret that only this process knows.
    """

    def __init__(self, factory: TransportFactory) -> None:
        secret = secrets.token_urlsafe(32)
        self.closed: bool = False
        self._loop = asyncio.get_running_loop()
        self._authorization = base64.b64encode(f"{_USER}:{secret}".encode()).decode()
        self._proxy = Proxy(factory, credentials={_USER: secret}, max_connections=_MAX_CONNECTIONS)
        self._channels = 0
        # Listen now, so that gRPC can connect before the event loop accepts.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self._port: int = self._listener.getsockname()[1]
        self._ended = asyncio.Event()
        self._serving = self._loop.create_task(self._serve(), name="bindsock grpc proxy")
        self._serving.add_done_callback(self._forget)

    @property
    def target(self) -> str:
        """The target that gRPC connects to."""
        return f"ipv4:127.0.0.1:{self._port}"

    def options(self, host: str, port: int) -> ChannelOptions:
        """The options that make gRPC ask the proxy for a server."""
        return (
            ("grpc.http_connect_server", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
            ("grpc.http_connect_headers", f"Proxy-Authorization:Basic {self._authorization}"),
        )

    def join(self) -> None:
        """Count a channel that uses the endpoint."""
        self._channels += 1

    def leave(self) -> None:
        """Count down when a channel no longer uses it. The last one ends it."""
        self._channels -= 1
        if not self._channels:
            self.closed = True
            self._ended.set()

    def abandon(self) -> None:
        """Call :meth:`leave` for a channel that was collected without being closed, in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the endpoint with it
            self._loop.call_soon_threadsafe(self.leave)

    async def wait_closed(self) -> None:
        """Wait until everything is closed, if the last channel has left."""
        if self.closed:
            await asyncio.wait([self._serving])

    async def _serve(self) -> None:
        async with self._proxy:
            await self._proxy.serve(self._listener)
            await self._ended.wait()

    def _forget(self, serving: asyncio.Task[None]) -> None:
        self.closed = True
        self._listener.close()


def endpoint_of(loop: asyncio.AbstractEventLoop, factory: TransportFactory) -> Endpoint:
    """The endpoint of a factory on a running event loop; a new one if there is none, or it has ended."""
    return runtime_of(loop).shared(_Endpoints).of(factory)


class _Endpoints:
    """The endpoints of one event loop, by factory."""

    def __init__(self, runtime: Runtime) -> None:
        self._by_factory: dict[TransportFactory, Endpoint] = {}

    def of(self, factory: TransportFactory) -> Endpoint:
        """The factory's endpoint; a new one if the last one has ended."""
        self._by_factory = {factory: endpoint for factory, endpoint in self._by_factory.items() if not endpoint.closed}
        endpoint = self._by_factory.get(factory)
        if endpoint is None:
            endpoint = self._by_factory[factory] = Endpoint(factory)
        return endpoint


class Channel(grpc.aio.Channel):  # type: ignore[misc]
    """A gRPC channel that releases the proxy when it is closed."""

    def __init__(self, channel: grpc.aio.Channel, endpoint: Endpoint) -> None:
        self._channel = channel
        self._endpoint = endpoint
        endpoint.join()
        self._left = weakref.finalize(self, endpoint.abandon)
        self._left.atexit = False

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel.

        :param grace: seconds that pending calls may still take; none unless given
        """
        try:
            await self._channel.close(grace)
        finally:
            if self._left.detach() is not None:
                self._endpoint.leave()
        await self._endpoint.wait_closed()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **options: Any) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        return self._channel.unary_unary(*args, **options)

    def unary_stream(self, *args: Any, **options: Any) -> grpc.aio.UnaryStreamMultiCallable[Any, Any]:
        return self._channel.unary_stream(*args, **options)

    def stream_unary(self, *args: Any, **options: Any) -> grpc.aio.StreamUnaryMultiCallable[Any, Any]:
        return self._channel.stream_unary(*args, **options)

    def stream_stream(self, *args: Any, **options: Any) -> grpc.aio.StreamStreamMultiCallable[Any, Any]:
        return self._channel.stream_stream(*args, **options)
