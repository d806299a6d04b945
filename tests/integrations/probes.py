"""One short exchange by each library, as its users write it, without a word about bindsock.

Each returns nothing: what counts is the source address that the server saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiodns
import aiohttp
import aiomqtt
import aioquic.asyncio.client
import anyio
import asyncssh
import dns.asyncquery
import dns.message
import grpc.aio  # type: ignore[import-untyped]
import httpcore
import httpx
import redis.asyncio
import websockets.asyncio.client
from aioquic.quic.configuration import QuicConfiguration

from tests.integrations import servers as ports
from tests.integrations.servers import NAME, Servers

_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A row of the table."""

    name: str
    server: str
    """Whose list of sources tells."""
    run: Callable[[Servers], Awaitable[None]]


PROBES: list[Probe] = []


def probe(name: str, server: str) -> Callable[[Callable[[Servers], Awaitable[None]]], Callable[[Servers], Awaitable[None]]]:
    """Add a row."""

    def add(run: Callable[[Servers], Awaitable[None]]) -> Callable[[Servers], Awaitable[None]]:
        PROBES.append(Probe(name, server, run))
        return run

    return add


async def _say_goodbye(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


@probe("`asyncio.open_connection`", "sink")
async def open_connection(servers: Servers) -> None:
    reader, writer = await asyncio.open_connection(servers.host, ports.SINK)
    assert await reader.read() == b""
    await _say_goodbye(writer)


@probe("`asyncio.open_connection(ssl=)`", "http")
async def open_tls_connection(servers: Servers) -> None:
    reader, writer = await asyncio.open_connection(servers.host, ports.HTTPS, ssl=servers.context)
    writer.write(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    await _say_goodbye(writer)


@probe("`StreamWriter.start_tls`", "start_tls")
async def start_tls(servers: Servers) -> None:
    reader, writer = await asyncio.open_connection(servers.host, ports.START_TLS)
    writer.write(b"upgrade\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(servers.context, server_hostname=servers.host)
    assert (await reader.readline()).strip().decode() == servers.sources["start_tls"][-1]
    await _say_goodbye(writer)


@probe("`loop.create_connection` (asyncpg, aiomysql, nats-py, aiosmtplib)", "sink")
async def create_connection(servers: Servers) -> None:
    lost = asyncio.get_running_loop().create_future()

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    transport, _ = await asyncio.get_running_loop().create_connection(Protocol, servers.host, ports.SINK)
    await lost
    transport.close()


class _Answer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data)


def _question() -> bytes:
    return dns.message.make_query(NAME, "A").to_wire()


@probe("`loop.create_datagram_endpoint`, connected", "dns")
async def connected_endpoint(servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Answer, remote_addr=(servers.host, ports.DNS))
    transport.sendto(_question())
    await protocol.answer
    transport.close()


@probe("`loop.create_datagram_endpoint`, unconnected", "dns")
async def unconnected_endpoint(servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Answer, local_addr=("0.0.0.0", 0))
    transport.sendto(_question(), (servers.host, ports.DNS))
    await protocol.answer
    transport.close()


@probe("`loop.sock_connect`, TCP", "sink")
async def sock_connect_tcp(servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (servers.host, ports.SINK))
        assert await loop.sock_recv(sock, 1) == b""


@probe("`loop.sock_connect`, UDP", "dns")
async def sock_connect_udp(servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (servers.host, ports.DNS))
        await loop.sock_sendall(sock, _question())
        await loop.sock_recv(sock, 512)


@probe("`loop.sock_sendto` (asyncio only)", "dns")
async def sock_sendto(servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await loop.sock_sendto(sock, _question(), (servers.host, ports.DNS))
        await loop.sock_recv(sock, 512)


@probe("aiohttp, http", "http")
async def aiohttp_plain(servers: Servers) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://{servers.host}:{ports.HTTP}/") as response:
        assert response.status == 200


@probe("aiohttp, https", "http")
async def aiohttp_tls(servers: Servers) -> None:
    url = f"https://{servers.host}:{ports.HTTPS}/"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=servers.context) as response:
        assert response.status == 200


@probe("httpx, http", "http")
async def httpx_plain(servers: Servers) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://{servers.host}:{ports.HTTP}/")).status_code == 200


@probe("httpx, https", "http")
async def httpx_tls(servers: Servers) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=servers.context) as client:
        assert (await client.get(f"https://{servers.host}:{ports.HTTPS}/")).status_code == 200


@probe("httpcore", "http")
async def httpcore_plain(servers: Servers) -> None:
    async with httpcore.AsyncConnectionPool() as pool:
        assert (await pool.request("GET", f"http://{servers.host}:{ports.HTTP}/")).status == 200


@probe("`anyio.connect_tcp`", "sink")
async def anyio_tcp(servers: Servers) -> None:
    async with await anyio.connect_tcp(servers.host, ports.SINK) as stream:
        with contextlib.suppress(anyio.EndOfStream):
            await stream.receive()


@probe("`anyio.create_connected_udp_socket`", "dns")
async def anyio_connected_udp(servers: Servers) -> None:
    async with await anyio.create_connected_udp_socket(servers.host, ports.DNS) as sock:
        await sock.send(_question())
        await sock.receive()


@probe("`anyio.create_udp_socket`", "dns")
async def anyio_udp(servers: Servers) -> None:
    async with await anyio.create_udp_socket(socket.AF_INET) as sock:
        await sock.sendto(_question(), servers.host, ports.DNS)
        await sock.receive()


@probe("websockets, ws", "websocket")
async def websockets_plain(servers: Servers) -> None:
    async with websockets.asyncio.client.connect(f"ws://{servers.host}:{ports.WEBSOCKET}", proxy=None) as connection:
        await connection.recv()


@probe("websockets, wss", "websocket")
async def websockets_tls(servers: Servers) -> None:
    url = f"wss://{servers.host}:{ports.SECURE_WEBSOCKET}"
    async with websockets.asyncio.client.connect(url, ssl=servers.context, proxy=None) as connection:
        await connection.recv()


@probe("asyncssh", "ssh")
async def ssh(servers: Servers) -> None:
    async with asyncssh.connect(
        servers.host, ports.SSH, known_hosts=None, username="guest", client_keys=None, config=None
    ) as client:
        assert (await client.run("whence")).exit_status == 0


@probe("redis", "redis")
async def redis_get(servers: Servers) -> None:
    async with redis.asyncio.Redis(host=servers.host, port=ports.REDIS, protocol=2) as client:
        await client.get("source")


@probe("aioquic", "quic")
async def quic(servers: Servers) -> None:
    configuration = QuicConfiguration(alpn_protocols=["lab"])
    configuration.load_verify_locations(cadata=servers.authority_pem)
    async with aioquic.asyncio.client.connect(servers.host, ports.QUIC, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        writer.write(b"0")
        writer.write_eof()
        await reader.read()


@probe("dnspython, `dns.asyncquery.udp`", "dns")
async def dnspython(servers: Servers) -> None:
    await dns.asyncquery.udp(dns.message.make_query(NAME, "A"), servers.host, timeout=_PATIENCE)


@probe("dnspython, `dns.asyncquery.tcp`", "dns")
async def dnspython_tcp(servers: Servers) -> None:
    await dns.asyncquery.tcp(dns.message.make_query(NAME, "A"), servers.host, timeout=_PATIENCE)


@probe("aiodns (c-ares; its own `local_dev=` binds)", "dns")
async def c_ares(servers: Servers) -> None:
    async with aiodns.DNSResolver(nameservers=[servers.host], timeout=_PATIENCE) as resolver:
        await resolver.query_dns(NAME, "A")


@probe("aiomqtt, paho (blocking sockets)", "sink")
async def mqtt(servers: Servers) -> None:
    async def connect() -> None:
        async with aiomqtt.Client(servers.host, ports.SINK, timeout=_PATIENCE):
            raise AssertionError("the server is none of MQTT's")

    connecting = asyncio.create_task(connect())  # which would wait for a greeting
    await asyncio.to_thread(servers.wait_for, "sink")
    connecting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await connecting


@probe("grpc.aio (an event engine of its own)", "sink")
async def grpc_aio(servers: Servers) -> None:
    async with grpc.aio.insecure_channel(f"{servers.host}:{ports.SINK}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await channel.unary_unary("/lab.Service/Method")(b"", timeout=_PATIENCE)


@probe("blocking sockets in threads (urllib, requests)", "http")
async def threads(servers: Servers) -> None:
    def get() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{servers.host}:{ports.HTTP}/", timeout=_PATIENCE) as response:
            assert response.status == 200

    await asyncio.to_thread(get)
