"""A program without any privilege that keeps a connection of every kind busy, and reports the state of each.

Its argument is a JSON object with the fields of :class:`Where`. It answers each line of its input with one line: ``state`` with
the state of every connection, ``fresh`` with the interfaces of new ones. At the end of input it waits for the missing replies,
and reports the state once more, with the number of datagrams that are counted as lost on a device.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - the user nobody cannot import it later
import encodings.idna  # noqa: F401
import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from aioquic.quic.configuration import QuicConfiguration

import bindsock
import bindsock.default
import bindsock.kernel.linux
from bindsock.integrations import aioquic
from bindsock.testing.lab import Server
from tests.integrations.servers import content
from tests.lab.commands import Client
from tests.lab.streaming import Counting
from tests.unprivileged import drop_privileges

RATE = 200
"""The maximum number of datagrams per second in each family."""
INTERVAL = 0.03
"""Seconds between two lines."""
_LATE = 0.5
"""Seconds to wait for the last replies."""
_PATIENCE = 5.0
_ANSWER = 1000


@dataclass(frozen=True, slots=True)
class Echoes:
    """The laboratory's server."""

    hosts: list[str]
    """Its IPv4 and its IPv6 address."""
    udp: int
    tcp: int

    @classmethod
    def of(cls, server: Server) -> Self:
        return cls([server.ipv4, server.ipv6], server.udp_port, server.tcp_port)


@dataclass(frozen=True, slots=True)
class Where:
    """The addresses of all servers."""

    echoes: Echoes
    commands: list[tuple[str, int]]
    """The servers for :class:`Commands`, of IPv4 and IPv6."""
    quic: tuple[str, int]
    authority: str


@dataclass(slots=True)
class State:
    """The state of a connection."""

    done: int = 0
    """The number of answers received."""
    interface: str | None = None
    ended: list[str] = field(default_factory=list)
    """The errors that ended it; it was opened again after each."""
    reconnected: int = 0
    """The number of calls of ``on_reconnect``."""
    sent: int = 0
    unanswered: list[int] = field(default_factory=list)
    """The datagrams without a reply so far."""


class Datagrams:
    """Sends datagrams, each of which the server answers."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._sent = 0
        self._transport: Any = None
        self._protocol: Counting | None = None
        self._ending = False

    async def run(self) -> None:
        self._transport, self._protocol = await bindsock.create_datagram_endpoint(Counting, remote_addr=self._address)
        while not self._ending:
            # Do not catch up on a busy machine: a burst would be sent before the loop reads the kernel's events.
            self._transport.sendto(b"%d" % self._sent)
            self._sent += 1
            await asyncio.sleep(1 / RATE)
        await asyncio.sleep(_LATE)
        self._transport.close()

    def end(self) -> None:
        self._ending = True

    def state(self) -> State:
        if self._protocol is None:
            return State()
        replies = self._protocol.replies
        return State(
            done=len(replies),
            interface=self._transport.get_extra_info("interface"),
            ended=list(self._protocol.errors),
            sent=self._sent,
            unanswered=[n for n in range(self._sent) if n not in replies],
        )


class Lines:
    """A line protocol on a plain stream, which is opened again when it ends."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._state = State()
        self._ending = False

    async def run(self) -> None:
        while not self._ending:
            reader, writer = await bindsock.open_connection(*self._address)
            self._state.interface = bindsock.interface_of(writer)
            try:
                await reader.readline()
                while not self._ending:
                    line = b"%d\n" % self._state.done
                    writer.write(line)
                    assert await reader.readline() == line
                    self._state.done += 1
                    await asyncio.sleep(INTERVAL)
            except OSError as error:
                self._state.ended.append(type(error).__name__)
            writer.close()

    def end(self) -> None:
        self._ending = True

    def state(self) -> State:
        return self._state


class Commanding:
    """A line protocol on a stream with ``on_reconnect``."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._client = Client()

    async def run(self) -> None:
        async def connect(**options: Any) -> Any:
            return await bindsock.open_connection(*self._address, **options)

        await self._client.run(connect, float("inf"), interval=INTERVAL)
        self._client.writer.close()

    def end(self) -> None:
        self._client.count = self._client.next

    def state(self) -> State:
        client = self._client
        interface = client.writer.get_extra_info("interface") if client.next else None
        return State(client.next - len(client.unacknowledged), interface, reconnected=client.reconnected, sent=client.next)


class Quic:
    """Requests and responses on one QUIC connection."""

    def __init__(self, host: str, port: int, authority: str) -> None:
        self._address = (host, port)
        self._configuration = QuicConfiguration(alpn_protocols=["lab"])
        self._configuration.load_verify_locations(cadata=authority.encode())
        self._state = State()
        self._ending = False

    async def run(self) -> None:
        async with aioquic.connect(*self._address, configuration=self._configuration) as client:
            while not self._ending:
                reader, writer = await client.create_stream()
                writer.write(b"%d" % _ANSWER)
                writer.write_eof()
                assert await reader.read() == content(_ANSWER)
                self._state.done += 1
                await asyncio.sleep(INTERVAL)

    def end(self) -> None:
        self._ending = True

    def state(self) -> State:
        return self._state


async def fresh(echoes: Echoes, **options: Any) -> list[tuple[str, str | None, str]]:
    """Open a stream and an endpoint in each family. Returns the kind, the interface, and the source address that the server saw.

    :param options: arguments for the stream
    """
    result = []
    for host in echoes.hosts:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await bindsock.open_connection(host, echoes.tcp, **options)
            result.append((f"tcp {host}", bindsock.interface_of(writer), (await reader.readline()).split()[1].decode()))
            writer.write_eof()
            await reader.read()
            writer.close()
        replies: asyncio.Queue[bytes] = asyncio.Queue()

        class Asking(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any, replies: asyncio.Queue[bytes] = replies) -> None:
                replies.put_nowait(data)

        transport, _ = await bindsock.create_datagram_endpoint(Asking, remote_addr=(host, echoes.udp))
        transport.sendto(b"fresh")
        async with asyncio.timeout(_PATIENCE):
            source = (await replies.get()).split()[0].decode()
        result.append((f"udp {host}", transport.get_extra_info("interface"), source))
        transport.close()
    return result


async def main(where: Where) -> None:
    connections: dict[str, Datagrams | Lines | Commanding | Quic] = {}
    for version, host, commands in zip((4, 6), where.echoes.hosts, where.commands, strict=True):
        connections[f"datagrams {version}"] = Datagrams(host, where.echoes.udp)
        connections[f"plain {version}"] = Lines(host, where.echoes.tcp)
        connections[f"on_reconnect {version}"] = Commanding(*commands)
    connections["quic"] = Quic(*where.quic, where.authority)

    def states() -> dict[str, Any]:
        return {name: asdict(connection.state()) for name, connection in connections.items()}

    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with asyncio.TaskGroup() as group:
        for connection in connections.values():
            group.create_task(connection.run())
        while order := await orders.readline():
            if order == b"fresh\n":
                try:
                    answer: Any = await fresh(where.echoes)
                except (OSError, TimeoutError) as error:
                    answer = repr(error)
            else:
                answer = states()
            print(json.dumps(answer), flush=True)
        for connection in connections.values():
            connection.end()
    print(json.dumps({"states": states(), "lost_on_device": bindsock.statistics().lost_on_device}), flush=True)


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    arguments = Where(Echoes(**fields.pop("echoes")), **fields)
    drop_privileges()
    asyncio.run(main(arguments))
