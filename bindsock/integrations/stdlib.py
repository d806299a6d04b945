"""The standard library's blocking clients, over the effective interface: ``http.client`` and ``smtplib``.

.. code-block:: python

    connection = bindsock.integrations.stdlib.HTTPSConnection("example.com")
    connection.request("GET", "/")
"""

from __future__ import annotations

import http.client
import smtplib
from typing import TYPE_CHECKING, Any

from bindsock.blocking import BlockingConnector
from bindsock.options import known_keywords_of

if TYPE_CHECKING:
    import socket


class HTTPConnection(http.client.HTTPConnection):
    """:class:`http.client.HTTPConnection`, over the effective interface.

    :param connector: makes the connection; over the effective interface unless given
    """

    @known_keywords_of(http.client.HTTPConnection, http.client.HTTPSConnection)
    def __init__(self, *args: Any, connector: BlockingConnector | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        connect = connector if connector is not None else BlockingConnector()
        # This attribute is undocumented, but there is no other hook (Lib/http/client.py, HTTPConnection.connect).
        self._create_connection = connect.create_connection


class HTTPSConnection(HTTPConnection, http.client.HTTPSConnection):
    """:class:`http.client.HTTPSConnection`, over the effective interface."""


class SMTP(smtplib.SMTP):
    """:class:`smtplib.SMTP`, over the effective interface.

    :param connector: makes the connection; over the effective interface unless given
    """

    @known_keywords_of(smtplib.SMTP, smtplib.SMTP_SSL)
    def __init__(self, *args: Any, connector: BlockingConnector | None = None, **options: Any) -> None:
        self._connector = connector if connector is not None else BlockingConnector()
        super().__init__(*args, **options)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        if timeout is not None and not timeout:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        source: Any = self.source_address
        return self._connector.create_connection((host, port), timeout, source)


class SMTP_SSL(SMTP, smtplib.SMTP_SSL):
    """:class:`smtplib.SMTP_SSL`, over the effective interface."""

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return self.context.wrap_socket(super()._get_socket(host, port, timeout), server_hostname=self._host)  # type: ignore[attr-defined]
