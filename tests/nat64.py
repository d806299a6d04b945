"""A network with NAT64 in the laboratory: the server itself has the translated address, and runs the name server."""

from __future__ import annotations

import asyncio
from typing import Any

import dnslib  # type: ignore[import-untyped]

from bindsock.dial.nat64 import NAME
from bindsock.testing.lab import Lab

TRANSLATED = "64:ff9b::a09:a"
"""10.9.0.10, the server's IPv4 address, with the translator's prefix."""


def add_translated_address(lab: Lab) -> None:
    """Give the server the address by which a translator would reach its IPv4 address."""
    lab.ip("-6", "addr", "add", f"{TRANSLATED}/128", "dev", "lo", "nodad", namespace="server")
    lab.ip("-6", "route", "add", "64:ff9b::/96", "via", lab.server.ipv6, namespace="router")


class NameServer(asyncio.DatagramProtocol):
    """A name server of a network with or without NAT64."""

    def __init__(self, *, translates: bool) -> None:
        self.translates = translates
        self.asked: list[tuple[str, str]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        request = dnslib.DNSRecord.parse(data)
        kind, name = dnslib.QTYPE[request.q.qtype], str(request.q.qname).rstrip(".")
        self.asked.append((kind, name))
        reply = request.reply()
        if kind == "AAAA" and name == NAME and self.translates:
            for known in ("64:ff9b::c000:aa", "64:ff9b::c000:ab"):
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.AAAA, rdata=dnslib.AAAA(known), ttl=60))
        self.transport.sendto(reply.pack(), addr)
