"""Helpers for the tests of multipath connections in the laboratory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

import bindsock
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.stream.multipath import departures
from bindsock.testing.lab import Lab
from tests.tls import tls_client_context, tls_server_context

SIZE = 50 << 20


class Source:
    """A server in the laboratory that sends or receives a long stream with a known digest, or echoes lines."""

    def __init__(self, lab: Lab, *, multipath: bool = True, family: socket.AddressFamily = socket.AF_INET) -> None:
        with lab.inside("server"):
            self.listener = socket.socket(family, socket.SOCK_STREAM, mptcp.IPPROTO_MPTCP if multipath else 0)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((lab.server.address(family), 0))
            self.listener.listen()
        self.address = self.listener.getsockname()[:2]
        self.block = os.urandom(1 << 20)
        self.digest = hashlib.sha256(self.block * (SIZE >> 20)).hexdigest()
        self.server: asyncio.Server | None = None
        self.rate = 0.0
        self.tls: dict[str, Any] = {}
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, sock=self.listener, limit=1 << 20)

    async def start_tls(self, lab: Lab) -> None:
        """Use TLS from now on."""
        assert self.server is not None
        again = self.listener.dup()
        self.server.close()
        self.server = await asyncio.start_server(self._serve, sock=again, ssl=tls_server_context(lab.server.name), limit=1 << 20)
        self.tls = {"ssl": tls_client_context(), "server_hostname": lab.server.name}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line == b"send\n":
                    for _ in range(SIZE >> 20):
                        writer.write(self.block)
                        await writer.drain()
                        await asyncio.sleep(self.rate)
                elif line == b"receive\n":
                    received, wrong = 0, "none"
                    while received < SIZE and (data := await reader.read(1 << 16)):
                        if wrong == "none" and data != (right := self._part(received, len(data))):
                            wrong = self._difference(received, data, right)
                        received += len(data)
                    writer.write(f"{received} bytes, wrong: {wrong}\n".encode())
                else:
                    writer.write(line)
        writer.close()

    def _part(self, start: int, length: int) -> bytes:
        """What the stream has there."""
        first = start % len(self.block)
        return (self.block[first:] + self.block)[:length]

    def _difference(self, start: int, data: bytes, right: bytes) -> str:
        """Where received bytes differ from the right ones, and from which part of the block they may come."""
        differing = [i for i, (one, other) in enumerate(zip(data, right, strict=True)) if one != other]
        first, last = differing[0], differing[-1]
        origin = (self.block * 2).find(data[first : first + 32])
        place = (start + first) % len(self.block)
        return f"{len(differing)} from {start + first} to {start + last}, {place} of the block, from {origin} of it"

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)


Serve: TypeAlias = Callable[..., Awaitable[Source]]


@pytest_asyncio.fixture
async def serve(lab: Lab) -> AsyncIterator[Serve]:
    """Starts a :class:`Source` with these options, which is closed even if the test fails."""
    made: list[Source] = []

    async def start(**options: Any) -> Source:
        made.append(Source(lab, **options))
        await made[-1].start()
        return made[-1]

    yield start
    for each in made:
        await each.close()


@pytest_asyncio.fixture
async def source(lab: Lab, serve: Serve) -> Source:
    lab.vpn_up("metric")
    return await serve()


@pytest.fixture(autouse=True)
def lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the repetition of what was lost: the laboratory loses nothing on interfaces that both work."""
    monkeypatch.setattr(departures, "QUIET", 0.02)


@pytest.fixture(params=["kernel", "userspace"])
def path_manager(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The path manager of the host's namespace."""
    Path("/proc/sys/net/mptcp/pm_type").write_text("1" if request.param == "userspace" else "0", encoding="ascii")
    return str(request.param)


MOVING = """
import asyncio, os, sys
import bindsock
async def moved():
    reader, writer = await bindsock.open_connection(sys.argv[1], int(sys.argv[2]), multipath=True)
    writer.write(b"hello\\n")
    await reader.readline()
    print("connected", flush=True)
    while bindsock.interface_of(writer) != "eth0":
        await asyncio.sleep(0.01)
    return reader, writer
"""
"""The beginning of a program that opens a connection, reports it, and waits until the connection has moved."""


@contextlib.asynccontextmanager
async def program(code: str, *arguments: object) -> AsyncIterator[tuple[asyncio.subprocess.Process, Lines]]:
    """Run another Python program: yields its process and its lines, and kills it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *map(str, arguments),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(bindsock.__file__).parents[1], start_new_session=True,
    )  # fmt: skip
    try:
        yield process, Lines(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and its child processes, which would keep its output open
        await process.wait()


class Lines:
    """A program's input and output, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    def tell(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())

    async def next(self) -> str:
        return (await asyncio.wait_for(self._stdout.readline(), 20)).decode().strip()


@contextlib.contextmanager
def closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def several(source: Source, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Multipath connections over which a line has come back. They are aborted at the end."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(await bindsock.open_connection(*source.address, multipath=True))
            stack.enter_context(closing(connections[-1][1]))
        for connected in connections:
            await ping(connected, b"before\n")
        yield connections


def endpoints(lab: Lab) -> str:
    return lab.ip("mptcp", "endpoint", "show").strip()


def interfaces(writer: asyncio.StreamWriter) -> list[str | None]:
    return [subflow.interface for subflow in bindsock.multipath_of(writer).subflows]


def counted_by_peer(source: Source) -> list[int]:
    """How many subflows the kernel of a source has for each connection."""
    return [len(mptcp.states(writer.get_extra_info("socket")) or ()) for writer in source.writers]


async def ping(connected: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> None:
    reader, writer = connected
    writer.write(text)
    async with asyncio.timeout(20):
        assert await reader.readline() == text
