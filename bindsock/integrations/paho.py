"""paho's MQTT client, whose connection leaves by the effective interface.

.. code-block:: python

    client = bindsock.integrations.paho.Client(paho.mqtt.client.CallbackAPIVersion.VERSION2)
    client.connect("broker.example.com")
    client.loop_start()

If an event loop of bindsock runs in the process, it ends the connection when its path is gone, and paho's own loop reconnects.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.extras import needs
from bindsock.options import known_keywords_of, known_keywords_only

with needs("paho"):
    import paho.mqtt.client

if TYPE_CHECKING:
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class Client(paho.mqtt.client.Client):
    """paho's client, over the effective interface.

    :param args: arguments of :class:`paho.mqtt.client.Client`
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what to do with a working connection, if an event loop follows it, when another interface is better
    :param dead_after: seconds without an answer from the peer after which the connection counts as dead; never unless given
    :param options: arguments of :class:`paho.mqtt.client.Client`
    """

    @known_keywords_of(paho.mqtt.client.Client)
    def __init__(
        self,
        *args: Any,
        interface: str | None = None,
        preferences: Preferences | None = None,
        better_path: BetterPath = "auto",
        dead_after: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        bind_client(self, BlockingConnector(interface, preferences, better_path, dead_after))


@known_keywords_only
def bind_client(client: paho.mqtt.client.Client, connector: BlockingConnector | None = None) -> None:
    """Let an existing client connect over the effective interface from now on.

    :param client: a client that is not connected
    :param connector: makes the connections; over the effective interface unless given
    """
    connect = connector if connector is not None else BlockingConnector()

    def create_socket_connection() -> socket.socket:
        if client._get_proxy():
            raise ValueError("the client uses a proxy by PySocks, whose connections cannot be bound to an interface")
        return connect.create_connection(
            (client._host, client._port), client._connect_timeout, (client._bind_address, client._bind_port)
        )

    # paho has no public hook; this is the only method that opens its TCP socket, also for TLS and WebSockets.
    client._create_socket_connection = create_socket_connection  # type: ignore[method-assign]
