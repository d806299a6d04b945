"""The programs' conversations with the server. Each one detects faults: lost, repeated or reordered data, and false ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import bindsock
from bindsock.dial.race import Race

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
WINDOW = 8
"""The maximum number of commands without an answer yet."""
_RETRY = 0.1
_KEPT = 20


class FalseEnd(EOFError):
    """The connection reported an orderly end, although the server never ends one."""


class Flow:
    """A conversation that continues until it is stopped.

    :param name: unique in its program
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.progress = 0
        """The number of answers from the server."""
        self.errors: Counter[str] = Counter()
        """The number of errors that a program must expect, by type."""
        self.faults: list[str] = []
        """Faults: events that must not happen."""
        self._marked = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._guarded(), name=self.name)

    async def stop(self) -> None:
        """End the conversation and close all its connections."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def mark(self) -> None:
        """Make :attr:`stuck` true until the server answers again."""
        self._marked = self.progress

    @property
    def stuck(self) -> bool:
        return self.progress == self._marked

    @property
    def state(self) -> str:
        """A readable description of the conversation's state."""
        return "no endpoint"

    @property
    def place(self) -> str:
        """The coroutines in which it waits, the outermost first."""
        names = [
            f"{waiting.cr_code.co_name}:{waiting.cr_frame.f_lineno if waiting.cr_frame is not None else 0}"
            for waiting in self._waiting()
        ]
        return " > ".join(names[2:])

    def waiting_ports(self) -> list[int]:
        """The local ports of the sockets that wait for the first answer."""
        callers = (waiting.cr_frame.f_locals.get("self") for waiting in self._waiting() if waiting.cr_frame is not None)
        attempts = [attempt for race in callers if isinstance(race, Race) for attempt in race._connecting]
        return [attempt.sock.getsockname()[1] for attempt in attempts if attempt.sock is not None]

    def _waiting(self) -> Iterator[Any]:
        """The coroutines in which it waits, the outermost first."""
        waiting: Any = self._task.get_coro() if self._task is not None else None
        while hasattr(waiting, "cr_code"):
            yield waiting
            waiting = waiting.cr_await

    async def run(self) -> None:
        raise NotImplementedError

    async def _guarded(self) -> None:
        try:
            await self.run()
        except Exception as error:  # noqa: BLE001 - any error that ends a conversation is a fault
            self.fault(f"{type(error).__name__}: {error}")

    def failed(self, error: OSError) -> None:
        """Count an error that programs must expect."""
        self.errors[str(error) if type(error) is OSError else type(error).__name__] += 1
        if isinstance(error, bindsock.FirewallBlocked):
            self.fault(f"there is no firewall here: {error}")

    def fault(self, text: str) -> None:
        if len(self.faults) < _KEPT:
            self.faults.append(text)


