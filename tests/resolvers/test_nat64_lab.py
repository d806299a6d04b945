"""An IPv4 literal on a network that has IPv6 alone and a translator, whose place an address of the server takes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import dnslib  # type: ignore[import-untyped]
import pytest

import bindsock
from bindsock.dial.nat64 import NAME
from bindsock.resolvers import InterfaceResolver, ServerLookup
from bindsock.testing.lab import Lab

pytestmark = pytest.mark.lab

PORT = 7200
TRANSLATED = "64:ff9b::a09:a"
"""10.9.0.10 behind the translator's prefix."""


class NameServer(asyncio.DatagramProtocol):
    """Answers as a network with NAT64 does, or as one without."""

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


@contextlib.asynccontextmanager
async def six_only(lab: Lab, *, translates: bool) -> AsyncIterator[NameServer]:
    """The host has IPv6 alone; the server answers at the translated address, and names."""
    for uplink in ("wifi0", "eth0"):
        lab.ip("-4", "addr", "flush", "dev", uplink)
    lab.ip("-6", "addr", "add", f"{TRANSLATED}/128", "dev", "lo", "nodad", namespace="server")
    lab.ip("-6", "route", "add", "64:ff9b::/96", "via", lab.server.ipv6, namespace="router")
    with lab.inside("server"):
        listener = socket.create_server(("::", PORT), family=socket.AF_INET6)
        names = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        names.bind((lab.server.ipv6, 53))
    names.setblocking(False)

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(writer.get_extra_info("sockname")[0].encode() + b"\n")
        await reader.read()
        writer.close()

    loop = asyncio.get_running_loop()
    transport, name_server = await loop.create_datagram_endpoint(lambda: NameServer(translates=translates), sock=names)
    server = await asyncio.start_server(tell, sock=listener)
    try:
        yield name_server
    finally:
        transport.close()
        server.close()


def factory(lab: Lab) -> bindsock.TransportFactory:
    return bindsock.TransportFactory(resolver=InterfaceResolver(lookups=[ServerLookup([lab.server.ipv6], timeout=5.0)]))


async def test_an_ipv4_literal_is_dialled_by_its_translated_address(lab: Lab) -> None:
    async with six_only(lab, translates=True) as names, factory(lab) as connections:
        reader, writer = await connections.open_connection(lab.server.ipv4, PORT)
        assert await reader.readline() == TRANSLATED.encode() + b"\n"
        assert writer.get_extra_info("peername")[0] == TRANSLATED
        assert connections.interface_of(writer) == "wifi0"
        writer.close()
        await writer.wait_closed()
        assert names.asked == [("AAAA", NAME)]
        # What the network has told is kept.
        (await connections.connect(lab.server.ipv4, PORT)).close()
        assert len(names.asked) == 1


async def test_without_a_translator_the_error_says_that_there_is_no_ipv4(lab: Lab) -> None:
    async with six_only(lab, translates=False) as names, factory(lab) as connections:
        with pytest.raises(bindsock.NoEffectiveInterface, match=lab.server.ipv4):
            await connections.open_connection(lab.server.ipv4, PORT)
        assert names.asked == [("AAAA", NAME)]


async def test_who_asks_for_ipv4_gets_ipv4_or_an_error(lab: Lab) -> None:
    async with six_only(lab, translates=True) as names, factory(lab) as connections:
        with pytest.raises(bindsock.NoEffectiveInterface):
            await connections.open_connection(lab.server.ipv4, PORT, family=socket.AF_INET)
        assert names.asked == []
