"""aiomqtt's client, whose connection leaves by the effective interface.

.. code-block:: python

    async with bindsock.integrations.aiomqtt.Client("broker.example.com") as client:
        await client.publish("topic", "message")

aiomqtt lets paho connect in a thread. When the connection's path is gone, it ends with :class:`aiomqtt.MqttError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.default import running_factory
from bindsock.extras import needs
from bindsock.options import known_keywords_of

with needs("aiomqtt"):
    import aiomqtt

    from bindsock.integrations.paho import bind_client

if TYPE_CHECKING:
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class Client(aiomqtt.Client):
    """aiomqtt's client, over the effective interface.

    :param args: arguments of :class:`aiomqtt.Client`
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what to do with a working connection when another interface is better
    :param dead_after: seconds without an answer from the peer after which the connection counts as dead; never unless given
    :param options: arguments of :class:`aiomqtt.Client`
    :raises RuntimeError: no event loop is running
    """

    @known_keywords_of(aiomqtt.Client)
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
        running_factory()  # makes the running loop follow the connection
        bind_client(self._client, BlockingConnector(interface, preferences, better_path, dead_after))
