"""Names resolved outside the VPN, by a real DNS server that records the clients' addresses."""

from __future__ import annotations

import asyncio
import socket

import pytest

import bindsock
from bindsock.eventloop import loop_factory
from bindsock.resolvers import InterfaceResolver, ServerLookup
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import NAME, Servers
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab


async def resolve(factory: bindsock.TransportFactory, name: str, family: int = socket.AF_INET) -> list[str]:
    return [info[4][0] for info in await factory.resolve(name, 443, family=family, type=socket.SOCK_STREAM)]


def given(servers: Servers, *others: str) -> InterfaceResolver:
    return InterfaceResolver(lookups=[ServerLookup([*others, servers.host], timeout=20.0, rounds=2)])


async def test_names_are_asked_for_by_the_uplink(lab: Lab, servers: Servers) -> None:
    with nothing_through_the_tunnel(lab):
        async with bindsock.TransportFactory(resolver=given(servers)) as factory:
            assert await resolve(factory, "source.lab.test") == [lab.address("wifi0")]
            assert await resolve(factory, NAME) == [servers.host]
            assert await resolve(factory, f"alias.{NAME}") == [servers.host]
            _, writer = await factory.open_connection(NAME, ports.HTTP)
            assert writer.get_extra_info("peername")[0] == servers.host
            writer.close()
            await writer.wait_closed()
    assert set(servers.sources["dns"]) == {lab.address("wifi0")}


async def test_after_a_switch_names_are_asked_for_anew_and_by_the_other_uplink(lab: Lab, servers: Servers) -> None:
    async with bindsock.TransportFactory(resolver=given(servers)) as factory:
        await resolve(factory, NAME)
        await resolve(factory, NAME)
        assert len(servers.dns_queries) == 1
        lab.default("eth0")
        await resolve(factory, NAME)
    assert servers.dns_queries == [(f"{NAME}.", lab.address("wifi0")), (f"{NAME}.", lab.address("eth0"))]


async def test_a_question_on_a_dead_uplink_is_asked_again_on_the_other(lab: Lab, servers: Servers) -> None:
    async with bindsock.TransportFactory(
        resolver=InterfaceResolver(lookups=[ServerLookup([servers.host], timeout=60.0)])
    ) as factory:
        servers.dns_silent = True
        asking = asyncio.ensure_future(resolve(factory, NAME))
        async with asyncio.timeout(20):
            while not lab.counters("wifi0").tx_packets or factory.statistics().tracked == 0:
                await asyncio.sleep(0.01)
            lab.down("wifi0")
            servers.dns_silent = False
            assert await asking == [servers.host]
    assert servers.dns_queries[-1] == (f"{NAME}.", lab.address("eth0"))


async def test_an_answer_too_large_for_a_datagram_comes_by_tcp(lab: Lab, servers: Servers) -> None:
    async with bindsock.TransportFactory(resolver=given(servers)) as factory:
        assert len(await resolve(factory, "large.lab.test")) == 100
    assert servers.dns_queries == [("large.lab.test.", lab.address("wifi0"))] * 2


async def test_a_server_that_does_not_answer_or_fails_is_followed_by_the_next(lab: Lab, servers: Servers) -> None:
    async with bindsock.TransportFactory(resolver=given(servers, lab.gateway("wifi0"))) as factory:
        assert await resolve(factory, NAME) == [servers.host]
        with pytest.raises(socket.gaierror, match="SERVFAIL") as error:
            await resolve(factory, "broken.lab.test")
        assert error.value.errno == socket.EAI_AGAIN


@pytest.mark.parametrize("name", ["nobody.lab.test", "a" * 64 + ".test", "a..test"])
async def test_a_name_that_does_not_exist_is_known_not_to(lab: Lab, servers: Servers, name: str) -> None:
    async with bindsock.TransportFactory(resolver=given(servers)) as factory:
        with pytest.raises(socket.gaierror) as error:
            await resolve(factory, name)
        assert error.value.errno == socket.EAI_NONAME
        with pytest.raises(socket.gaierror):
            await resolve(factory, NAME, socket.AF_INET6)


def test_on_an_event_loop_that_binds_libraries_use_it_too(
    lab: Lab, servers: Servers, loop_factory_base: type[asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        infos = await asyncio.get_running_loop().getaddrinfo("source.lab.test", 1, type=socket.SOCK_STREAM)
        assert [info[4][0] for info in infos] == [lab.address("wifi0")]
        _, writer = await asyncio.open_connection(NAME, ports.HTTP)
        writer.close()
        await writer.wait_closed()

    with asyncio.Runner(loop_factory=loop_factory(loop_factory_base, resolver=given(servers))) as runner:
        runner.run(main())
