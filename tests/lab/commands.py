"""A server that applies numbered commands, and a client that loses none and repeats none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

from bindsock.testing.lab import Lab
from tests.waiting import until


class Commands:
    """Applies ``do N`` after ``login``, and answers ``done N``. It remembers the commands across connections, as a database does.

    The answer to ``login`` is the last applied command.
    """

    def __init__(self) -> None:
        self.applied: list[int] = []
        self.refused: list[int] = []
        self.connections = 0
        self.sources: list[str] = []
        self.open: set[asyncio.StreamWriter] = set()
        self.address = ("", 0)
        self._server: asyncio.Server | None = None

    async def listen(
        self, lab: Lab, *, tls: ssl.SSLContext | None = None, family: socket.AddressFamily = socket.AF_INET, port: int = 0
    ) -> None:
        with lab.inside("server"):
            listener = socket.create_server((lab.server.address(family), port), family=family, backlog=1024)
        self.address = listener.getsockname()[:2]
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=tls)

    def stop_listening(self) -> None:
        """Accept no more connections. The open ones stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        self.sources.append(writer.get_extra_info("peername")[0])
        logged_in = False
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                word, _, argument = line.decode().strip().partition(" ")
                if word == "login":
                    logged_in = True
                    writer.write(b"welcome %d\n" % (len(self.applied) - 1))
                elif logged_in and int(argument) == len(self.applied):
                    self.applied.append(int(argument))
                    writer.write(b"done %d\n" % int(argument))
                else:
                    self.refused.append(int(argument))
        except OSError:
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    def kill(self) -> None:
        """End the server and all its connections."""
        self.stop_listening()
        for writer in list(self.open):
            writer.transport.abort()

    async def close(self) -> None:
        self.kill()
        await until(lambda: not self.open, seconds=20)
        await asyncio.sleep(0.02)


class Client:
    """Sends commands, several before their answers arrive. On a new connection, it repeats the unanswered ones."""

    def __init__(self, window: int = 20) -> None:
        self.unacknowledged: dict[int, bytes] = {}
        self.acknowledged = 0
        self.next = 0
        self.count = 0.0
        self.reconnected = 0
        self._room = asyncio.Semaphore(window)
        self.writer: asyncio.StreamWriter
        self.reader: asyncio.StreamReader

    async def on_reconnect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        writer.write(b"login\n")
        welcome = await reader.readuntil()
        self._confirm_to(int(welcome.split()[1]))
        writer.writelines(list(self.unacknowledged.values()))
        self.reconnected += 1

    async def run(self, connect: Any, count: float, *, interval: float = 0.0) -> None:
        """Send commands until ``count`` of them are applied.

        :param count: the number of commands; :attr:`count` may be lowered during the run
        :param interval: seconds between two commands
        """
        self.count = count
        self.reader, self.writer = await connect(on_reconnect=self.on_reconnect)
        self.writer.write(b"login\n")
        await self.reader.readuntil()
        listening = asyncio.create_task(self._listen())
        try:
            while self.next < self.count:
                await self._room.acquire()
                command = b"do %d\n" % self.next
                self.unacknowledged[self.next] = command
                self.next += 1
                self.writer.write(command)
                await self.writer.drain()
                if interval:
                    await asyncio.sleep(interval)
            while self.unacknowledged:
                await asyncio.wait([listening], timeout=0.01)
                if listening.done():
                    await listening
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _listen(self) -> None:
        while True:
            line = await self.reader.readuntil()
            self._confirm_to(int(line.split()[1]))

    def _confirm_to(self, number: int) -> None:
        for done in [n for n in self.unacknowledged if n <= number]:
            del self.unacknowledged[done]
            self._room.release()
