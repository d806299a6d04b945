"""urllib3, whose connections leave by the effective interface.

.. code-block:: python

    http = bindsock.integrations.urllib3.PoolManager()
    http.request("GET", "https://example.com/")

If an event loop of bindsock runs in the process, it ends connections whose path is gone, and the pool drops them.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from bindsock.blocking import BlockingConnector
from bindsock.extras import needs
from bindsock.options import known_keywords_of

with needs("urllib3"):
    import urllib3
    import urllib3.connection
    from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class HTTPConnection(urllib3.connection.HTTPConnection):
    """urllib3's connection, over the effective interface."""

    connector: ClassVar[BlockingConnector] = BlockingConnector()

    def _new_conn(self) -> socket.socket:
        # urllib3 has no public hook; this is the method that its own SOCKSConnection overrides.
        try:
            sock = self.connector.create_connection(
                (self._dns_host, self.port),
                self.timeout,
                self.source_address,
            )
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            message = f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
            raise ConnectTimeoutError(self, message) from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
        for option in self.socket_options or ():
            sock.setsockopt(*option)
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock


class HTTPSConnection(HTTPConnection, urllib3.connection.HTTPSConnection):
    """urllib3's TLS connection, over the effective interface."""


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    """A pool of :class:`HTTPConnection`."""

    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    """A pool of :class:`HTTPSConnection`."""

    ConnectionCls = HTTPSConnection


def pool_classes(connector: BlockingConnector) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """The pool classes that use a connector, for ``PoolManager.pool_classes_by_scheme``."""
    http = type("HTTPConnection", (HTTPConnection,), {"connector": connector})
    https = type("HTTPSConnection", (HTTPSConnection,), {"connector": connector})
    return {
        "http": type("HTTPConnectionPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
        "https": type("HTTPSConnectionPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
    }


class PoolManager(urllib3.PoolManager):
    """urllib3's pool manager, over the effective interface.

    :param num_pools: an argument of :class:`urllib3.PoolManager`, like ``headers`` and the other options
    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what to do with a working connection, if an event loop follows it, when another interface is better
    :param dead_after: seconds without an answer from the peer after which a connection counts as dead; never unless given
    """

    # urllib3 only notices an unknown keyword when it connects.
    @known_keywords_of(also=[field.removeprefix("key_") for field in urllib3.poolmanager.PoolKey._fields])
    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        interface: str | None = None,
        preferences: Preferences | None = None,
        better_path: BetterPath = "auto",
        dead_after: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_pools, headers, **options)
        self.pool_classes_by_scheme: Any = pool_classes(BlockingConnector(interface, preferences, better_path, dead_after))
