"""A better path is not used while no packet passes it: the switch port still blocks, or the router is not found yet."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest

import bindsock
from bindsock.datagram import first_hop
from bindsock.kernel.linux import LinuxKernel
from bindsock.testing.lab import Lab
from tests.lab.stream_runner import overflows_at_server
from tests.linux.namespaces import Device
from tests.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")]

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
PATIENCE = 60.0


def block(lab: Lab, interface: str, blocked: bool) -> None:
    """Block or open the switch port at the router's end of an uplink."""
    chain = "{{ type filter hook {0} device {1} priority 0; policy drop; }}"
    rules = "delete table netdev port"
    if blocked:
        chains = "; ".join(f"chain {hook}_port {chain.format(hook, interface)}" for hook in ("ingress", "egress"))
        rules = f"table netdev port {{ {chains}; }}"
    with lab.inside("router"):
        subprocess.run(["nft", rules], check=True, capture_output=True)


class Numbered(asyncio.DatagramProtocol):
    """Sends numbered datagrams, one per millisecond, until it is stopped."""

    def __init__(self) -> None:
        self.sent = 0
        self.errors: list[Exception] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    async def send(self) -> None:
        while True:
            self.transport.sendto(b"%d" % self.sent)
            self.sent += 1
            await asyncio.sleep(0.001)

    async def sent_by(self, interface: str, count: int = 200) -> None:
        """Wait until ``count`` more datagrams have left by the interface."""
        before = bindsock.statistics().sent.get(interface, 0)
        await until(lambda: bindsock.statistics().sent.get(interface, 0) >= before + count, seconds=PATIENCE)


@pytest.fixture
async def kernel() -> AsyncIterator[LinuxKernel]:
    kernel = LinuxKernel()
    yield kernel
    kernel.close()


async def missing(lab: Lab, sent: int) -> set[int]:
    """Wait until no more datagrams arrive. Returns the numbers that the server has not received."""
    arrived: set[int] = set()
    quiet = 0
    while len(arrived) < sent and quiet < 200:
        before = len(arrived)
        arrived |= {int(datagram.payload) for datagram in lab.datagrams() if datagram.payload.isdigit()}
        quiet = quiet + 1 if len(arrived) == before else 0
        await asyncio.sleep(0.01)
    return set(range(sent)) - arrived


async def send_while_a_port_blocks(lab: Lab, transport: asyncio.DatagramTransport, protocol: Numbered) -> int:
    """Send all the time while wifi0 loses its carrier, has it again behind a port that blocks, and is opened.

    :return: the number of datagrams that were sent before the port blocked
    """
    sending = asyncio.create_task(protocol.send())
    try:
        await protocol.sent_by("wifi0")
        lab.carrier("wifi0", False)
        await protocol.sent_by("eth0")
        before = protocol.sent
        block(lab, "wifi0", True)
        lab.carrier("wifi0", True)
        lab.wait_until_running("wifi0")
        await protocol.sent_by("eth0", 1000)
        assert transport.get_extra_info("interface") == "eth0"
        block(lab, "wifi0", False)
        await protocol.sent_by("wifi0")
    finally:
        sending.cancel()
    return before


@FAMILIES
async def test_a_port_that_blocks_after_carrier_costs_nothing(lab: Lab, family: socket.AddressFamily) -> None:
    lab.datagrams()
    remote = (lab.server.address(family), lab.server.udp_port)
    transport, protocol = await bindsock.create_datagram_endpoint(Numbered, remote_addr=remote)
    before = await send_while_a_port_blocks(lab, transport, protocol)
    lost = await missing(lab, protocol.sent)
    assert len([number for number in lost if number >= before]) <= overflows_at_server(lab)
    assert not protocol.errors
    transport.close()


@FAMILIES
async def test_a_path_whose_route_is_gone_is_left_at_once_though_the_other_passes_nothing_yet(
    lab: Lab, family: socket.AddressFamily
) -> None:
    lab.datagrams()
    remote = (lab.server.address(family), lab.server.udp_port)
    transport, protocol = await bindsock.create_datagram_endpoint(Numbered, remote_addr=remote)
    sending = asyncio.create_task(protocol.send())
    try:
        await protocol.sent_by("wifi0")
        lab.down("eth0")
        lab.up("eth0")
        lab.wait_until_running("eth0")
        block(lab, "eth0", True)
        lab.ip("-6" if family == V6 else "-4", "route", "delete", "default", "dev", "wifi0")
        await until(lambda: bindsock.statistics().waiting >= 200, seconds=PATIENCE)
        assert transport.get_extra_info("interface") == "eth0"
        block(lab, "eth0", False)
        await protocol.sent_by("eth0", 500)
    finally:
        sending.cancel()
    counted = bindsock.statistics()
    assert len(await missing(lab, protocol.sent - counted.waiting)) <= counted.lost_on_device + overflows_at_server(lab)
    assert counted.lost_on_device < 100
    assert (counted.lost, protocol.errors) == (0, [])
    transport.close()


