"""QUIC by aioquic: a client connection that migrates to the effective interface, without any work for the application.

QUIC identifies connections by their ids, not by their addresses (RFC 9000 section 9), so it is enough to send the datagrams by
another interface. The datagram transport does this, even during a download. But the peer sends to the old address until a packet
arrives from the new one, and a client that only receives sends none. So this module sends a PING on each new path.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bindsock.default import factory_or_running
from bindsock.dial.resolving import address_of
from bindsock.extras import needs
from bindsock.factory import connector_of
from bindsock.options import known_keywords_only

with needs("aioquic"):
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aioquic.asyncio.protocol import QuicStreamHandler
    from aioquic.quic.connection import QuicTokenHandler
    from aioquic.tls import SessionTicketHandler

    from bindsock.factory import TransportFactory
    from bindsock.model.change import Cause
    from bindsock.model.decision import Path
    from bindsock.model.network import IPAddress
    from bindsock.routing.effective import Decider


@known_keywords_only
@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    configuration: QuicConfiguration | None = None,
    create_protocol: Callable[..., QuicConnectionProtocol] = QuicConnectionProtocol,
    session_ticket_handler: SessionTicketHandler | None = None,
    stream_handler: QuicStreamHandler | None = None,
    token_handler: QuicTokenHandler | None = None,
    wait_connected: bool = True,
    local_port: int = 0,
    factory: TransportFactory | None = None,
    interface: str | None = None,
) -> AsyncGenerator[QuicConnectionProtocol, None]:
    """:func:`aioquic.asyncio.connect`, over the effective interface, bypassing VPN tunnels.

    :param factory: makes the datagram transport; the running event loop's own unless given
    :param interface: the name of the only interface to use; the factory's unless given
    :raises NoEffectiveInterface: no interface may be used
    :raises OSError: the name cannot be resolved, or the socket cannot be bound
    :raises ConnectionError: the connection could not be made
    """
    factory = factory_or_running(factory)
    address = (await factory.resolve(host, port, type=socket.SOCK_DGRAM))[0][4]
    if configuration is None:
        configuration = QuicConfiguration(is_client=True)
    if configuration.server_name is None:
        configuration.server_name = host
    connection = QuicConnection(
        configuration=configuration, session_ticket_handler=session_ticket_handler, token_handler=token_handler
    )
    transport, protocol = await factory.create_datagram_endpoint(
        lambda: create_protocol(connection, stream_handler=stream_handler),
        local_addr=("::" if len(address) == 4 else "0.0.0.0", local_port) if local_port else None,
        remote_addr=(address[0], port),
        interface=interface,
    )
    watcher = connector_of(factory).watcher
    probe = _PathProbe(protocol, connection, address_of(address), interface, watcher.refresh())
    try:
        watcher.follow(probe)
        protocol.connect(transport.get_extra_info("peername"), transmit=wait_connected)
        if wait_connected:
            await protocol.wait_connected()
        yield protocol
    finally:
        protocol.close()
        watcher.unfollow(probe)
        await protocol.wait_closed()
        transport.close()


class _PathProbe:
    """Tells the peer of each new path, by a PING that aioquic repeats until it is acknowledged."""

    def __init__(
        self,
        protocol: QuicConnectionProtocol,
        connection: QuicConnection,
        peer: IPAddress,
        interface: str | None,
        decider: Decider,
    ) -> None:
        self._protocol = protocol
        self._connection = connection
        self._peer = peer
        self._interface = interface
        self._path = self._path_by(decider)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        """Send a PING if the path is new, after the datagram transport has moved to it."""
        path = self._path_by(decider)
        if path is not None and path != self._path:
            self._path = path
            self._connection.send_ping(0)
            asyncio.get_running_loop().call_soon(self._protocol.transmit)

    def _path_by(self, decider: Decider) -> Path | None:
        return decider.with_pin(self._interface).path(self._peer)