class Sending(Flow):
    """A conversation by datagrams."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.accepted = 0
        """The number of datagrams that the transports have accepted."""


class Datagrams(Sending, asyncio.DatagramProtocol):
    """Sends numbered datagrams in pairs, without waiting for the replies.

    :param program: the program's name, with which each datagram begins
    :param peer: the server's address and port
    :param connected: whether the endpoint is connected to the peer; if not, each datagram has its destination
    :param interval: seconds between two of them
    """

    def __init__(self, name: str, program: str, peer: tuple[str, int], *, connected: bool, interval: float) -> None:
        super().__init__(name)
        self._tag = f"{program}.{name}"
        self._peer = peer
        self._connected = connected
        self._interval = interval
        self._answered = 0
        self._transport: Any = None
        self._stopping = False

    async def run(self) -> None:
        family = socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET
        try:
            while self._transport is None:
                try:
                    if self._connected:
                        await bindsock.create_datagram_endpoint(lambda: self, remote_addr=self._peer)
                    else:
                        await bindsock.create_datagram_endpoint(lambda: self, family=family)
                except OSError as error:
                    self.failed(error)
                    await asyncio.sleep(_RETRY)
            while True:
                # The second of a pair takes the transport's short cut: the first has sampled the device's drops.
                for _ in range(2):
                    self._transport.sendto(f"{self._tag} {self.accepted}".encode(), None if self._connected else self._peer)
                    self.accepted += 1
                await asyncio.sleep(2 * self._interval)
        finally:
            self._stopping = True
            if self._transport is not None:
                self._transport.close()

    @property
    def stuck(self) -> bool:
        return self._answered < self._marked

    @property
    def state(self) -> str:
        return _state(self._transport)

    def waiting_ports(self) -> list[int]:
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return [name[1]] if name is not None else []

    def mark(self) -> None:
        self._marked = self.accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopping:
            self.fault(f"the endpoint was closed: {exc!r}")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        tag, number = data.split()[2:]
        if tag.decode() != self._tag:
            self.fault(f"received {data!r}, which is another's")
        self.progress += 1
        self._answered = max(self._answered, int(number))

    def error_received(self, exc: Exception) -> None:
        self.errors[type(exc).__name__] += 1


class ShortDatagrams(Sending):
    """Opens an endpoint for a few datagrams, and closes or aborts it at once, after a moment, or while datagrams are held."""

    def __init__(self, name: str, program: str, peer: tuple[str, int], *, interval: float) -> None:
        super().__init__(name)
        self._tag = f"{program}.{name}"
        self._peer = peer
        self._interval = interval

    async def run(self) -> None:
        ways = itertools.product((1, 2, 100), ("close", "abort"))
        for pairs, end in itertools.cycle(ways):
            try:
                transport, _ = await bindsock.create_datagram_endpoint(lambda: _Replies(self), remote_addr=self._peer)
            except OSError as error:
                self.failed(error)
                await asyncio.sleep(_RETRY)
                continue
            try:
                for _ in range(pairs):
                    for _ in range(2):
                        transport.sendto(f"{self._tag} {self.accepted}".encode())
                        self.accepted += 1
                    if transport.get_write_buffer_size():
                        break
                    await asyncio.sleep(self._interval)
            finally:
                getattr(transport, end)()
            await asyncio.sleep(self._interval)


class _Replies(asyncio.DatagramProtocol):
    """Counts the replies to an endpoint of :class:`ShortDatagrams`."""

    def __init__(self, flow: ShortDatagrams) -> None:
        self._flow = flow

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._flow.progress += 1

    def error_received(self, exc: Exception) -> None:
        self._flow.errors[type(exc).__name__] += 1


class Commands:
    """The client's record of numbered commands: which were sent, which were answered, and which answers are valid now.

    :param name: the client's name, unique at the server
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = self.done = 0

    @property
    def login(self) -> bytes:
        return f"login {self.name}\n".encode()

    def next(self) -> bytes | None:
        """The next command to send, ``None`` if too many are unanswered."""
        if self.said - self.done >= WINDOW:
            return None
        self.said += 1
        return b"do %d\n" % self.said

    def unacknowledged(self) -> list[bytes]:
        return [b"do %d\n" % number for number in range(self.done + 1, self.said + 1)]

    def answered(self, line: bytes) -> bool:
        """Record an answer. Returns whether it answers a command for the first time.

        :raises ValueError: the answer is not valid now
        """
        word, _, argument = line.decode().strip().partition(" ")
        number = int(argument)
        if word not in ("welcome", "done", "again") or number > self.said:
            raise ValueError(f"{line!r} after {self.done} of {self.said}")
        if word == "done" and number > self.done + 1:
            raise ValueError(f"{line!r} after {self.done}: an answer is lost")
        new = number > self.done
        self.done = max(self.done, number)
        return new


class Stream(Flow):
    """Sends numbered commands over a stream, and opens a new one when it fails. With ``on_reconnect`` it must not fail.

    :param client: the client's name at the server
    :param keywords: arguments for ``bindsock.open_connection``
    :param replaced: whether to use ``on_reconnect``
    :param interval: seconds between two commands
    """

    def __init__(
        self, name: str, client: str, address: tuple[str, int], *, interval: float, replaced: bool = False, **keywords: Any
    ) -> None:
        super().__init__(name)
        self._commands = Commands(client)
        self._address = address
        self._keywords = keywords | ({"on_reconnect": self._on_reconnect} if replaced else {})
        self._interval = interval
        self._writer: asyncio.StreamWriter | None = None

    @property
    def state(self) -> str:
        return f"{_state(self._writer)}, {self._commands.done} of {self._commands.said} commands done"

    async def run(self) -> None:
        while True:
            self._writer = None
            try:
                reader, writer = await bindsock.open_connection(*self._address, **self._keywords)
            except OSError as error:
                self.failed(error)
                await asyncio.sleep(_RETRY)
                continue
            self._writer = writer
            try:
                # Do not wait for the answer: if the connection is replaced before it arrives, the hook is called again.
                if not writer.is_closing():
                    writer.writelines([self._commands.login, *self._commands.unacknowledged()])
                await self._converse(reader, writer)
            except OSError as error:
                self.failed(error)
                await asyncio.sleep(_RETRY)
            except (FalseEnd, ValueError) as error:
                self.fault(str(error))
                await asyncio.sleep(_RETRY)
            finally:
                writer.close()

    async def _on_reconnect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        self.errors["replaced"] += 1
        try:
            await self._log_in(reader, writer)
        except FalseEnd as error:
            self.fault(f"in the hook: {error}")
            raise

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._commands.login)
        self._commands.answered(await _line(reader))
        writer.writelines(self._commands.unacknowledged())

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listening = asyncio.get_running_loop().create_task(self._listen(reader))
        try:
            while not listening.done():
                # uvloop raises RuntimeError if something is written to a connection that has failed.
                if not writer.is_closing() and (command := self._commands.next()) is not None:
                    writer.write(command)
                await asyncio.wait([listening], timeout=self._interval)
            await listening
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            if self._commands.answered(await _line(reader)):
                self.progress += 1


