"""A library that does not use bindsock, but bypasses the VPN: it runs on bindsock's event loop.

Use it for libraries that make connections by loop.create_connection(): asyncpg, aiomysql, nats-py, aiosmtplib.
LineClient stands for such a library: it is a client for servers that greet and then answer line by line (SMTP, POP3, FTP).
"""

import argparse
import asyncio
from collections.abc import Sequence
from typing import cast

import bindsock


class LineClient(asyncio.Protocol):
    """A client that does not mention bindsock."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._error: Exception | None = None

    @classmethod
    async def connect(cls, host: str, port: int) -> "LineClient":
        _, client = await asyncio.get_running_loop().create_connection(cls, host, port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._lines.put_nowait(bytes(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc
        self._lines.put_nowait(None)

    async def line(self) -> str:
        line = await self._lines.get()
        if line is None:
            raise self._error or ConnectionResetError("the server closed the connection")
        return line.decode()

    async def ask(self, command: str) -> str:
        self.transport.write(command.encode() + b"\r\n")
        return await self.line()


async def talk(host: str, port: int, commands: Sequence[str]) -> None:
    client = await LineClient.connect(host, port)
    print("connected by", bindsock.interface_of(client.transport))
    print(await client.line())
    for command in commands:
        print(await client.ask(command))
    client.transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak to a server of a line protocol, bypassing the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("command", nargs="*")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop")
    arguments = parser.parse_args()
    loop_factory: type[asyncio.AbstractEventLoop] = bindsock.EventLoop
    if arguments.uvloop:
        import uvloop

        loop_factory = bindsock.loop_factory(uvloop.Loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:  # from Python 3.12: asyncio.run(..., loop_factory=loop_factory)
        runner.run(talk(arguments.host, arguments.port, arguments.command))


if __name__ == "__main__":
    main()
