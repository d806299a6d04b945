"""requests, whose connections leave by the effective interface.

.. code-block:: python

    with requests.Session() as session:
        session.mount("https://", bindsock.integrations.requests.HTTPAdapter())
        session.mount("http://", bindsock.integrations.requests.HTTPAdapter())
        session.get("https://example.com/")

If an event loop of bindsock runs in the process, it ends connections whose path is gone: a pending request fails with
:class:`requests.ConnectionError`, and the next one leaves by the new interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.extras import needs
from bindsock.options import known_keywords_of

with needs("requests"):
    import requests.adapters

from bindsock.integrations.urllib3 import pool_classes

if TYPE_CHECKING:
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class HTTPAdapter(requests.adapters.HTTPAdapter):
    """requests' adapter, over the effective interface. Connections to a proxy leave by it, too.

    :param interface: the name of the only interface to use; detected unless given
    :param preferences: how to choose among interfaces
    :param better_path: what to do with a working connection, if an event loop follows it, when another interface is better
    :param dead_after: seconds without an answer from the peer after which a connection counts as dead; never unless given
    :param options: arguments of :class:`requests.adapters.HTTPAdapter`
    """

    __attrs__: list[str] = [*requests.adapters.HTTPAdapter.__attrs__, "_connector"]  # noqa: RUF012, what requests pickles

    @known_keywords_of(requests.adapters.HTTPAdapter)
    def __init__(
        self,
        *,
        interface: str | None = None,
        preferences: Preferences | None = None,
        better_path: BetterPath = "auto",
        dead_after: float | None = None,
        **options: Any,
    ) -> None:
        self._connector = BlockingConnector(interface, preferences, better_path, dead_after)
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = pool_classes(self._connector)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """The manager of a proxy's connections.

        :raises ValueError: it is a SOCKS proxy, for which PySocks would make unbound connections
        """
        if proxy.lower().startswith("socks"):
            raise ValueError(f"{proxy} needs PySocks, whose connections cannot be bound to an interface")
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = pool_classes(self._connector)
        return manager
