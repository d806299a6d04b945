"""Blocking sockets that leave by the effective interface, for threads and programs without an event loop."""

from bindsock.blocking.sockets import BlockingConnector, BlockingSocket, create_connection

__all__ = ["BlockingConnector", "BlockingSocket", "create_connection"]
