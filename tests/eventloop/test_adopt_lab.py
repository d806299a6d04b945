"""Event loops made by other code, adopted while they run."""

from __future__ import annotations

import asyncio
import socket

import pytest

import bindsock
from bindsock.eventloop import BoundLoop
from bindsock.testing.lab import Lab
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab


@pytest.fixture(autouse=True)
def beneath_vpn(lab: Lab) -> None:
    lab.vpn_up("metric")


async def source(lab: Lab) -> str:
    reader, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line.decode().split()[1]


def test_a_running_loop_binds_from_then_on(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with nothing_through_the_tunnel(lab):
            bindsock.adopt()
            assert isinstance(loop, BoundLoop)
            assert isinstance(loop, base)
            assert await source(lab) == lab.address("wifi0")
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, (lab.server.ipv4, lab.server.tcp_port))
                assert bindsock.interface_of(sock) == "wifi0"
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=(lab.server.ipv4, lab.server.udp_port)
            )
            assert bindsock.interface_of(transport) == "wifi0"
            transport.close()

    with asyncio.Runner(loop_factory=base) as runner:
        runner.run(main())


def test_a_connection_of_an_adopted_loop_is_followed(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        bindsock.adopt()
        reader, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)
        await reader.readline()
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            await reader.readline()
        writer.close()
        assert await source(lab) == lab.address("eth0")

    with asyncio.Runner(loop_factory=base) as runner:
        runner.run(main())


def test_a_loop_is_given_back(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with bindsock.adopt(interface="eth0") as factory:
            assert factory.interface == "eth0"
            assert await source(lab) == lab.address("eth0")
        assert type(loop) is base
        assert lab.interface_of(await source(lab)) == "tun0"

    with asyncio.Runner(loop_factory=base) as runner:
        runner.run(main())


def test_a_loop_that_binds_already_is_not_adopted() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="binds its sockets already"):
            bindsock.adopt()

    with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(main())


def test_a_loop_whose_class_cannot_change_is_an_error_that_says_what_to_do() -> None:
    class Fixed(asyncio.SelectorEventLoop):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "__class__":
                raise TypeError("fixed")
            super().__setattr__(name, value)

    loop = Fixed()
    with pytest.raises(TypeError, match="use the functions of bindsock"):
        bindsock.adopt(loop)
    assert type(loop) is Fixed
    loop.close()