def _state(connection: Any) -> str:
    """A connection's interface and subflows, and whether it is closed."""
    if connection is None:
        return "dialling"
    multipath = bindsock.multipath_of(connection) if isinstance(connection, asyncio.StreamWriter) else None
    closing = ", closing" if connection.is_closing() else ""
    return f"by {bindsock.interface_of(connection)}{closing}" + (f", {multipath}" if multipath else "")


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise FalseEnd(f"the end of the stream after {line!r}")
    return line


class ReplacedProtocol(Flow, asyncio.Protocol):
    """Sends numbered commands by a protocol with ``connection_replaced``."""

    def __init__(self, name: str, client: str, address: tuple[str, int], *, interval: float, **keywords: Any) -> None:
        super().__init__(name)
        self._commands = Commands(client)
        self._address = address
        self._interval = interval
        self._keywords = keywords
        self._buffer = b""
        self._lost: asyncio.Future[None]
        self._stopping = False
        self._transport: asyncio.Transport | None = None

    @property
    def state(self) -> str:
        return f"{_state(self._transport)}, {self._commands.done} of {self._commands.said} commands done"

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._transport = None
            self._lost = loop.create_future()
            try:
                transport, _ = await bindsock.create_connection(lambda: self, *self._address, **self._keywords)
            except OSError as error:
                self.failed(error)
                await asyncio.sleep(_RETRY)
                continue
            self._transport = transport
            try:
                self._log_in(transport)
                while not self._lost.done():
                    if not transport.is_closing() and (command := self._commands.next()) is not None:
                        transport.write(command)
                    await asyncio.wait([self._lost], timeout=self._interval)
            except asyncio.CancelledError:
                self._stopping = True
                raise
            finally:
                transport.close()
            await asyncio.sleep(_RETRY)

    def connection_replaced(self, transport: asyncio.Transport, unread: bytes) -> None:
        self.errors["replaced"] += 1
        self._log_in(transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            try:
                self.progress += self._commands.answered(line)
            except ValueError as error:
                self.fault(str(error))

    def eof_received(self) -> None:
        self.fault("the end of the stream was received")

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError):
            self.failed(exc)
        elif not self._stopping:
            self.fault(f"the connection was closed: {exc!r}")
        if not self._lost.done():
            self._lost.set_result(None)

    def _log_in(self, transport: asyncio.Transport) -> None:
        self._buffer = b""
        transport.write(self._commands.login)
        transport.writelines(self._commands.unacknowledged())


class Churn(Flow):
    """Opens a connection for each question, and closes it in each possible way in turn, or cancels the dial."""

    def __init__(self, name: str, client: str, address: tuple[str, int], *, interval: float, **keywords: Any) -> None:
        super().__init__(name)
        self._login = Commands(client).login
        self._patience = itertools.cycle((0.0, 0.001, 0.002, 0.004, 0.008, 0.016))
        self._address = address
        self._interval = interval
        self._keywords = keywords
        self._now = "nothing"
        self._since = 0.0

    @property
    def state(self) -> str:
        return f"{self._now} for {asyncio.get_running_loop().time() - self._since:.1f} s"

    async def run(self) -> None:
        ways: tuple[Callable[[], Awaitable[None]], ...] = (
            self._by_writer,
            self._by_abort,
            self._by_protocol,
            self._by_socket,
            self._by_cancelled_dial,
        )
        while True:
            for way in ways:
                self._now, self._since = way.__name__.strip("_"), asyncio.get_running_loop().time()
                try:
                    await way()
                    self.progress += 1
                except OSError as error:
                    self.failed(error)
                except FalseEnd as error:
                    self.fault(f"{way.__name__}: {error}")
                await asyncio.sleep(self._interval)

    async def _by_writer(self) -> None:
        reader, writer = await bindsock.open_connection(*self._address, **self._keywords)
        try:
            writer.write(self._login)
            await _line(reader)
        finally:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _by_abort(self) -> None:
        reader, writer = await bindsock.open_connection(*self._address, **self._keywords)
        try:
            writer.write(self._login)
            await _line(reader)
        finally:
            writer.transport.abort()

    async def _by_protocol(self) -> None:
        transport, _ = await bindsock.create_connection(asyncio.Protocol, *self._address, **self._keywords)
        transport.write(self._login)
        transport.close()

    async def _by_socket(self) -> None:
        sock = await bindsock.connect(*self._address)
        sock.close()

    async def _by_cancelled_dial(self) -> None:
        dialling = asyncio.get_running_loop().create_task(bindsock.open_connection(*self._address, **self._keywords))
        dialling.add_done_callback(_close_dialled)  # this conversation itself may be stopped before it looks again
        try:
            await asyncio.wait([dialling], timeout=next(self._patience))
        finally:
            dialling.cancel()
        await asyncio.wait([dialling])
        if not dialling.cancelled():
            dialling.result()


def _close_dialled(dialling: asyncio.Task[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    if not dialling.cancelled() and dialling.exception() is None:
        dialling.result()[1].close()
