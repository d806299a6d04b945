"""One short exchange by each library: first as its users write it, without bindsock, and then with bindsock's integration.

The probes return nothing: the result is the source address that the server saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import importlib.util
import socket
import ssl
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiodns
import aiohttp
import aiohttp_socks
import aioimaplib  # type: ignore[import-untyped]
import aiomqtt
import aiomysql  # type: ignore[import-untyped]
import aioquic.asyncio.client
import aiosmtplib
import anyio
import asyncpg  # type: ignore[import-untyped]
import asyncssh
import dns.asyncquery
import dns.message
import grpc.aio  # type: ignore[import-untyped]
import httpcore
import httpx
import motor.motor_asyncio
import nats
import paramiko
import psycopg
import pymongo
import python_socks.async_.asyncio
import redis.asyncio
import requests
import telegram
import websockets.asyncio.client
import zeroconf.asyncio
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from aioquic.quic.configuration import QuicConfiguration
from paho.mqtt.enums import CallbackAPIVersion

import bindsock
import bindsock.blocking
import bindsock.integrations.aiodns
import bindsock.integrations.aiomqtt
import bindsock.integrations.grpc
import bindsock.integrations.paho
import bindsock.integrations.requests
import bindsock.integrations.stdlib
import bindsock.integrations.urllib3
from tests.integrations import servers as ports
from tests.integrations.protocols import SERVICE
from tests.integrations.servers import NAME, Servers

_PATIENCE = 15.0


class By(enum.Enum):
    """The part that makes the socket."""

    LOOP = enum.auto()
    """The event loop: a loop that binds also binds the library's sockets."""
    ITSELF = enum.auto()
    """The library, without the event loop."""
    INTEGRATION = enum.auto()
    """bindsock's integration, on any event loop."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A row of the table."""

    name: str
    server: str
    """The name of the server that records the source address."""
    run: Callable[[Servers], Awaitable[None]]
    by: By
    alone: bool
    """Whether it needs its own process: threads that outlive a loop stay in the network namespace in which they started."""
    needs: str | None
    """A module that it needs, and that only `make` installs: without the module it is skipped."""

    @property
    def can_run(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


PROBES: list[Probe] = []


def probe(
    name: str, server: str, by: By = By.LOOP, *, alone: bool = False, needs: str | None = None
) -> Callable[[Callable[[Servers], Awaitable[None]]], Callable[[Servers], Awaitable[None]]]:
    """Decorate a function: add it as a row of the table."""

    def add(run: Callable[[Servers], Awaitable[None]]) -> Callable[[Servers], Awaitable[None]]:
        PROBES.append(Probe(name, server, run, by, alone, needs))
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
    assert (await reader.readline()).strip().decode() == writer.get_extra_info("sockname")[0]
    await _say_goodbye(writer)


@probe("`loop.create_connection`", "sink")
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


@probe("niquests, `AsyncSession`", "http", needs="niquests")
async def niquests_get(servers: Servers) -> None:
    import niquests  # its urllib3-future replaces urllib3, unless the Makefile installs it

    async with niquests.AsyncSession() as session:
        session.trust_env = False
        assert (await session.get(f"http://{servers.host}:{ports.HTTP}/", timeout=_PATIENCE)).status_code == 200


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


@probe("asyncpg", "postgresql")
async def asyncpg_connect(servers: Servers) -> None:
    connection = await asyncpg.connect(host=servers.host, port=ports.POSTGRESQL, user="guest", database="lab", ssl=False)
    await connection.close()


@probe("aiomysql", "mysql")
async def aiomysql_connect(servers: Servers) -> None:
    connection = await aiomysql.connect(host=servers.host, port=ports.MYSQL, user="guest", password="guest")
    await connection.ensure_closed()


@probe("pymongo, `AsyncMongoClient`", "mongodb")
async def pymongo_ping(servers: Servers) -> None:
    made: pymongo.AsyncMongoClient[Any] = pymongo.AsyncMongoClient(servers.host, ports.MONGODB, serverSelectionTimeoutMS=15000)
    async with made as client:
        await client.admin.command("ping")


@probe("nats-py", "nats")
async def nats_connect(servers: Servers) -> None:
    client = await nats.connect(f"nats://{servers.host}:{ports.NATS}", connect_timeout=_PATIENCE, allow_reconnect=False)
    await client.close()


@probe("aiokafka", "kafka")
async def aiokafka_bootstrap(servers: Servers) -> None:
    client = AIOKafkaClient(bootstrap_servers=f"{servers.host}:{ports.KAFKA}")
    with contextlib.suppress(KafkaConnectionError):  # the broker closes without an answer
        await client.bootstrap()
    await client.close()


@probe("aiosmtplib", "smtp")
async def aiosmtplib_noop(servers: Servers) -> None:
    async with aiosmtplib.SMTP(hostname=servers.host, port=ports.SMTP, start_tls=False) as client:
        assert (await client.noop()).code == 250


@probe("aioimaplib", "imap")
async def aioimaplib_hello(servers: Servers) -> None:
    client = aioimaplib.IMAP4(servers.host, ports.IMAP)
    await client.wait_hello_from_server()
    await client.logout()
    client.protocol.transport.abort()  # close() would wait for the server's close


@probe("python-telegram-bot, long polling", "telegram")
async def telegram_poll(servers: Servers) -> None:
    async with telegram.Bot("1:token", base_url=f"http://{servers.host}:{ports.HTTP}/bot") as robot:
        assert await robot.get_updates(timeout=1) == ()


@probe("python-socks", "socks")
async def python_socks_connect(servers: Servers) -> None:
    proxy = python_socks.async_.asyncio.Proxy.from_url(f"socks5://{servers.host}:{ports.SOCKS}")
    sock = await proxy.connect("example.com", 80)
    sock.close()


@probe("aiohttp-socks", "socks")
async def aiohttp_socks_get(servers: Servers) -> None:
    connector = aiohttp_socks.ProxyConnector.from_url(f"socks5://{servers.host}:{ports.SOCKS}")
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://192.0.2.1/") as response:
        assert response.status == 200


@probe("aiodns (c-ares)", "dns", By.ITSELF)
async def c_ares(servers: Servers) -> None:
    async with aiodns.DNSResolver(nameservers=[servers.host], timeout=_PATIENCE) as resolver:
        await resolver.query_dns(NAME, "A")


@probe("aiomqtt, paho (blocking sockets)", "mqtt", By.ITSELF)
async def mqtt(servers: Servers) -> None:
    async with aiomqtt.Client(servers.host, ports.MQTT):
        pass


@probe("grpc.aio (an event engine of its own)", "sink", By.ITSELF, alone=True)
async def grpc_aio(servers: Servers) -> None:
    async with grpc.aio.insecure_channel(f"{servers.host}:{ports.SINK}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        await _call(channel)


async def _call(channel: grpc.aio.Channel) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):  # the server does not speak gRPC
        await channel.unary_unary("/lab.Service/Method")(b"", timeout=_PATIENCE)


@probe("psycopg, async (libpq)", "postgresql", By.ITSELF)
async def psycopg_connect(servers: Servers) -> None:
    async with await psycopg.AsyncConnection.connect(
        host=servers.host,
        port=ports.POSTGRESQL,
        user="guest",
        dbname="lab",
        sslmode="disable",
        gssencmode="disable",
        autocommit=True,
    ):
        pass


@probe("motor (threads)", "mongodb", By.ITSELF, alone=True)
async def motor_ping(servers: Servers) -> None:
    client: Any = motor.motor_asyncio.AsyncIOMotorClient(servers.host, ports.MONGODB, serverSelectionTimeoutMS=15000)
    await client.admin.command("ping")
    client.close()


async def _find_service(interfaces: Any) -> None:
    async with zeroconf.asyncio.AsyncZeroconf(interfaces=interfaces) as client:
        found = zeroconf.asyncio.AsyncServiceInfo(SERVICE.partition(".")[2], SERVICE)
        assert await found.async_request(client.zeroconf, _PATIENCE * 1000)


@probe("zeroconf, multicasts by `InterfaceChoice.Default`", "mdns", By.ITSELF)
async def zeroconf_default(servers: Servers) -> None:
    await _find_service(zeroconf.InterfaceChoice.Default)


@probe("paramiko (blocking sockets)", "ssh", By.ITSELF)
async def paramiko_whence(servers: Servers) -> None:
    await asyncio.to_thread(_whence, (servers.host, ports.SSH))


def _whence(where: Any) -> None:
    with paramiko.Transport(where) as transport:
        transport.start_client(timeout=_PATIENCE)
        transport.auth_none("guest")
        channel = transport.open_session(timeout=_PATIENCE)
        channel.exec_command("whence")
        assert channel.recv_exit_status() == 0


@probe("blocking sockets in threads (urllib, requests)", "http", By.ITSELF)
async def threads(servers: Servers) -> None:
    def get() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{servers.host}:{ports.HTTP}/", timeout=_PATIENCE) as response:
            assert response.status == 200

    await asyncio.to_thread(get)


@probe("grpc.aio: `bindsock.integrations.grpc.insecure_channel`", "sink", By.INTEGRATION, alone=True)
async def led_grpc(servers: Servers) -> None:
    async with bindsock.integrations.grpc.insecure_channel(f"{servers.host}:{ports.SINK}") as channel:
        await _call(channel)


@probe("aiodns: `bindsock.integrations.aiodns.DNSResolver`", "dns", By.INTEGRATION)
async def bound_c_ares(servers: Servers) -> None:
    async with bindsock.integrations.aiodns.DNSResolver([servers.host], timeout=_PATIENCE) as resolver:
        await resolver.query_dns(NAME, "A")


@probe("aiomqtt: `bindsock.integrations.aiomqtt.Client`", "mqtt", By.INTEGRATION)
async def bound_aiomqtt(servers: Servers) -> None:
    async with bindsock.integrations.aiomqtt.Client(servers.host, ports.MQTT):
        pass


@probe("paho: `bindsock.integrations.paho.Client`", "mqtt", By.INTEGRATION)
async def bound_paho(servers: Servers) -> None:
    def connect() -> None:
        client = bindsock.integrations.paho.Client(CallbackAPIVersion.VERSION2)
        client.connect(servers.host, ports.MQTT)
        client.loop()
        client.disconnect()

    await asyncio.to_thread(connect)


@probe("requests: `bindsock.integrations.requests.HTTPAdapter`", "http", By.INTEGRATION)
async def bound_requests(servers: Servers) -> None:
    def get() -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", bindsock.integrations.requests.HTTPAdapter())
            assert session.get(f"http://{servers.host}:{ports.HTTP}/", timeout=_PATIENCE).status_code == 200

    await asyncio.to_thread(get)


@probe("urllib3: `bindsock.integrations.urllib3.PoolManager`", "http", By.INTEGRATION)
async def bound_urllib3(servers: Servers) -> None:
    def get() -> None:
        with bindsock.integrations.urllib3.PoolManager() as pool:
            assert pool.request("GET", f"http://{servers.host}:{ports.HTTP}/", timeout=_PATIENCE).status == 200

    await asyncio.to_thread(get)


@probe("`http.client`: `bindsock.integrations.stdlib.HTTPConnection`", "http", By.INTEGRATION)
async def bound_http_client(servers: Servers) -> None:
    def get() -> None:
        connection = bindsock.integrations.stdlib.HTTPConnection(servers.host, ports.HTTP, timeout=_PATIENCE)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()

    await asyncio.to_thread(get)


@probe("`smtplib`: `bindsock.integrations.stdlib.SMTP`", "smtp", By.INTEGRATION)
async def bound_smtplib(servers: Servers) -> None:
    def greet() -> None:
        with bindsock.integrations.stdlib.SMTP(servers.host, ports.SMTP, timeout=_PATIENCE) as client:
            assert client.noop()[0] == 250

    await asyncio.to_thread(greet)


@probe("zeroconf: `interfaces=` an address of `bindsock.effective_interface()`", "mdns", By.INTEGRATION)
async def bound_zeroconf(servers: Servers) -> None:
    address, *_ = bindsock.effective_interface().usable_addresses(socket.AF_INET)
    await _find_service([str(address)])


@probe("paramiko: `paramiko.Transport(bindsock.blocking.create_connection(...))`", "ssh", By.INTEGRATION)
async def bound_paramiko(servers: Servers) -> None:
    def whence() -> None:
        _whence(bindsock.blocking.create_connection((servers.host, ports.SSH), _PATIENCE))

    await asyncio.to_thread(whence)
