"""Less common datagrams, with a VPN: empty ones, broadcasts, multicast on two LANs, addresses that rotate."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

import bindsock
from bindsock.testing.lab import Lab
from tests.integrations.tunnel import nothing_through_the_tunnel

pytestmark = pytest.mark.lab

PATIENCE = 20
PORT = 7300
GROUP = ("224.0.0.251", 5353)


class Received(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.queue.put_nowait((data, addr))


async def next_of(protocol: Received) -> tuple[bytes, Any]:
    async with asyncio.timeout(PATIENCE):
        return await protocol.queue.get()


@contextlib.contextmanager
def in_the_router(lab: Lab, port: int, *, group: str | None = None) -> Iterator[socket.socket]:
    """A socket in the router, which joins the group on each uplink's network."""
    with socket_in_the_router(lab) as sock:
        sock.bind(("0.0.0.0", port))
        for uplink in ("wifi0", "eth0") if group is not None else ():
            membership = socket.inet_aton(group or "") + socket.inet_aton(lab.gateway(uplink))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.settimeout(PATIENCE)
        yield sock


def socket_in_the_router(lab: Lab) -> socket.socket:
    with lab.inside("router"):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_an_empty_datagram_arrives(lab: Lab, family: socket.AddressFamily) -> None:
    lab.vpn_up("metric")
    transport, protocol = await bindsock.create_datagram_endpoint(
        Received,
        remote_addr=(lab.server.address(family), lab.server.udp_port),
    )
    with nothing_through_the_tunnel(lab):
        transport.sendto(b"")
        data, _ = await next_of(protocol)
    assert data.split()[0].decode() == lab.address("wifi0", family)
    assert bindsock.statistics().lost == 0
    transport.close()


@pytest.mark.parametrize("destination", ["255.255.255.255", "its network"])
async def test_a_broadcast_leaves_by_the_uplink(lab: Lab, destination: str) -> None:
    lab.vpn_up("metric")
    address = destination if destination != "its network" else lab.address("wifi0").rpartition(".")[0] + ".255"
    with in_the_router(lab, PORT) as router, lab.tap(interface="tun0", port=PORT) as tunnel:
        transport, _ = await bindsock.create_datagram_endpoint(Received, local_addr=("0.0.0.0", 0), allow_broadcast=True)
        transport.sendto(b"who is there", (address, PORT))
        data, sender = await asyncio.to_thread(router.recvfrom, 100)
        transport.close()
        assert tunnel.packets == []
    assert (data, sender[0]) == (b"who is there", lab.address("wifi0"))


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_sockets_as_zeroconf_makes_them_announce_on_both_networks(lab: Lab, base: type[asyncio.AbstractEventLoop]) -> None:
    """One socket for each interface, bound to its address, with the interface as its multicast interface."""
    lab.vpn_up("metric")

    async def main() -> None:
        loop, transports = asyncio.get_running_loop(), []
        for uplink in ("wifi0", "eth0"):
            own = lab.address(uplink)
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
            sock.setblocking(False)
            sock.bind((own, GROUP[1]))
            transport, _ = await loop.create_datagram_endpoint(Received, sock=sock)
            transport.sendto(uplink.encode(), GROUP)
            transports.append(transport)
        seen = {await asyncio.to_thread(router.recvfrom, 100) for _ in transports}
        assert seen == {(u.encode(), (lab.address(u), GROUP[1])) for u in ("wifi0", "eth0")}
        for transport in transports:
            transport.close()

    with in_the_router(lab, GROUP[1], group=GROUP[0]) as router, lab.tap(interface="tun0", port=GROUP[1]) as tunnel:
        with asyncio.Runner(loop_factory=bindsock.loop_factory(base)) as runner:
            runner.run(main())
        assert tunnel.packets == []


async def test_addresses_that_rotate_disturb_nobody_who_does_not_have_them(lab: Lab) -> None:
    """Temporary IPv6 addresses come and go every day. Only a socket with the removed address needs another one."""
    transport, protocol = await bindsock.create_datagram_endpoint(Received, remote_addr=(lab.server.ipv6, lab.server.udp_port))
    reader, writer = await bindsock.open_connection(lab.server.ipv6, lab.server.tcp_port)
    await reader.readline()
    own = transport.get_extra_info("sockname")[0]
    prefix = lab.address("wifi0", socket.AF_INET6).rpartition("::")[0]
    for number in range(1, 6):
        lab.ip("-6", "addr", "add", f"{prefix}::aa0{number}/64", "dev", "wifi0", "nodad", "preferred_lft", "0")
        writer.write(b"on and on\n")
        assert await reader.readline() == b"on and on\n"
        transport.sendto(b"on and on")
        assert (await next_of(protocol))[0].split()[0].decode() == own
        lab.ip("-6", "addr", "del", f"{prefix}::aa0{number}/64", "dev", "wifi0")
    statistics = bindsock.statistics()
    assert (statistics.rebinds, statistics.ended, statistics.lost) == (0, 0, 0)
    writer.close()
    transport.close()
