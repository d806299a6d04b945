"""The server for the streams. It applies each client's numbered commands in order, over plain TCP, TLS and multipath TCP.

Run in the server's namespace: ``python -m tests.chaos.server SETTINGS``, where the settings are JSON. It never ends a connection
before its client has, and then only after a moment, so that whoever closes first is left to see. Where the network has NAT64, it
is also the name server, and echoes datagrams at the translated address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import sys
from collections import Counter
from typing import Any

from tests.chaos.commanding import obeying
from tests.chaos.packets import program_of
from tests.nat64 import TRANSLATED, NameServer

PLAIN, TLS, MULTIPATH = 7201, 7202, 7203
PORTS = frozenset({PLAIN, TLS, MULTIPATH})
_IPPROTO_MPTCP = 262
_END_DELAY = 0.05


class Server:
    """The state that all connections share: the last command of each client, and the faults."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.faults: list[str] = []
        self.arrived: Counter[str] = Counter()
        """The number of datagrams at the translated address, by program, since the last report."""
        self.open = 0
        self.endings: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self._converse(reader, writer)
            await asyncio.sleep(_END_DELAY)
            self.endings["in order"] += 1
        except OSError as error:
            self.endings[type(error).__name__] += 1
        finally:
            self.open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = ""
        while (line := await reader.readline()).endswith(b"\n"):
            word, _, argument = line.decode().strip().partition(" ")
            if word == "login":
                client = argument
                writer.write(b"welcome %d\n" % self.last.setdefault(client, 0))
                continue
            number, last = int(argument), self.last.get(client)
            if last is None:
                self.faults.append(f"{line!r} came before a login")
            elif number == last + 1:
                self.last[client] = number
                writer.write(b"done %d\n" % number)
            elif number <= last:
                writer.write(b"again %d\n" % number)
            else:
                self.faults.append(f"{client} said {number} after {last}: the commands between are lost")
                self.last[client] = number
                writer.write(b"done %d\n" % number)

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Report the observations. This is the only command."""
        faults, self.faults = self.faults, []
        arrived, self.arrived = self.arrived, Counter()
        return {"faults": faults, "arrived": arrived, "open": self.open, "endings": dict(self.endings)}


class Echo(asyncio.DatagramProtocol):
    """Replies to datagrams at the translated address as the laboratory's server does."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._server.arrived[program_of(data)] += 1
        self._transport.sendto(f"{addr[0]} {addr[1]} ".encode() + data, addr)


def listening(family: socket.AddressFamily, port: int, protocol: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    sock.listen(1024)
    return sock


async def main(settings: dict[str, Any]) -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # asyncio warns of writes to clients that are gone
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["certificate"])
    server = Server()
    if settings["names"] is not None:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: NameServer(translates=True), (settings["names"], 53))
        await loop.create_datagram_endpoint(lambda: Echo(server), (TRANSLATED, settings["datagram_port"]))
    for family in (socket.AF_INET, socket.AF_INET6):
        for port, protocol, tls in ((PLAIN, 0, None), (TLS, 0, context), (MULTIPATH, _IPPROTO_MPTCP, None)):
            with contextlib.suppress(OSError):  # a kernel without IPv6 or multipath TCP: the clients report it
                await asyncio.start_server(server.serve, sock=listening(family, port, protocol), ssl=tls)
    await obeying(server.obey)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