@FAMILIES
@pytest.mark.parametrize("reason", ["better", "renumbered", "nothing"])
async def test_what_waits_for_a_gateway_that_has_fallen_silent_is_counted_when_the_endpoint_leaves(
    lab: Lab, family: socket.AddressFamily, reason: str
) -> None:
    """The interface is set down and up before anybody looks, so that the kernel has forgotten the gateway's address."""
    lab.datagrams()
    if reason == "nothing":
        lab.down("eth0")
    remote = (lab.server.address(family), lab.server.udp_port)
    transport, protocol = await bindsock.create_datagram_endpoint(Numbered, remote_addr=remote)
    sending = asyncio.create_task(protocol.send())
    try:
        await protocol.sent_by("wifi0")
        block(lab, "wifi0", True)
        lab.down("wifi0")
        lab.up("wifi0")
        await protocol.sent_by("wifi0", 50)
        assert bindsock.statistics().lost_on_device == 0
        if reason == "better":
            lab.default("eth0")
            await protocol.sent_by("eth0", 50)
        lab.remove_addresses("wifi0")
        if reason == "nothing":
            await until(lambda: bindsock.statistics().waiting >= 50, seconds=PATIENCE)
        else:
            await protocol.sent_by("eth0", 200)
    finally:
        sending.cancel()
    counted = bindsock.statistics()
    assert 50 <= len(await missing(lab, protocol.sent - counted.waiting)) <= counted.lost_on_device + overflows_at_server(lab)
    transport.abort()


@FAMILIES
async def test_a_gateway_is_known_to_answer_once_it_has_been_asked(
    lab: Lab, kernel: LinuxKernel, family: socket.AddressFamily
) -> None:
    interface = kernel.network().named("eth0")
    assert interface is not None
    gateway = ip_address(lab.gateway("eth0", family))
    lab.down("eth0")
    lab.up("eth0")
    lab.wait_until_running("eth0")
    block(lab, "eth0", True)
    assert kernel.first_hop_answers(interface, gateway) is False
    kernel.ask_first_hop(interface, gateway)
    assert kernel.first_hop_answers(interface, gateway) is False
    block(lab, "eth0", False)
    async with asyncio.timeout(PATIENCE):
        while not kernel.first_hop_answers(interface, gateway):
            kernel.ask_first_hop(interface, gateway)
            await asyncio.sleep(0.01)


@FAMILIES
async def test_a_peer_on_the_link_is_waited_for_like_a_gateway(lab: Lab, family: socket.AddressFamily) -> None:
    peer = lab.gateway("wifi0", family)  # it is also reached by eth0
    with lab.inside("router"):
        sink = socket.socket(family, socket.SOCK_DGRAM)
    sink.setblocking(False)
    sink.bind((peer, 7008))
    arrived: set[int] = set()

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                arrived.add(int(sink.recv(64)))

    loop = asyncio.get_running_loop()
    loop.add_reader(sink, receive)
    transport, protocol = await bindsock.create_datagram_endpoint(Numbered, remote_addr=(peer, 7008))
    before = await send_while_a_port_blocks(lab, transport, protocol)
    await until(lambda: arrived.issuperset(range(before, protocol.sent)), seconds=PATIENCE)
    assert not protocol.errors
    transport.close()
    loop.remove_reader(sink)
    sink.close()


@pytest.mark.usefixtures("vpn")
@pytest.mark.parametrize("better", [True, False])
async def test_a_gateway_at_the_other_end_of_a_point_to_point_link_is_not_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """As that of a modem: there are no link-layer addresses, so there is nothing to answer."""
    monkeypatch.setattr(first_hop, "PATIENCE", 3600.0)
    modem = Device("modem0")
    try:
        # 464XLAT's address: a TUN device with another one is a tunnel.
        lab.ip("address", "add", "192.0.0.2/29", "dev", "modem0")
        lab.ip("link", "set", "modem0", "up")
        remote = (lab.server.address(V4), lab.server.udp_port)
        transport, protocol = await bindsock.create_datagram_endpoint(Numbered, remote_addr=remote)
        sending = asyncio.create_task(protocol.send())
        await protocol.sent_by("wifi0")
        lab.ip("route", "add", "default", "via", "192.0.0.1", "dev", "modem0", "metric", "1" if better else "900")
        if not better:
            lab.down("eth0")
            lab.down("wifi0")
        await protocol.sent_by("modem0", 50)
        sending.cancel()
        assert (bindsock.statistics().lost, protocol.errors) == (0, [])
        transport.close()
    finally:
        modem.close()
