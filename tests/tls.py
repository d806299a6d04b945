"""TLS contexts for servers on loopback."""

from __future__ import annotations

import ssl

import trustme

_authority = trustme.CA()
_certificate = _authority.issue_cert("localhost")


def tls_server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _certificate.configure_cert(context)
    return context


def tls_client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    _authority.configure_trust(context)
    return context
