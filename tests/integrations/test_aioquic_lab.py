"""A QUIC connection that migrates under a live download."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration

import bindsock
from bindsock.integrations import aioquic
from bindsock.testing.lab import Lab
from tests.integrations import servers as ports
from tests.integrations.servers import Servers, content
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab

SIZE = 20_000_000
SWITCHES = 4


def configuration(servers: Servers) -> QuicConfiguration:
    result = QuicConfiguration(alpn_protocols=["lab"], max_data=1 << 24, max_stream_data=1 << 24)
    result.load_verify_locations(cadata=servers.authority_pem)
    return result


async def ask(client: QuicConnectionProtocol, size: int) -> asyncio.StreamReader:
    reader, writer = await client.create_stream()
    writer.write(str(size).encode())
    writer.write_eof()
    return reader


@pytest.mark.timeout(240)
@pytest.mark.parametrize("switch", ["down", "default"])
async def test_a_download_across_switches_arrives_whole_on_one_connection(lab: Lab, servers: Servers, switch: str) -> None:
    received = hashlib.sha256()
    with nothing_through_the_tunnel(lab):
        async with aioquic.connect(servers.host, ports.QUIC, configuration=configuration(servers)) as client:
            reader = await ask(client, SIZE)
            done, switched = 0, 0
            async with asyncio.timeout(200):
                while data := await reader.read(1 << 16):
                    received.update(data)
                    done += len(data)
                    if switched < SWITCHES and done > (switched + 1) * SIZE // (SWITCHES + 1):
                        switched += 1
                        away, other = ("wifi0", "eth0") if switched % 2 else ("eth0", "wifi0")
                        if switch == "down":
                            lab.up(other)
                            lab.wait_until_running(other)
                            lab.down(away)
                        else:
                            lab.default(other)
    assert switched == SWITCHES
    assert done == SIZE
    assert received.digest() == hashlib.sha256(content(SIZE)).digest()
    assert servers.quic_connections == 1
    assert {lab.interface_of(source) for source in servers.sources["quic"]} == {"wifi0", "eth0"}


async def test_a_connection_on_which_nothing_happens_lives_on(lab: Lab, servers: Servers) -> None:
    async with aioquic.connect(servers.host, ports.QUIC, configuration=configuration(servers)) as client:
        assert await (await ask(client, 0)).read() == lab.address("wifi0").encode()
        lab.down("wifi0")
        async with asyncio.timeout(20):
            assert await (await ask(client, 0)).read() == lab.address("eth0").encode()
    assert servers.quic_connections == 1


async def test_arguments_are_aioquics_and_ours(lab: Lab, servers: Servers) -> None:
    class Protocol(QuicConnectionProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.mine = True

    options: dict[str, Any] = {"configuration": configuration(servers), "create_protocol": Protocol, "local_port": 45002}
    async with aioquic.connect(servers.host, ports.QUIC, interface="eth0", **options) as client:
        assert isinstance(client, Protocol)
        assert await (await ask(client, 0)).read() == lab.address("eth0").encode()
    async with (
        bindsock.TransportFactory(interface="eth0") as factory,
        aioquic.connect(servers.host, ports.QUIC, configuration=configuration(servers), factory=factory) as client,
    ):
        assert await (await ask(client, 0)).read() == lab.address("eth0").encode()
    lab.down("wifi0")
    lab.down("eth0")
    with pytest.raises(bindsock.NoEffectiveInterface):
        async with aioquic.connect(servers.host, ports.QUIC, configuration=configuration(servers)):
            pass
