"""anyio's networking functions, over the effective interface, on asyncio, uvloop and trio.

.. code-block:: python

    async with await bindsock.anyio.connect_tcp("example.com", 443, tls=True) as stream:
        await stream.send(...)

The functions have the names, arguments and return types of anyio's. The arguments that bindsock adds are keyword-only.
"""

from bindsock.extras import needs

with needs("anyio"):
    from bindsock.anyio._factory import (
        TCPConnectable,
        TransportFactory,
        connect_tcp,
        create_connected_udp_socket,
        create_udp_socket,
        install,
        install_trio_socket_factory,
    )
    from bindsock.anyio._reconnecting import OnReconnect, ReconnectingStream
    from bindsock.anyio._streams import BindsockAttribute

__all__ = [
    "BindsockAttribute",
    "OnReconnect",
    "ReconnectingStream",
    "TCPConnectable",
    "TransportFactory",
    "connect_tcp",
    "create_connected_udp_socket",
    "create_udp_socket",
    "install",
    "install_trio_socket_factory",
]
