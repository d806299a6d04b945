"""TLS contexts: an authority that the clients trust, and a certificate for each server."""

from __future__ import annotations

import ssl

import trustme

_authority = trustme.CA()


def tls_server_context(name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority.issue_cert(name).configure_cert(context)
    return context


def tls_client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    _authority.configure_trust(context)
    return context
