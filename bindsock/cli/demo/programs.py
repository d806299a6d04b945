"""The program that is watched: telemetry by UDP and reports by TCP.

It is the same code for all of them; what differs is only where it gets its sockets from. A datagram goes out every few
milliseconds, whatever becomes of the ones before. A report goes out over TCP, and the next one once the server has answered; when
the connection fails the program does what programs do, it connects again and repeats the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeAlias

from bindsock.factory import TransportFactory

INTERVAL = 0.005
"""Seconds between datagrams."""
REPORT_INTERVAL = 0.05
_RETRY = 0.2
_SO_BINDTODEVICE = 25  # linux include/uapi/asm-generic/socket.h

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Sockets(Protocol):
    """Where a program gets its sockets from."""

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport: ...

    async def stream(self, host: str, port: int) -> Streams: ...


class BindsockSockets:
    """bindsock's, which follow the effective interface."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport:
        transport, _ = await self._factory.create_datagram_endpoint(protocol, remote_addr=(host, port))
        return transport

    async def stream(self, host: str, port: int) -> Streams:
        # "auto" would leave a working connection that costs money when it is idle, or after 30 seconds.
        return await self._factory.open_connection(host, port, better_path="abort")


class PlainSockets:
    """asyncio's own."""

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, remote_addr=(host, port))
        return transport

    async def stream(self, host: str, port: int) -> Streams:
        return await asyncio.open_connection(host, port)


class HandBoundSockets:
    """asyncio's own, each bound to one interface as it is made: what one writes against a VPN without bindsock."""

    def __init__(self, interface: str) -> None:
        self.interface = interface

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, sock=await self._connected(socket.SOCK_DGRAM, host, port))
        return transport

    async def stream(self, host: str, port: int) -> Streams:
        return await asyncio.open_connection(sock=await self._connected(socket.SOCK_STREAM, host, port))

    async def _connected(self, kind: socket.SocketKind, host: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, self.interface.encode() + b"\0")
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return sock


class Telemetry(asyncio.DatagramProtocol):
    """Notes what is sent and what is answered. The server's answer is ``b"<address> <port> "`` and what it received."""

    def __init__(self) -> None:
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self.refused: int = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answered.setdefault(int(data.rsplit(b" ", 1)[1]), time.monotonic())

    def error_received(self, exc: Exception) -> None:
        self.refused += 1

    def send(self, tag: str) -> None:
        number = len(self.sent)
        self.sent[number] = time.monotonic()
        self.transport.sendto(f"{tag} {number}".encode())


class Reports:
    """Notes what was reported over TCP, and how the connections ended."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.connections: list[tuple[str, int]] = []
        """The local address and port of each."""
        self.endings: list[tuple[float, str]] = []
        """When and by which exception each ended, attempts that failed included."""


class Program:
    """Telemetry and reports to the laboratory's server, from :meth:`start` until :meth:`stop`.

    :param name: what people call it
    :param tag: a word that begins each of its datagrams
    :param server: host, UDP port and TCP port
    """

    def __init__(self, name: str, tag: str, sockets: Sockets, server: tuple[str, int, int]) -> None:
        self.name = name
        self.tag = tag
        self.telemetry: Telemetry = Telemetry()
        self.reports: Reports = Reports()
        self._sockets = sockets
        self._server = server
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        host, udp, _ = self._server
        self._stopping = False
        await self._sockets.datagram(lambda: self.telemetry, host, udp)
        self._tasks = [
            asyncio.create_task(self._send_telemetry(), name="bindsock demo telemetry"),
            asyncio.create_task(self._report(), name="bindsock demo report"),
        ]

    async def restart(self, sockets: Sockets) -> None:
        """What its operator does: end it and start it again."""
        await self.stop()
        self._sockets = sockets
        await self.start()

    async def stop(self, *, drain: float = 0.0) -> None:
        """End it.

        :param drain: seconds to wait for the last answers
        """
        self._stopping = True
        drained = time.monotonic() + drain
        if self._tasks:
            telemetry, report = self._tasks
            telemetry.cancel()
            try:
                await asyncio.wait([report], timeout=drain)
            finally:
                report.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.sleep(drained - time.monotonic())
        if self.telemetry.transport is not None:
            self.telemetry.transport.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    @property
    def _all_reported(self) -> bool:
        """Whether it is to stop, and no report waits for an answer."""
        return self._stopping and len(self.reports.answered) == len(self.reports.sent)

    async def _send_telemetry(self) -> None:
        due = time.monotonic()
        while True:
            self.telemetry.send(self.tag)
            due += INTERVAL
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _report(self) -> None:
        host, _, tcp = self._server
        while not self._all_reported:
            writer: asyncio.StreamWriter | None = None
            try:
                reader, writer = await self._sockets.stream(host, tcp)
                self.reports.connections.append(writer.get_extra_info("sockname")[:2])
                await self._converse(reader, writer)
            except OSError as error:
                self.reports.endings.append((time.monotonic(), type(error).__name__))
                if writer is None:
                    await asyncio.sleep(_RETRY)
            finally:
                if writer is not None:
                    writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reports = self.reports
        await _line(reader)
        while not self._all_reported:
            if len(reports.sent) == len(reports.answered):
                reports.sent.append(time.monotonic())
            writer.write(f"{self.tag} report {len(reports.sent)}\n".encode())
            await _line(reader)
            reports.answered.append(time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL):
                    await _line(reader)  # nothing is due: this notices at once when the connection ends


async def _line(reader: asyncio.StreamReader) -> None:
    if not await reader.readline():
        raise ConnectionResetError("the server closed the connection")


@contextlib.asynccontextmanager
async def running(*programs: Program) -> AsyncIterator[None]:
    """Run programs during the block."""
    try:
        for program in programs:
            await program.start()
        yield
    finally:
        for program in programs:
            await program.stop()
