"""The proxy server: accepts clients, dials over the effective interface, and passes bytes on.

:mod:`bindsock.proxy.handshake` parses the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

from bindsock.dial.resolving import address_of
from bindsock.errors import BindsockError, InterfaceChanged, NoEffectiveInterface, NoRoute
from bindsock.kernel.sockets import RESET_ON_CLOSE
from bindsock.model.decision import Basis
from bindsock.options import known_keywords_only
from bindsock.proxy import handshake
from bindsock.proxy.handshake import Dial, Failure, Handshake, NeedData, Refuse, Send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from bindsock.factory import TransportFactory

_logger = logging.getLogger("bindsock.proxy")

_CHUNK = 1 << 16
_LINGER = 5.0
"""Seconds for which a peer may read its remaining data before its connection is aborted."""
_FAILURES = {
    errno.ECONNREFUSED: handshake.CONNECTION_REFUSED,
    errno.ENETUNREACH: handshake.NETWORK_UNREACHABLE,
    errno.ENETDOWN: handshake.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: handshake.HOST_UNREACHABLE,
    errno.ETIMEDOUT: handshake.TIMED_OUT,
}


class _NotAllowed(Exception):
    """The client must not connect to this destination."""


@dataclass(slots=True)
class _Counter:
    bytes: int = 0


class Proxy:
    """A SOCKS5 and HTTP proxy. Its outgoing connections leave by the effective interface, and end when the interface is gone.

    Use it as an async context manager, and call :meth:`listen` once or several times.

    :param factory: makes the outgoing connections
    :param credentials: passwords by user name. Without them, the proxy only listens on loopback addresses. With them, clients on
        other hosts cannot reach this host's own addresses through the proxy
    :param max_connections: how many clients are served at the same time; further clients are rejected
    :param head_limit: the maximum size of a request's head, in bytes
    :param handshake_timeout: seconds within which a client must send its request
    :param connect_timeout: seconds within which the outgoing connection must be made
    :param family: the address family of the outgoing connections; both unless given
    :raises ValueError: ``credentials`` is empty
    """

    @known_keywords_only
    def __init__(
        self,
        factory: TransportFactory,
        *,
        credentials: Mapping[str, str] | None = None,
        max_connections: int = 512,
        head_limit: int = 16384,
        handshake_timeout: float = 10.0,
        connect_timeout: float = 30.0,
        family: int = socket.AF_UNSPEC,
    ) -> None:
        if credentials is not None and not credentials:
            raise ValueError("credentials must have at least one user")
        self._factory = factory
        self._credentials = credentials
        self._max_connections = max_connections
        self._head_limit = head_limit
        self._handshake_timeout = handshake_timeout
        self._connect_timeout = connect_timeout
        self._family = family
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._rejected = 0
        self.served: int = 0
        """How many clients have got a connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @known_keywords_only
    async def listen(self, host: str = "127.0.0.1", port: int = 1080) -> tuple[str, int]:
        """Serve clients on an address.

        :param host: an address of this host
        :param port: 0 for any
        :return: the address and port
        :raises ValueError: the address is not a loopback address, and there are no credentials
        :raises OSError: the address is in use, or does not belong to this host
        """
        self._check_address(host)
        server = await asyncio.start_server(self._accept, host, port, limit=_CHUNK)
        self._servers.append(server)
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        return bound_host, bound_port

    async def serve(self, sock: socket.socket) -> None:
        """Serve clients on a listening socket, which the proxy will close.

        :raises ValueError: its address is not a loopback address, and there are no credentials
        """
        self._check_address(sock.getsockname()[0])
        self._servers.append(await asyncio.start_server(self._accept, sock=sock, limit=_CHUNK))

    async def aclose(self) -> None:
        """End all connections and stop listening."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def _check_address(self, host: str) -> None:
        """Require credentials unless the address is a loopback address."""
        if not ip_address(host).is_loopback and self._credentials is None:
            raise ValueError(f"other hosts can reach {host}: a proxy there needs credentials")

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= self._max_connections:
            self._rejected += 1
            if self._rejected == 1:
                _logger.warning("%d clients are connected, rejecting further clients", len(self._clients))
            writer.transport.abort()
            return
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"bindsock proxy {_label(writer)}")
        self._clients.add(client)
        client.add_done_callback(self._client_done)

    def _client_done(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        if self._rejected and len(self._clients) < self._max_connections:
            _logger.warning("%d clients have been rejected", self._rejected)
            self._rejected = 0
        if not client.cancelled() and client.exception() is not None:
            _logger.error("the connection of a client failed unexpectedly", exc_info=client.exception())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        label = f"#{next(self._numbers)} {_label(writer)}"
        try:
            greeting = Handshake(self._credentials, limit=self._head_limit)
            try:
                async with asyncio.timeout(self._handshake_timeout):
                    dial = await _negotiate(greeting, reader, writer)
            except TimeoutError:
                _logger.info("%s sent no complete request within %g s", label, self._handshake_timeout)
                return
            if isinstance(dial, Refuse):
                _logger.info("%s refused: %s", label, dial.reason)
                return
            if dial is None:
                return
            label = f"{label} -> {dial.host}:{dial.port} ({dial.protocol})"
            upstream = await self._dial(label, greeting, dial, writer)
            if upstream is None:
                return
            self.served += 1
            await self._pass_on(label, (reader, writer), upstream, greeting.accepted(), dial.early)
        except OSError as error:
            _logger.info("%s ended: %s", label, error)
        finally:
            await _end(writer)

    async def _dial(
        self, label: str, greeting: Handshake, dial: Dial, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._check_allowed(dial, writer)
                upstream = await self._factory.open_connection(
                    dial.host, dial.port, family=self._family, happy_eyeballs_delay=0.25, limit=_CHUNK
                )
        except _NotAllowed as error:
            failure, reason = handshake.NOT_ALLOWED, str(error)
        except TimeoutError:
            failure, reason = handshake.TIMED_OUT, f"no connection within {self._connect_timeout:g} s"
        except OSError as error:
            failure, reason = failure_of(error), str(error)
        except (ValueError, OverflowError) as error:  # a resolver's, for a name or a number that it cannot encode
            failure, reason = handshake.NOT_A_HOST, f"not a host name: {error}"
        else:
            _logger.info("%s by %s", label, self._factory.interface_of(upstream[1]) or "any interface")
            return upstream
        _logger.info("%s failed: %s", label, reason)
        writer.write(greeting.failed(failure, reason))
        await writer.drain()
        return None

    async def _check_allowed(self, dial: Dial, writer: asyncio.StreamWriter) -> None:
        """Check that a client on another host does not connect to this host's own addresses.

        :raises _NotAllowed: it does
        """
        if address_of(writer.get_extra_info("peername")).is_loopback:
            return
        for info in await self._factory.resolve(dial.host, dial.port, family=self._family, type=socket.SOCK_STREAM):
            if self._factory.explain(address_of(info[4])).basis is Basis.LOCAL:
                raise _NotAllowed(f"{dial.host} is the host of the proxy itself")

    async def _pass_on(
        self,
        label: str,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        answer: bytes,
        early: bytes,
    ) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        up, down = _Counter(), _Counter()
        outcome = "ended, because the proxy is stopped"
        try:
            client[1].write(answer)
            upstream[1].write(early)
            up.bytes += len(early)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(client[0], upstream[1], up), name=f"bindsock proxy {label} up")
                tasks.create_task(self._pump(upstream[0], client[1], down, to_client=True), name=f"bindsock proxy {label} down")
            outcome = "done"
        except* InterfaceChanged as errors:
            outcome = f"ended, because its path is gone: {errors.exceptions[0]}"
            _reset(client[1])
        except* OSError as errors:
            outcome = f"broken: {errors.exceptions[0]}"
            # Reset both sides: after a clean end, the other side would take the data for complete.
            _reset(client[1])
            _reset(upstream[1])
        finally:
            _logger.info("%s %s, %d bytes up, %d down, %.1f s", label, outcome, up.bytes, down.bytes, clock() - begun)
            await _end(upstream[1])

    @staticmethod
    async def _pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: _Counter, *, to_client: bool = False
    ) -> None:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            counter.bytes += len(data)
            await writer.drain()
        if writer.can_write_eof() and not writer.is_closing():
            try:
                writer.write_eof()
            except OSError as error:
                # A client that closes its socket without waiting for the end; one that resets it fails the other pump.
                if not to_client or error.errno != errno.ENOTCONN:
                    raise


async def _negotiate(greeting: Handshake, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Dial | Refuse | None:
    """Do the handshake with a client.

    :return: its last event; ``None`` if the client disconnects first
    """
    while True:
        match greeting.next_event():
            case NeedData():
                data = await reader.read(_CHUNK)
                if not data:
                    return None
                greeting.receive(data)
            case Send(data):
                writer.write(data)
                await writer.drain()
            case Refuse(data) as refusal:
                writer.write(data)
                await writer.drain()
                return refusal
            case Dial() as dial:
                return dial


def failure_of(error: OSError) -> Failure:
    """The failure to report to the client for the error of a dial."""
    if isinstance(error, NoEffectiveInterface | NoRoute):
        return handshake.NETWORK_UNREACHABLE
    if isinstance(error, socket.gaierror):
        return handshake.HOST_UNREACHABLE
    if isinstance(error, BindsockError):
        return handshake.GENERAL_FAILURE
    return _FAILURES.get(error.errno or 0, handshake.GENERAL_FAILURE)


def _label(writer: asyncio.StreamWriter) -> str:
    peer: Sequence[object] | None = writer.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "?"


def _reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, so that the other side gets an error and not an end of file."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, ValueError):  # it is closed already; uvloop then raises ValueError
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait a moment until the remaining data is sent."""
    writer.close()
    with contextlib.suppress(OSError):
        try:
            async with asyncio.timeout(_LINGER):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()
