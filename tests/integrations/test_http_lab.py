"""httpx and aiohttp on uplinks that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp
import anyio
import httpx
import pytest
import uvloop

import bindsock
import bindsock.anyio
import bindsock.integrations.aiohttp
import bindsock.integrations.httpx
from bindsock.factory import connector_of
from bindsock.resolvers import InterfaceResolver, ServerLookup
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import NAME, Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab

REQUESTS = 200
SWITCHES = 10
SOON = 20.0
"""Seconds within which a request must be answered or fail: one on an idle machine, the rest for a busy one. A connection that
nobody ends hangs for a quarter of an hour."""
PATIENCE = 60.0
"""The clients' own timeout in seconds."""

Get: TypeAlias = Callable[..., Awaitable[str]]
Client: TypeAlias = Callable[[Servers], AbstractAsyncContextManager[Get]]
Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


@asynccontextmanager
async def httpx_client(servers: Servers) -> AsyncIterator[Get]:
    transport = bindsock.integrations.httpx.AsyncTransport(verify=servers.context)
    async with httpx.AsyncClient(transport=transport, timeout=PATIENCE) as client:

        async def get(url: str, method: str = "GET") -> str:
            return (await client.request(method, url)).text

        yield get


@asynccontextmanager
async def aiohttp_client(servers: Servers) -> AsyncIterator[Get]:
    connector = bindsock.integrations.aiohttp.TCPConnector(ssl=servers.context)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get(url: str, method: str = "GET") -> str:
            async with session.request(method, url) as response:
                return await response.text()

        yield get


ERRORS = (httpx.HTTPError, aiohttp.ClientError)
LOOPS: dict[str, Any] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.Loop,
    "bindsock": bindsock.EventLoop,
    "bindsock-uvloop": bindsock.loop_factory(uvloop.Loop),
}
CLIENTS: list[tuple[str, Client]] = [("httpx", httpx_client), ("aiohttp", aiohttp_client)]


