"""httpx and httpcore, on asyncio and trio.

.. code-block:: python

    async with httpx.AsyncClient(transport=bindsock.integrations.httpx.AsyncTransport()) as client:
        await client.get("https://example.com/")

When an interface goes down, its requests fail at once with :class:`httpx.ReadError`, and its idle connections are removed from
the pool.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import typing
from typing import Any

from bindsock.extras import needs

with needs("httpx"):
    import anyio
    import httpcore
    import httpx
    from anyio.abc import ByteStream, SocketAttribute
    from anyio.streams.tls import TLSAttribute, TLSStream

from bindsock.anyio import BindsockAttribute, TransportFactory, connect_tcp
from bindsock.options import known_keywords_only

if typing.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
    from types import TracebackType

_READING = {
    TimeoutError: httpcore.ReadTimeout,
    anyio.BrokenResourceError: httpcore.ReadError,
    anyio.ClosedResourceError: httpcore.ReadError,
    OSError: httpcore.ReadError,
}
_WRITING = {
    TimeoutError: httpcore.WriteTimeout,
    anyio.BrokenResourceError: httpcore.WriteError,
    anyio.ClosedResourceError: httpcore.WriteError,
    OSError: httpcore.WriteError,
}
_CONNECTING = {
    TimeoutError: httpcore.ConnectTimeout,
    anyio.BrokenResourceError: httpcore.ConnectError,
    anyio.EndOfStream: httpcore.ConnectError,
    OSError: httpcore.ConnectError,
}


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """An httpcore network backend: ``httpcore.AsyncConnectionPool(network_backend=NetworkBackend())``.

    :param factory: makes the connections; the event loop's own unless given
    :raises TypeError: the factory is not one of :mod:`bindsock.anyio`
    """

    @known_keywords_only
    def __init__(self, factory: TransportFactory | None = None) -> None:
        if factory is not None and not isinstance(factory, TransportFactory):
            raise TypeError(f"factory must be a bindsock.anyio.TransportFactory, not {factory!r}")
        self._connect = factory.connect_tcp if factory is not None else connect_tcp

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(_CONNECTING), anyio.fail_after(timeout):
            stream = await self._connect(host, port, local_host=local_address)
        sock = stream.extra(SocketAttribute.raw_socket)
        for option in socket_options or ():
            sock.setsockopt(*option)
        return NetworkStream(stream)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(_CONNECTING), anyio.fail_after(timeout):
            return NetworkStream(await anyio.connect_unix(path))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class NetworkStream(httpcore.AsyncNetworkStream):
    """An httpcore stream over a stream of anyio."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(_READING), anyio.fail_after(timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _mapped(_WRITING), anyio.fail_after(timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(_CONNECTING | {ssl.SSLError: httpcore.ConnectError}):
            try:
                with anyio.fail_after(timeout):
                    wrapped = await TLSStream.wrap(
                        self._stream,
                        hostname=server_hostname,
                        ssl_context=ssl_context,
                        standard_compatible=False,
                        server_side=False,
                    )
            except BaseException:
                await anyio.aclose_forcefully(self._stream)
                raise
        return NetworkStream(wrapped)

    def get_extra_info(self, info: str) -> Any:
        attributes = {
            "ssl_object": TLSAttribute.ssl_object,
            "client_addr": SocketAttribute.local_address,
            "server_addr": SocketAttribute.remote_address,
            "socket": SocketAttribute.raw_socket,
        }
        if info == "is_readable":
            # If an idle connection is readable, it has ended; the pool then drops it.
            if not self._stream.extra(BindsockAttribute.viable, True):
                return True
            return _is_readable(self._stream.extra(SocketAttribute.raw_socket, None))
        return self._stream.extra(attributes[info], None) if info in attributes else None


class AsyncTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose connections leave by the effective interface.

    :param factory: makes the connections; the event loop's own unless given
    :param verify: an argument of :class:`httpx.AsyncHTTPTransport`, like ``http1``, ``http2``, ``limits`` and ``retries``
    :param pool: a pool to use instead, made with ``network_backend=NetworkBackend()``
    """

    @known_keywords_only
    def __init__(
        self,
        factory: TransportFactory | None = None,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        retries: int = 0,
        pool: httpcore.AsyncConnectionPool | None = None,
    ) -> None:
        if limits is None:
            limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
        if pool is None:
            pool = httpcore.AsyncConnectionPool(
                ssl_context=verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify),
                max_connections=limits.max_connections,
                max_keepalive_connections=limits.max_keepalive_connections,
                keepalive_expiry=limits.keepalive_expiry,
                http1=http1,
                http2=http2,
                retries=retries,
                network_backend=NetworkBackend(factory),
            )
        self.pool = pool

    async def __aenter__(self) -> typing.Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        with _translated():
            await self.pool.__aexit__(exc_type, exc_value, traceback)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        with _translated():
            response = await self.pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self.pool.aclose()


class _ResponseStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


@contextlib.contextmanager
def _mapped(exceptions: Mapping[type[Exception], type[Exception]]) -> Iterator[None]:
    """Replace exceptions by others; the first entry that matches is used."""
    try:
        yield
    except Exception as error:
        for kind, replacement in exceptions.items():
            if isinstance(error, kind):
                raise replacement(str(error) or type(error).__name__) from error
        raise


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Replace httpcore's exceptions by httpx's of the same name, the most specific one that exists."""
    try:
        yield
    except Exception as error:
        for kind in type(error).__mro__:
            replacement = getattr(httpx, kind.__name__, None)
            if kind.__module__.startswith("httpcore") and replacement is not None:
                raise replacement(str(error)) from error
        raise


def _is_readable(sock: Any) -> bool:
    if sock is None or sock.fileno() == -1:
        return True
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))
