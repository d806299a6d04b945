"""aiodns with a VPN, on uplinks that come and go. The answer for the name ``source.`` is the address that asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiodns
import aiohttp
import pytest
import uvloop

import bindsock
from bindsock.factory import connector_of
from bindsock.integrations.aiodns import DNSResolver
from bindsock.resolvers.c_ares import server_address
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import NAME, Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab

LOOPS: dict[str, Any] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.Loop, "bindsock": bindsock.EventLoop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await main()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return run


async def source(resolver: Any) -> str:
    """The source address of the resolver's questions."""
    (record,) = (await resolver.query_dns("source.lab.test", "A")).answer
    address: str = record.data.addr
    return address


def test_questions_leave_beneath_the_vpn_and_by_the_other_uplink_after_a_change(lab: Lab, servers: Servers, run: Any) -> None:
    async def main() -> None:
        async with DNSResolver([servers.host], timeout=5) as resolver:
            for away in ("wifi0", "eth0", None):
                interface = "eth0" if away == "eth0" else "wifi0"
                if away == "eth0":
                    lab.down("wifi0")
                elif away is None:
                    lab.up("wifi0")
                    lab.wait_until_running("wifi0")
                    lab.down("eth0")
                assert lab.interface_of(await source(resolver)) == interface

    with nothing_through_the_tunnel(lab):
        run(main)


def test_a_question_whose_path_goes_away_is_asked_again_in_the_same_call(lab: Lab, servers: Servers, run: Any) -> None:
    async def main() -> None:
        async with DNSResolver([servers.host], timeout=30, tries=1) as resolver:
            servers.dns_silent = True
            asking = asyncio.create_task(source(resolver))
            while not servers.datagrams_ignored:
                await asyncio.sleep(0.01)
            servers.dns_silent = False
            lab.down("wifi0")
            assert await asking == lab.address("eth0")

    with nothing_through_the_tunnel(lab):
        run(main)


def test_without_an_interface_nothing_is_asked(lab: Lab, servers: Servers, run: Any) -> None:
    async def main() -> None:
        async with DNSResolver([servers.host]) as resolver:
            assert await source(resolver) == lab.address("wifi0")
            lab.down("wifi0")
            lab.down("eth0")
            with pytest.raises(bindsock.NoEffectiveInterface):
                await source(resolver)

    with nothing_through_the_tunnel(lab):
        run(main)


def test_a_question_waits_for_an_interface_where_the_preferences_say_so(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        factory = bindsock.TransportFactory(bindsock.Preferences(on_no_interface="wait"))
        lab.down("wifi0")
        lab.down("eth0")
        async with factory, DNSResolver([servers.host], factory=factory, timeout=5) as resolver, asyncio.timeout(30):
            asking = asyncio.create_task(source(resolver))
            await asyncio.sleep(0)
            lab.up("eth0")
            assert await asking == lab.address("eth0")

    with nothing_through_the_tunnel(lab):
        asyncio.run(main())


def test_a_device_that_vanishes_before_anybody_is_told_is_no_way_into_the_tunnel(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        async with DNSResolver([servers.host], timeout=0.5, tries=1) as resolver:
            channel = await resolver._current()
            lab.delete("wifi0")
            with pytest.raises(aiodns.error.DNSError):
                await channel.resolver.query_dns("source.lab.test", "A")

    with nothing_through_the_tunnel(lab):
        asyncio.run(main())
    assert "dns" not in servers.sources


def test_local_dev_alone_lets_questions_into_the_tunnel_once_the_device_is_gone(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        async with aiodns.DNSResolver([servers.host], timeout=5, local_dev="wifi9") as resolver:
            assert lab.interface_of(await source(resolver)) == "tun0"

    asyncio.run(main())


def test_it_is_a_resolver_for_aiohttp(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        resolver = DNSResolver([servers.host], timeout=5)
        connector = aiohttp.TCPConnector(resolver=resolver)  # type: ignore[arg-type]
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"http://{NAME}:{ports.HTTP}/") as response:
                assert await response.text() == lab.address("wifi0")
            with pytest.raises(aiohttp.ClientConnectorDNSError):
                await session.get(f"http://nowhere.lab.test:{ports.HTTP}/")
        await resolver.close()

    with nothing_through_the_tunnel(lab), asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(main())
    assert servers.wait_for("dns") == {lab.address("wifi0")}


def test_servers_that_leave_by_different_interfaces_are_refused(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        async with DNSResolver([servers.host, lab.gateway("eth0")]) as resolver:
            with pytest.raises(ValueError, match="need different interfaces"):
                await source(resolver)

    asyncio.run(main())


def test_a_closed_resolver_leaves_the_watcher_alone(lab: Lab, servers: Servers) -> None:
    async def main() -> None:
        factory = bindsock.TransportFactory()
        resolver = DNSResolver([servers.host], factory=factory)
        await source(resolver)
        assert connector_of(factory).watcher.running
        await resolver.close()
        assert not connector_of(factory).watcher.running
        with pytest.raises(RuntimeError, match="closed"):
            await source(resolver)

    asyncio.run(main())


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pycares raises it for a channel that it could not make
@pytest.mark.parametrize("option", ["local_dev", "local_ip", "loop", "interfase"])
async def test_an_option_that_is_not_the_callers_is_refused(option: str) -> None:
    options: dict[str, Any] = {option: "eth0"}
    with pytest.raises(TypeError):
        DNSResolver(["192.0.2.53"], **options)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("192.0.2.53", "192.0.2.53"),
        ("192.0.2.53:5353", "192.0.2.53"),
        ("2001:db8::53", "2001:db8::53"),
        ("[2001:db8::53]", "2001:db8::53"),
        ("[2001:db8::53]:5353", "2001:db8::53"),
    ],
)
def test_a_name_server_is_written_with_a_port_or_without(name: str, address: str) -> None:
    assert str(server_address(name)) == address
