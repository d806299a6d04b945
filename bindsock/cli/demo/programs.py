"""The program that is observed: it sends telemetry over UDP and reports over TCP.

All programs run the same code; they only differ in how they make their sockets. A datagram is sent every few milliseconds,
whether earlier ones were answered or not. A report is sent over TCP, and the next one after the server has answered. When the
connection fails, the program connects again and repeats the report.
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
_FURTHER_INTERVAL = 0.02
"""Seconds between the datagrams that are sent at the end, until one of them is answered."""
_SO_BINDTODEVICE = 25  # linux include/uapi/asm-generic/socket.h

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Sockets(Protocol):
    """Makes the sockets of a program."""

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport: ...

    async def stream(self, host: str, port: int) -> Streams: ...


class BindsockSockets:
    """Sockets of bindsock, which follow the effective interface."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport:
        transport, _ = await self._factory.create_datagram_endpoint(protocol, remote_addr=(host, port))
        return transport

    async def stream(self, host: str, port: int) -> Streams:
        # "auto" would keep a working connection on an expensive interface until it is idle, or for 30 seconds.
        return await self._factory.open_connection(host, port, better_path="abort")


class PlainSockets:
    """Sockets of asyncio."""

    async def datagram(self, protocol: Callable[[], Telemetry], host: str, port: int) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, remote_addr=(host, port))
        return transport

    async def stream(self, host: str, port: int) -> Streams:
        return await asyncio.open_connection(host, port)


class HandBoundSockets:
    """Sockets of asyncio, each bound to one interface when it is made, as programs do to bypass a VPN without bindsock."""

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
    """Records what is sent and what is answered. The server answers with ``b"<address> <port> "`` and what it received."""

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
    """Records the reports over TCP, and how the connections ended."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.connections: list[tuple[str, int]] = []
        """The local address and port of each connection."""
        self.endings: list[tuple[float, str]] = []
        """The time and the exception with which each connection ended, or the attempt to connect failed."""


class Program:
    """Telemetry and reports to the laboratory's server, from :meth:`start` until :meth:`stop`.

    :param name: the name for people
    :param tag: the word that each of its datagrams begins with
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
        """Stop the program and start it again, as its operator would."""
        await self.stop()
        self._sockets = sockets
        await self.start()

    async def stop(self, *, drain: float = 0.0) -> None:
        """Stop the program.

        :param drain: how long to wait for the last answers at most, in seconds
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
        await self._last_answers(drained)
        if self.telemetry.transport is not None:
            self.telemetry.transport.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _last_answers(self, until: float) -> None:
        """Wait until a further datagram is answered: the others have been answered by then, or are lost."""
        further = len(self.telemetry.sent)
        while time.monotonic() < until and max(self.telemetry.answered, default=-1) < further:
            self.telemetry.send(self.tag)
            await asyncio.sleep(_FURTHER_INTERVAL)

    @property
    def _all_reported(self) -> bool:
        """Whether the program is stopping and all reports have been answered."""
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
                    await _line(reader)  # no line is expected: this notices the end of the connection at once


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
