"""requests, whose connections leave by the effective interface.

.. code-block:: python

    with requests.Session() as session:
        session.mount("https://", bindsock.integrations.requests.HTTPAdapter())
        session.mount("http://", bindsock.integrations.requests.HTTPAdapter())
        session.get("https://example.com/")

Where an event loop of bindsock's runs in the process, a connection whose path is gone is ended: the request under way fails with
:class:`requests.ConnectionError`, and the next one leaves by the new interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.extras import needs

with needs("requests"):
    import requests.adapters

from bindsock.integrations.urllib3 import pool_classes

if TYPE_CHECKING:
    from bindsock.options import BetterPath
    from bindsock.routing.effective import Preferences


class HTTPAdapter(requests.adapters.HTTPAdapter):
    """requests' adapter, over the effective interface; a proxy is reached by it as well.

    :param interface: the name of the one interface to use, whatever detection says
    :param preferences: how to choose among interfaces
    :param better_path: what the loop that follows a connection does when it works and another interface is better
    :param dead_after: seconds of silence from the peer after which a connection counts as dead; never unless given
    :param options: as :class:`requests.adapters.HTTPAdapter` has them
    """

    __attrs__: list[str] = [*requests.adapters.HTTPAdapter.__attrs__, "_connector"]  # noqa: RUF012, what requests pickles

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

        :raises ValueError: a SOCKS proxy, which PySocks would connect to unbound
        """
        if proxy.lower().startswith("socks"):
            raise ValueError(f"{proxy} would be connected to by PySocks, which cannot be bound to an interface")
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = pool_classes(self._connector)
        return manager
