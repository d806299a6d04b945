"""The echo server, a separate process: it answers over TCP, TLS and UDP with the source address that it saw.

:mod:`._helper` imports it without the package, so it only imports the standard library. Commands arrive as lines of JSON on
standard input; the process ends at the end of the input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
import time
from typing import Any

_SO_RCVBUFFORCE = 33
_SO_RCVBUF_BYTES = 4 << 20
_LARGEST = 65536
_BACKLOG = 4096
"""The listen backlog: this many clients can connect at once without a retransmission after a second."""


class Server:
    """The state that all endpoints share: the delay before each reply, and what was received."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.delay = 0.0
        self.datagrams: list[tuple[float, str, int, str]] = []
        self.echoes: list[tuple[socket.socket, DatagramEcho]] = []
        self.streams: dict[StreamEcho, tuple[str, str, int]] = {}
        self.listeners: list[asyncio.AbstractServer] = []

    async def listen(self, addresses: list[str], udp: int, tcp: int) -> None:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SO_RCVBUF_BYTES)
            except PermissionError:  # in a user namespace net.core.rmem_max limits it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SO_RCVBUF_BYTES)
            sock.setblocking(False)
            sock.bind((address, udp))
            _, echo = await self.loop.create_datagram_endpoint(lambda: DatagramEcho(self), sock=sock)
            self.echoes.append((sock, echo))
        self.listeners.append(await self.loop.create_server(lambda: StreamEcho(self, "tcp"), addresses, tcp, backlog=_BACKLOG))

    async def listen_tls(self, addresses: list[str], port: int, certificate: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(certificate)
            file.flush()
            context.load_cert_chain(file.name)
        server = await self.loop.create_server(lambda: StreamEcho(self, "tls"), addresses, port, backlog=_BACKLOG, ssl=context)
        self.listeners.append(server)

    def read_waiting(self) -> None:
        """Read all datagrams that have arrived. The event loop reads one in each iteration."""
        for sock, echo in self.echoes:
            with contextlib.suppress(BlockingIOError):
                while True:
                    echo.datagram_received(*sock.recvfrom(_LARGEST))


class DatagramEcho(asyncio.DatagramProtocol):
    """Replies with ``b"<source address> <source port> "`` and the datagram."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.server.datagrams.append((time.monotonic(), addr[0], addr[1], data[:64].hex()))
        reply = f"{addr[0]} {addr[1]} ".encode() + data
        if self.server.delay:
            self.server.loop.call_later(self.server.delay, self.transport.sendto, reply, addr)
        else:
            self.transport.sendto(reply, addr)

    def error_received(self, exc: Exception) -> None:
        """Ignore errors: tests take uplinks away."""


class StreamEcho(asyncio.Protocol):
    """Sends ``hello <source address> <source port>``, then echoes."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server = server
        self.kind = kind
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        source = transport.get_extra_info("peername")
        self.server.streams[self] = (self.kind, source[0], source[1])
        self.transport.write(f"hello {source[0]} {source[1]}\n".encode())

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # close() then sends RST
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.server.delay:
            self.server.loop.call_later(self.server.delay, self.transport.write, data)
        else:
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.streams.pop(self, None)


async def obey(server: Server, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command."""
    match command.pop("command"):
        case "listen":
            await server.listen(**command)
        case "tls":
            await server.listen_tls(**command)
        case "delay":
            server.delay = command["seconds"]
        case "datagrams":
            server.read_waiting()
            received, server.datagrams = server.datagrams, []
            return {"datagrams": received}
        case "streams":
            return {"streams": list(server.streams.values())}
        case "abort":
            for stream in list(server.streams):
                stream.reset()
    return {}


def run() -> None:
    asyncio.run(_serve())


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    server = Server()
    while line := await commands.readline():
        try:
            answer = await obey(server, json.loads(line))
        except Exception as exc:  # noqa: BLE001 - the laboratory reports it to the user
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        os.write(1, json.dumps(answer).encode() + b"\n")
