"""aiomqtt's client, whose connection leaves by the effective interface.

.. code-block:: python

    async with bindsock.integrations.aiomqtt.Client("broker.example.com") as client:
        await client.publish("topic", "message")

aiomqtt lets paho connect in a thread. When the path of the connection is gone it ends with :class:`aiomqtt.MqttError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.default import running_factory
from bindsock.extras import needs
from bindsock.integrations.paho import bind_client

with needs("aiomqtt"):
    import aiomqtt

if TYPE_CHECKING:
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class Client(aiomqtt.Client):
    """aiomqtt's client, over the effective interface.

    :param args: as :class:`aiomqtt.Client` has them
    :param interface: the name of the one interface to use, whatever detection says
    :param preferences: how to choose among interfaces
    :param better_path: what happens to a connection that works when another interface is better
    :param dead_after: seconds of silence from the peer after which the connection counts as dead; never unless given
    :param options: as :class:`aiomqtt.Client` has them
    :raises RuntimeError: no event loop is running
    """

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
        running_factory()  # so that the running loop is one that follows
        bind_client(self._client, BlockingConnector(interface, preferences, better_path, dead_after))