@pytest.fixture(params=[*LOOPS, "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run an asynchronous function, which has to end within two minutes."""
    if request.param == "trio":
        if request.node.callspec.params.get("client", CLIENTS[0])[0] == "aiohttp":
            pytest.skip("aiohttp has no trio")
        options: dict[str, Any] = {"backend": "trio"}
    else:
        options = {"backend": "asyncio", "backend_options": {"loop_factory": LOOPS[request.param]}}

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with anyio.fail_after(100):
                await main()

        anyio.run(bounded, **options)

    return run


@pytest.fixture(params=CLIENTS, ids=[name for name, _ in CLIENTS])
def client(request: pytest.FixtureRequest) -> Client:
    made: Client = request.param[1]
    return made


def bring_up(lab: Lab, interface: str) -> None:
    """Bring an uplink up, and wait until the server answers over it."""
    lab.up(interface)
    lab.wait_until_running(interface)
    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # the same one for all, since an answer may be late
        sock.settimeout(0.02)
        bindsock.bind(sock, lab.server.ipv4, interface=interface)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sock.sendto(b"ping", (lab.server.ipv4, lab.server.udp_port))
                sock.recv(100)
                return
    raise TimeoutError(f"nobody answers over {interface}")


@dataclass
class Outcomes:
    """The outcomes of the requests."""

    answered: list[str] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    longest: float = 0.0

    @contextmanager
    def one(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        except ERRORS as error:
            self.failed.append(error)
        self.longest = max(self.longest, time.monotonic() - begun)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_leave_beneath_the_vpn(lab: Lab, servers: Servers, run: Run, client: Client, scheme: str) -> None:
    port = {"http": ports.HTTP, "https": ports.HTTPS}[scheme]

    async def main() -> None:
        async with client(servers) as get:
            for _ in range(2):
                assert await get(f"{scheme}://{servers.host}:{port}/") == lab.address("wifi0")

    with nothing_through_the_tunnel(lab):
        run(main)


def test_a_pooled_connection_whose_path_is_gone_is_not_used_again(lab: Lab, servers: Servers, run: Run, client: Client) -> None:
    async def main() -> None:
        async with client(servers) as get:
            url = f"http://{servers.host}:{ports.HTTP}/"
            assert await get(url) == lab.address("wifi0")
            lab.down("wifi0")
            assert await get(url) == lab.address("eth0")

    run(main)


def test_a_request_whose_interface_goes_fails_at_once_with_a_clear_error(
    lab: Lab, servers: Servers, run: Run, client: Client
) -> None:
    async def main() -> None:
        outcomes = Outcomes()
        async with client(servers) as get, anyio.create_task_group() as tasks:

            async def request() -> None:
                with outcomes.one():
                    # aiohttp itself repeats idempotent requests.
                    await get(f"http://{servers.host}:{ports.HTTP}/slow", "POST")

            tasks.start_soon(request)
            while not servers.waiting:
                await anyio.sleep(0.001)
            lab.down("wifi0")
        (error,) = outcomes.failed
        assert outcomes.longest < SOON  # the server never answers
        assert any(word in str(error).lower() for word in ("wifi0", "reset", "disconnected")), repr(error)

    run(main)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("switch", ["down", "default"])
def test_requests_across_switches_are_answered_or_fail_once_and_soon(
    lab: Lab, servers: Servers, run: Run, client: Client, switch: str
) -> None:
    outcomes = Outcomes()

    async def main() -> None:
        async with client(servers) as get:
            for number in range(REQUESTS):
                if number % (REQUESTS // SWITCHES) == REQUESTS // SWITCHES // 2:
                    away, other = ("wifi0", "eth0") if number // (REQUESTS // SWITCHES) % 2 == 0 else ("eth0", "wifi0")
                    if switch == "down":
                        bring_up(lab, other)
                        lab.down(away)
                    else:
                        lab.default(other)
                with outcomes.one():
                    outcomes.answered.append(await get(f"http://{servers.host}:{ports.HTTP}/"))

    with nothing_through_the_tunnel(lab):
        run(main)
    assert len(outcomes.answered) + len(outcomes.failed) == REQUESTS
    assert len(outcomes.failed) <= SWITCHES
    assert all(str(error) for error in outcomes.failed)
    assert {lab.interface_of(source) for source in outcomes.answered} <= {"wifi0", "eth0"}
    assert outcomes.longest < SOON
    if switch == "down":
        assert {lab.interface_of(source) for source in outcomes.answered} == {"wifi0", "eth0"}


@pytest.mark.timeout(180)
def test_concurrent_requests_across_switches_are_answered_or_fail_once_and_soon(
    lab: Lab, servers: Servers, run: Run, client: Client
) -> None:
    outcomes = Outcomes()

    async def main() -> None:
        numbers = iter(range(REQUESTS))
        async with client(servers) as get, anyio.create_task_group() as tasks:

            async def work() -> None:
                for _ in numbers:
                    with outcomes.one():
                        outcomes.answered.append(await get(f"http://{servers.host}:{ports.HTTP}/"))
                    await anyio.sleep(0.005)

            for _ in range(4):
                tasks.start_soon(work)
            for number in range(SWITCHES):
                away, other = ("wifi0", "eth0") if number % 2 == 0 else ("eth0", "wifi0")
                bring_up(lab, other)
                lab.down(away)
                await anyio.sleep(0.03)

    with nothing_through_the_tunnel(lab):
        run(main)
    assert len(outcomes.answered) + len(outcomes.failed) == REQUESTS
    assert len(outcomes.failed) <= 4 * SWITCHES
    assert outcomes.longest < SOON


def test_names_are_resolved_by_the_factorys_resolver_and_anew_after_a_change(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        resolver = InterfaceResolver(lookups=[ServerLookup([servers.host])])
        async with bindsock.TransportFactory(resolver=resolver) as factory:
            connector = bindsock.integrations.aiohttp.TCPConnector(factory)
            async with aiohttp.ClientSession(connector=connector) as session:
                for interface in ("wifi0", "eth0"):
                    async with session.get(f"http://{NAME}:{ports.HTTP}/") as response:
                        assert await response.text() == lab.address(interface)
                    lab.down("wifi0")
                    await asyncio.sleep(0.05)

    asyncio.run(main())
    assert {source for name, source in servers.dns_queries if name == f"{NAME}."} == {lab.address("wifi0"), lab.address("eth0")}


def test_a_closed_connector_leaves_the_watcher_alone(lab: Lab) -> None:
    async def main() -> None:
        factory = bindsock.TransportFactory()
        connector = bindsock.integrations.aiohttp.TCPConnector(factory)
        assert connector_of(factory).watcher.running
        await connector.close()
        assert not connector_of(factory).watcher.running

    asyncio.run(main())


def test_a_factory_for_httpx_is_anyios(lab: Lab, servers: Servers, run: Run) -> None:
    async def main() -> None:
        factory = bindsock.anyio.TransportFactory(interface="eth0")
        async with httpx.AsyncClient(transport=bindsock.integrations.httpx.AsyncTransport(factory)) as client:
            assert (await client.get(f"http://{servers.host}:{ports.HTTP}/")).text == lab.address("eth0")

    run(main)


def test_httpxs_errors_are_httpxs(lab: Lab, servers: Servers, run: Run) -> None:
    async def main() -> None:
        transport = bindsock.integrations.httpx.AsyncTransport(retries=0)
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://{servers.host}:1/")
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"http://{servers.host}:{ports.HTTP}/slow", timeout=httpx.Timeout(60, read=0.2))
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("http://10.9.0.11/", timeout=httpx.Timeout(60, connect=0.2))
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await client.get(f"https://{servers.host}:{ports.HTTPS}/")
            with pytest.raises(httpx.UnsupportedProtocol):
                await client.get("gopher://example.com/")
            lab.down("wifi0")
            lab.down("eth0")
            with pytest.raises(httpx.ConnectError, match="no interface may be used"):
                await client.get(f"http://{servers.host}:{ports.HTTP}/")

    run(main)
