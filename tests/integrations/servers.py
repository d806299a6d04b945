"""Real servers for the protocols of the libraries, in the laboratory's server. Each records its clients' addresses."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import aiohttp.web
import asyncssh
import dnslib  # type: ignore[import-untyped]
import trustme
import websockets.asyncio.server
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve as serve_quic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from bindsock.testing.lab import Lab
from tests.integrations import protocols
from tests.serving import Conversations, Talk, serve_inside

HTTP, HTTPS, WEBSOCKET, SECURE_WEBSOCKET, SSH, REDIS, QUIC, DNS, SINK, START_TLS = (
    8080, 8443, 8765, 8766, 8022, 6379, 4433, 53, 9999, 9998,
)  # fmt: skip
SMTP, SMTP_TLS, IMAP, MQTT, MQTT_TLS, POSTGRESQL, MYSQL, NATS, MONGODB, KAFKA, SOCKS = (
    2525, 4650, 1143, 1883, 8883, 5432, 3306, 4222, 27017, 9092, 1080,
)  # fmt: skip
NAME = "server.lab.test"
TELEGRAM, TELEGRAM_PORT = "api.telegram.org", 443
"""The name of a real server, for programs that accept no other. Only the tests' own ``/etc/hosts`` has it at this address."""


def content(size: int) -> bytes:
    """Bytes with a fixed, varied content."""
    block = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(2048))
    return (block * (size // len(block) + 1))[:size]


class Servers:
    """All servers, on an event loop in their own thread inside the laboratory's server.

    :ivar sources: the source addresses that each server has seen, by the server's name
    :ivar context: a TLS context for clients, which trusts the servers
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.host = lab.server.ipv4
        self.sources: dict[str, list[str]] = {}
        self.waiting = 0
        """Requests for ``/slow``, which is never answered."""
        self.quic_connections = 0
        self.dns_names: dict[str, str] = {f"{NAME}.": self.host}
        self.dns_ttl = 60
        self.datagrams_ignored = 0
        self.dns_queries: list[tuple[str, str]] = []
        self.context = ssl.create_default_context()
        self._seen = threading.Condition()
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._ended: asyncio.Event
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._directory = TemporaryDirectory()
        authority = trustme.CA()
        authority.configure_trust(self.context)
        certificate = authority.issue_cert(self.host, lab.server.ipv6, NAME, TELEGRAM)
        self.authority_pem = authority.cert_pem.bytes()
        self.authority_file = Path(self._directory.name) / "authority.pem"
        self.authority_file.write_bytes(self.authority_pem)
        self.chain_file = Path(self._directory.name) / "chain.pem"
        self.key_file = Path(self._directory.name) / "key.pem"
        self.chain_file.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        self.key_file.write_bytes(certificate.private_key_pem.bytes())
        self._server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._server_context)
        self._redis_subscribers: set[asyncio.StreamWriter] = set()
        self._conversations = Conversations()
        self._neighbours: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(timeout=20)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        loop = self._ready.result()
        loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(timeout=20)
        self._directory.cleanup()

    def seen(self, name: str, source: str) -> str:
        """Record a client's address."""
        with self._seen:
            self.sources.setdefault(name, []).append(source)
            self._seen.notify_all()
        return source

    def wait_for(self, name: str) -> set[str]:
        """Wait until a server has seen a client, and return the sources: a client may be done before the server has seen it."""
        with self._seen:
            assert self._seen.wait_for(lambda: self.sources.get(name), timeout=20), f"nobody came to {name}"
            return set(self.sources[name])

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the servers' thread, and wait for its result."""
        done: Future[Any] = Future()
        self._ready.result().call_soon_threadsafe(lambda: done.set_result(function()))
        return done.result(timeout=20)

    def forget(self, name: str) -> None:
        """Forget the clients that a server has seen, and those that have gone before it has seen their last words."""
        for _ in range(20):  # in each turn of its loop a socket takes one datagram or connection
            self.call(lambda: None)
        self.sources.pop(name, None)

    def publish(self, message: str) -> None:
        """Send a message to all subscribers of the Redis server."""
        data = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n" + _bulk(message)

        def write() -> None:
            for writer in self._redis_subscribers:
                if not writer.is_closing():
                    writer.write(data)

        self.call(write)

    @property
    def subscribers(self) -> int:
        return len(self._redis_subscribers)

    def _run(self) -> None:
        # Multicast stays on a link. The neighbours there are the router and the tunnel's other end.
        for neighbour in ("router", "vpn"):
            with self._lab.inside(neighbour):
                self._neighbours.append(_listening_to_multicasts())
        serve_inside(self._lab, self._serve, self._ready)

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for server in (
                self._http,
                self._websocket,
                self._ssh,
                self._streams,
                self._protocols,
                self._quic,
                self._dns,
                self._mdns,
            ):
                await stack.enter_async_context(server())
            self._ready.set_result(asyncio.get_running_loop())
            await self._ended.wait()
        await self._conversations.end()

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
            assert request.remote is not None
            body = await request.read()
            return aiohttp.web.Response(text=self.seen("http", request.remote), headers={"X-Received": str(len(body))})

        async def download(request: aiohttp.web.Request) -> aiohttp.web.Response:
            return aiohttp.web.Response(body=content(int(request.match_info["size"])))

        async def slow(request: aiohttp.web.Request) -> aiohttp.web.Response:
            self.waiting += 1
            await self._ended.wait()
            return aiohttp.web.Response(status=503)

        async def telegram(request: aiohttp.web.Request) -> aiohttp.web.Response:
            assert request.remote is not None
            if request.path.endswith("getUpdates"):
                # Not before it polls: python-telegram-bot's application ends if its first requests fail (bootstrap_retries).
                self.seen("telegram", request.remote)
            robot = {"id": 1, "is_bot": True, "first_name": "lab", "username": "lab"}
            return aiohttp.web.json_response({"ok": True, "result": robot if request.path.endswith("getMe") else []})

        application = aiohttp.web.Application(client_max_size=1 << 24)
        application.router.add_post("/bot{token}/{method}", telegram)
        application.router.add_route("*", "/", answer)
        application.router.add_route("*", "/slow", slow)
        application.router.add_get("/download/{size}", download)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, self.host, HTTP).start()
        for port in (HTTPS, TELEGRAM_PORT):
            await aiohttp.web.TCPSite(runner, self.host, port, ssl_context=self._server_context).start()
        yield
        assert runner.server is not None
        # Otherwise the server would wait for clients whose uplink went away: for their close_notify, or for the rest of a
        # request.
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    @contextlib.asynccontextmanager
    async def _websocket(self) -> AsyncIterator[None]:
        async def talk(connection: websockets.asyncio.server.ServerConnection) -> None:
            await connection.send(self.seen("websocket", connection.remote_address[0]))
            async for message in connection:
                await connection.send(message)

        serve = websockets.asyncio.server.serve
        async with (
            serve(talk, self.host, WEBSOCKET, close_timeout=0.5),
            serve(talk, self.host, SECURE_WEBSOCKET, ssl=self._server_context, close_timeout=0.5),
        ):
            yield

    @contextlib.asynccontextmanager
    async def _ssh(self) -> AsyncIterator[None]:
        connections: set[asyncssh.SSHServerConnection] = set()

        class Guest(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                connections.add(conn)

            def begin_auth(self, username: str) -> bool:
                return False

        def run(process: asyncssh.SSHServerProcess[str]) -> None:
            process.stdout.write(self.seen("ssh", process.get_extra_info("peername")[0]))
            process.exit(0)

        server = await asyncssh.listen(
            self.host,
            SSH,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            server_factory=Guest,
            process_factory=run,
        )
        yield
        server.close()
        for connection in connections:
            connection.abort()

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncIterator[None]:
        async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.seen("sink", writer.get_extra_info("peername")[0])

        async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            source = self.seen("start_tls", writer.get_extra_info("peername")[0])
            await reader.readline()
            writer.write(b"go ahead\n")
            await writer.start_tls(self._server_context)
            writer.write(f"{source}\n".encode())
            await writer.drain()

        by = self._conversations.by
        servers = [
            await asyncio.start_server(by(sink), self.host, SINK),
            await asyncio.start_server(by(upgrade), self.host, START_TLS),
            await asyncio.start_server(by(self._redis), self.host, REDIS),
        ]
        yield
        for server in servers:
            server.close()

    @contextlib.asynccontextmanager
    async def _protocols(self) -> AsyncIterator[None]:
        def serving(name: str, talk: Talk) -> Talk:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                self.seen(name, writer.get_extra_info("peername")[0])
                await talk(reader, writer)
                await writer.drain()

            return serve

        by = self._conversations.by
        servers = [
            await asyncio.start_server(by(serving(name, talk)), self.host, port, ssl=self._server_context if tls else None)
            for name, talk, port, tls in (
                ("smtp", protocols.smtp, SMTP, False),
                ("smtp", protocols.smtp, SMTP_TLS, True),
                ("imap", protocols.imap, IMAP, False),
                ("mqtt", protocols.mqtt, MQTT, False),
                ("mqtt", protocols.mqtt, MQTT_TLS, True),
                ("postgresql", protocols.postgresql, POSTGRESQL, False),
                ("mysql", protocols.mysql, MYSQL, False),
                ("nats", protocols.nats, NATS, False),
                ("mongodb", protocols.mongodb, MONGODB, False),
                ("kafka", protocols.kafka, KAFKA, False),
                ("socks", protocols.socks, SOCKS, False),
            )
        ]
        yield
        for server in servers:
            server.close()

    async def _redis(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Redis, as much as a client needs to connect, to get a value and to subscribe."""
        source = writer.get_extra_info("peername")[0]
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2].decode())
                command = words[0].upper()
                if command == "GET":
                    writer.write(_bulk(self.seen("redis", source)))
                elif command == "SUBSCRIBE":
                    self.seen("subscribe", source)
                    self._redis_subscribers.add(writer)
                    writer.write(b"*3\r\n$9\r\nsubscribe\r\n" + _bulk(words[1]) + b":1\r\n")
                elif command == "HELLO":
                    writer.write(b"-ERR unknown command\r\n")
                else:
                    writer.write(b"+OK\r\n")
                await writer.drain()
        finally:
            self._redis_subscribers.discard(writer)

    @contextlib.asynccontextmanager
    async def _quic(self) -> AsyncIterator[None]:
        servers = self

        class Protocol(QuicConnectionProtocol):
            def __init__(self, quic: QuicConnection, stream_handler: Any = None) -> None:
                super().__init__(quic, self._talk)
                servers.quic_connections += 1

            def datagram_received(self, data: bytes | str, addr: Any) -> None:
                self.source = addr[0]
                servers.seen("quic", addr[0])
                super().datagram_received(data, addr)

            def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                self._answering = asyncio.get_running_loop().create_task(self._answer(reader, writer))

            async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                size = int(await reader.read())
                writer.write(content(size) if size else self.source.encode())
                writer.write_eof()

        configuration = QuicConfiguration(is_client=False, alpn_protocols=["lab"], max_data=1 << 24, max_stream_data=1 << 24)
        configuration.load_cert_chain(self.chain_file, self.key_file)
        server = await serve_quic(self.host, QUIC, configuration=configuration, create_protocol=Protocol)
        yield
        server.close()

    @contextlib.asynccontextmanager
    async def _dns(self) -> AsyncIterator[None]:
        servers = self

        def answer(query: bytes, source: str, *, datagram: bool) -> bytes:
            request = dnslib.DNSRecord.parse(query)
            name = str(request.q.qname).lower()
            kind = dnslib.QTYPE[request.q.qtype]
            servers.dns_queries.append((name, source))
            servers.seen("dns", source)
            reply = request.reply()
            if name.startswith("source."):
                if kind == "A":
                    reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(source), ttl=0))
            elif name.startswith("alias.") and kind == "A":
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.CNAME, rdata=dnslib.CNAME(NAME), ttl=servers.dns_ttl))
                reply.add_answer(dnslib.RR(NAME, rdata=dnslib.A(servers.host), ttl=servers.dns_ttl))
            elif name.startswith("large.") and kind == "A":
                if datagram:
                    reply.header.tc = 1
                else:
                    for last in range(1, 101):
                        reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(f"192.0.2.{last}"), ttl=servers.dns_ttl))
            elif name.startswith("broken."):
                reply.header.rcode = dnslib.RCODE.SERVFAIL
            elif name in servers.dns_names:
                if kind == "A":
                    reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(servers.dns_names[name]), ttl=servers.dns_ttl))
            else:
                reply.header.rcode = dnslib.RCODE.NXDOMAIN
            packed: bytes = reply.pack()
            return packed

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                if servers.dns_silent:
                    servers.datagrams_ignored += 1
                else:
                    self.transport.sendto(answer(data, addr[0], datagram=True), addr)

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            length = int.from_bytes(await reader.readexactly(2), "big")
            reply = answer(await reader.readexactly(length), writer.get_extra_info("peername")[0], datagram=False)
            writer.write(len(reply).to_bytes(2, "big") + reply)
            await writer.drain()

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=(self.host, DNS))
        server = await asyncio.start_server(self._conversations.by(stream), self.host, DNS)
        yield
        server.close()
        transport.close()

    @contextlib.asynccontextmanager
    async def _mdns(self) -> AsyncIterator[None]:
        servers = self

        class Responder(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                reply = protocols.mdns(data)
                if reply is not None:
                    servers.seen("mdns", addr[0])
                    self.transport.sendto(reply, addr)

        loop = asyncio.get_running_loop()
        transports = [(await loop.create_datagram_endpoint(Responder, sock=sock))[0] for sock in self._neighbours]
        yield
        for transport in transports:
            transport.close()

    dns_silent = False
    """Whether DNS questions by UDP get no answer."""


def _listening_to_multicasts() -> socket.socket:
    """A socket that receives multicast DNS questions on every link of this namespace."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind(("", protocols.MDNS_PORT))
    for index, _ in socket.if_nameindex():
        membership = socket.inet_aton(protocols.MDNS_GROUP) + socket.inet_aton("0.0.0.0") + index.to_bytes(4, sys.byteorder)
        with contextlib.suppress(OSError):  # an interface without multicast
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


def _bulk(text: str) -> bytes:
    return f"${len(text.encode())}\r\n{text}\r\n".encode()
