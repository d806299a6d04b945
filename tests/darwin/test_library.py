"""The whole library on the Darwin backend: real transports over loopback, on a simulated Mac that treats them as remote."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import bindsock
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.errors import InterfaceChanged, NoEffectiveInterface
from bindsock.testing.darwin import SimulatedDarwin
from tests.darwin.machines import two_uplinks
from tests.waiting import until

FAR = "198.51.100.7"
PATIENCE = 20.0


class Mac:
    """A factory on a simulated Mac, and an echo server that is treated as remote."""

    def __init__(self) -> None:
        self.machine = two_uplinks()
        self.kernel = self.machine.kernel()
        self.factory = bindsock.TransportFactory(kernel=self.kernel)
        self.port = 0

    def interface(self, sock: socket.socket) -> str:
        index = self.kernel.bound(sock)
        assert index is not None
        return self.machine.state.interfaces[index].name


@pytest_asyncio.fixture
async def mac(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mac]:
    mac = Mac()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    mac.port = server.sockets[0].getsockname()[1]
    connect = FollowedSocket.connect_ex

    def redirected(sock: FollowedSocket, address: Any) -> int:
        return connect(sock, ("127.0.0.1", address[1]) if address[0] == FAR else address)

    monkeypatch.setattr(FollowedSocket, "connect_ex", redirected)
    async with mac.factory:
        yield mac
    server.close()


async def test_a_datagram_endpoint_follows_the_delegate_in_place(mac: Mac) -> None:
    mac.machine.vpn_up("utun0", "en0")
    transport, _ = await mac.factory.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("0.0.0.0", 0))
    sock, name = transport.get_extra_info("socket"), transport.get_extra_info("sockname")
    assert mac.interface(sock) == "en0"
    descriptor = sock.fileno()
    mac.machine.set_delegate("utun0", "en5")
    await until(lambda: mac.interface(transport.get_extra_info("socket")) == "en5")
    assert transport.get_extra_info("socket").fileno() == descriptor
    assert transport.get_extra_info("sockname") == name
    assert transport.get_extra_info("interface") == "en5"
    transport.close()


async def test_a_vpn_that_comes_and_goes_moves_nothing(mac: Mac) -> None:
    transport, _ = await mac.factory.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("0.0.0.0", 0))
    changes = mac.factory.changes()
    mac.machine.vpn_up("utun0", "en0")
    mac.machine.vpn_down("utun0", "en0")
    mac.machine.make_primary("en5")
    change = await asyncio.wait_for(anext(changes), PATIENCE)
    await until(lambda: transport.get_extra_info("interface") == "en5")
    assert change.ipv4.new_path is not None
    assert change.ipv4.new_path.interface == "en5"
    assert mac.factory.statistics().rebinds == 1
    transport.close()
    await changes.aclose()


async def test_a_stream_is_bound_beneath_the_tunnel_and_ended_when_its_interface_goes(mac: Mac) -> None:
    mac.machine.vpn_up("utun0", "en0")
    reader, writer = await mac.factory.open_connection(FAR, mac.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert mac.interface(writer.get_extra_info("socket")) == "en0"
    mac.machine.set_up("en0", False)
    with pytest.raises(InterfaceChanged) as raised:
        await asyncio.wait_for(reader.read(1), PATIENCE)
    assert raised.value.new_interface == "en5"
    reader, writer = await mac.factory.open_connection(FAR, mac.port)
    assert mac.interface(writer.get_extra_info("socket")) == "en5"
    writer.close()


async def test_a_stream_is_not_disturbed_by_noise_and_junk(mac: Mac) -> None:
    reader, writer = await mac.factory.open_connection(FAR, mac.port)
    mac.machine.set_mtu("en0", 1400)
    mac.machine.add_address("en0", "192.168.1.24/32")
    mac.machine.add_interface("bridge100", "bridge")
    mac.machine.add_address("bridge100", "192.168.64.1/24")
    mac.machine.add_route("172.16.0.0/12", "en0", "192.168.1.9")
    for junk in (bytes(20), bytes.fromhex("080005047a7a7a7a"), b"\xff" * 200):
        mac.machine.inject(junk)
    readings = mac.factory.statistics().readings
    await until(lambda: mac.factory.statistics().readings > readings)
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    assert mac.factory.statistics().ended == 0
    writer.close()


async def test_nothing_but_a_tunnel_is_a_clear_error(mac: Mac) -> None:
    mac.machine.vpn_up("utun0", "en0")
    mac.machine.remove_interface("en0")
    mac.machine.remove_interface("en5")
    with pytest.raises(NoEffectiveInterface, match="utun0 is a tunnel"):
        await mac.factory.open_connection(FAR, mac.port)


async def test_a_change_that_is_not_told_is_seen_with_the_next_event(mac: Mac) -> None:
    transport, _ = await mac.factory.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("::", 0), family=socket.AF_INET6
    )
    assert transport.get_extra_info("interface") == "en0"
    mac.machine.set_ipv6_default("en5")
    mac.machine.set_link("en0", True)
    await until(lambda: transport.get_extra_info("interface") == "en5")
    transport.close()


def test_the_synchronous_functions_work_on_a_mac_under_a_vpn() -> None:
    machine = two_uplinks()
    machine.vpn_up("utun3", "en5")
    kernel = machine.kernel()
    assert bindsock.effective_interface(kernel=kernel).name == "en5"
    assert "bypassing utun3" in str(bindsock.explain("192.0.2.1", kernel=kernel))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        bindsock.bind(sock, "192.0.2.1", kernel=kernel)
        assert kernel.bound(sock) == machine.state.named("en5").index


def test_a_mac_without_a_network_has_no_effective_interface() -> None:
    with pytest.raises(NoEffectiveInterface):
        bindsock.effective_interface(kernel=SimulatedDarwin().kernel())
