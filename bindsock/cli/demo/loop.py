"""The routing loop of a VPN client whose own packets are routed into its tunnel."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bindsock.cli.demo.programs import Telemetry
from bindsock.factory import TransportFactory

if TYPE_CHECKING:
    from bindsock.testing.lab import Lab

LIMIT = 2000
"""The client gives up after this many of its own packets have come out of the tunnel."""
PINGS = 20
_PING_INTERVAL = 0.02
_PATIENCE = 1000
"""How many ping intervals to wait for the last answers."""
_LARGEST = 65536

Endpoint = Callable[[Callable[[], "VpnClient"], tuple[str, int]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class LoopResult:
    """The result of some pings through the VPN."""

    reentered: int
    """The client's own packets that came out of the tunnel."""
    on_tunnel: int
    """Packets that the tunnel's device sent."""
    sent: int
    answered: int
    seconds: float
    stopped: bool
    """Whether the client gave up because of the loop."""


class VpnClient(asyncio.DatagramProtocol):
    """A VPN client without encryption: it sends packets of the tunnel's device as datagrams to the server, and back.

    :param tun: the descriptor of the device
    :param server: the VPN server's address
    """

    def __init__(self, tun: int, server: str) -> None:
        self.reentered: int = 0
        self.stopped: bool = False
        self._tun = tun
        self._server = socket.inet_aton(server)
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        os.set_blocking(self._tun, False)
        asyncio.get_running_loop().add_reader(self._tun, self._from_tunnel)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        os.write(self._tun, data)

    def error_received(self, exc: Exception) -> None:
        """Ignore a datagram that the system refused, as networks drop packets silently."""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._tun)
        if self._transport is not None:
            self._transport.close()

    def _from_tunnel(self) -> None:
        try:
            packet = os.read(self._tun, _LARGEST)
        except BlockingIOError:
            return
        if packet[0] >> 4 == 4 and packet[16:20] == self._server:
            self.reentered += 1
            self.stopped = self.reentered >= LIMIT
        if not self.stopped:
            self._transport.sendto(packet)


async def unbound(lab: Lab) -> LoopResult:
    """Run the client with asyncio's own socket."""

    async def endpoint(protocol: Callable[[], VpnClient], server: tuple[str, int]) -> None:
        await asyncio.get_running_loop().create_datagram_endpoint(protocol, remote_addr=server)

    return await _ping_through(lab, endpoint)


async def bound(lab: Lab) -> LoopResult:
    """Run the client with a socket of bindsock's."""
    async with TransportFactory() as factory:

        async def endpoint(protocol: Callable[[], VpnClient], server: tuple[str, int]) -> None:
            await factory.create_datagram_endpoint(protocol, remote_addr=server)

        return await _ping_through(lab, endpoint)


def as_document(result: LoopResult) -> dict[str, Any]:
    return dataclasses.asdict(result)


async def _ping_through(lab: Lab, endpoint: Endpoint) -> LoopResult:
    """Start the VPN with this client, and ping the server through it."""
    loop = asyncio.get_running_loop()
    lab.vpn_up("metric", outer="own")
    try:
        assert lab.vpn_tun is not None
        client = VpnClient(lab.vpn_tun, lab.vpn_server[0])
        await endpoint(lambda: client, lab.vpn_server)
        begun = time.monotonic()
        pings, telemetry = await loop.create_datagram_endpoint(Telemetry, remote_addr=(lab.server.ipv4, lab.server.udp_port))
        try:
            for _ in range(PINGS):
                telemetry.send("ping")
                await asyncio.sleep(_PING_INTERVAL)
            for _ in range(_PATIENCE):
                if client.stopped or len(telemetry.answered) == PINGS:
                    break
                await asyncio.sleep(_PING_INTERVAL)
            on_tunnel = lab.counters("tun0").tx_packets
        finally:
            pings.close()
            client.close()
        seconds = time.monotonic() - begun
        return LoopResult(client.reentered, on_tunnel, PINGS, len(telemetry.answered), seconds, client.stopped)
    finally:
        lab.vpn_down()
