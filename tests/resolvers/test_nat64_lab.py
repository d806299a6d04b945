"""An IPv4 literal on a network with only IPv6 and a NAT64 translator. The server itself has the translated address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import bindsock
from bindsock.blocking import create_connection
from bindsock.dial.nat64 import NAME
from bindsock.resolvers import InterfaceResolver, ServerLookup
from bindsock.testing.lab import Lab
from tests.nat64 import TRANSLATED, NameServer, add_translated_address

pytestmark = pytest.mark.lab

PORT = 7200


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def six_only(lab: Lab, *, translates: bool) -> AsyncIterator[NameServer]:
    """The host has only IPv6. The server has the translated address, and runs the name server."""
    for uplink in ("wifi0", "eth0"):
        lab.ip("-4", "addr", "flush", "dev", uplink)
    add_translated_address(lab)
    with lab.inside("server"):
        listener = socket.create_server(("::", PORT), family=socket.AF_INET6)
        echoing = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        echoing.bind((TRANSLATED, PORT))
        names = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        names.bind((lab.server.ipv6, 53))
    names.setblocking(False)
    echoing.setblocking(False)

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(writer.get_extra_info("sockname")[0].encode() + b"\n")
        await reader.read()
        writer.close()

    loop = asyncio.get_running_loop()
    transport, name_server = await loop.create_datagram_endpoint(lambda: NameServer(translates=translates), sock=names)
    echo, _ = await loop.create_datagram_endpoint(Echo, sock=echoing)
    server = await asyncio.start_server(tell, sock=listener)
    try:
        yield name_server
    finally:
        transport.close()
        echo.close()
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
        # The prefix is cached.
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


async def test_a_datagram_endpoint_reaches_an_ipv4_literal(lab: Lab) -> None:
    async with six_only(lab, translates=True), factory(lab) as connections:
        received: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                received.put_nowait(data)

        transport, _ = await connections.create_datagram_endpoint(Client, remote_addr=(lab.server.ipv4, PORT))
        assert transport.get_extra_info("peername")[:2] == (TRANSLATED, PORT)
        transport.sendto(b"ping")
        async with asyncio.timeout(20):
            assert await received.get() == b"ping"
        transport.close()
        with pytest.raises(bindsock.NoEffectiveInterface):
            await connections.create_datagram_endpoint(Client, remote_addr=(lab.server.ipv4, PORT), family=socket.AF_INET)


TRIO = """
import sys

import trio

import bindsock.anyio

host, port = sys.argv[1], int(sys.argv[2])


async def main():
    async with await bindsock.anyio.connect_tcp(host, port) as stream:
        print((await stream.receive()).decode().strip())
    async with await bindsock.anyio.create_connected_udp_socket(host, port) as datagrams:
        await datagrams.send(b"ping")
        print((await datagrams.receive()).decode())


trio.run(main)
"""
BLOCKING = """
import sys

import bindsock.blocking

host, port = sys.argv[1], int(sys.argv[2])
with bindsock.blocking.create_connection((host, port), timeout=20) as sock, sock.makefile() as lines:
    print(lines.readline().strip())
"""


@pytest.mark.parametrize(
    ("program", "expected"), [(TRIO, [TRANSLATED, "ping"]), (BLOCKING, [TRANSLATED])], ids=["trio", "blocking"]
)
async def test_trio_and_blocking_sockets_ask_the_servers_that_are_configured(
    lab: Lab, tmp_path: Path, program: str, expected: list[str]
) -> None:
    (tmp_path / "resolv.conf").write_text(f"nameserver {lab.server.ipv6}\n")
    (tmp_path / "program.py").write_text(program)
    command = 'mount --bind "$1/resolv.conf" /etc/resolv.conf && exec "$2" -W error "$1/program.py" "$3" "$4"'
    arguments = [str(tmp_path), sys.executable, lab.server.ipv4, str(PORT)]
    async with six_only(lab, translates=True) as names:
        child = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", command, "sh", *arguments, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            said, _ = await child.communicate()
        assert said.decode().split() == expected
        assert child.returncode == 0
        assert set(names.asked) == {("AAAA", NAME)}


async def test_a_blocking_connection_without_a_translator_is_refused(lab: Lab) -> None:
    async with six_only(lab, translates=False):
        with pytest.raises(bindsock.NoEffectiveInterface, match=lab.server.ipv4):
            await asyncio.to_thread(create_connection, (lab.server.ipv4, PORT), 20.0)
