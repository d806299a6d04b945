"""The client and the server of a chat that loses no message and shows none twice while the network changes.

Use it as a pattern for your own protocol whose connection may be replaced. Each side numbers its messages and keeps them. On a
new connection the client logs in again and sends the last number that it has received, and the server answers with the last
number that it has received; then each sends the messages that the other lacks, and drops the others. Every line is WORD NUMBER
TEXT:

    login SEEN SESSION NICK    the client has received the room's messages up to this one
    say NUMBER TEXT            a message; the session numbers its own from 1
    have NUMBER                the acknowledgement: the server has the session's messages up to this one
    said NUMBER NICK: TEXT     a message of another user; the room numbers all of them from 1
    missed NUMBER              the server no longer has the messages up to this one
    error 0 TEXT               the server refuses, and closes the connection
"""

import argparse
import asyncio
import os
import re
import secrets
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import bindsock

HISTORY = 1000
"""How many messages the server keeps. A client that missed more is told so."""
WINDOW = 50
"""How many unacknowledged messages a client may have sent."""
LONGEST = 1000
"""The largest message, in bytes."""

LINE = re.compile(rb"(\w+) (\d{1,18}) ?(.*)\n")


class Refused(Exception):
    """The other side sent something invalid, or refused.

    This is not an OSError: if a hook raises OSError and its connection has ended, another connection is tried.
    """


async def receive(reader: asyncio.StreamReader, *words: bytes) -> tuple[bytes, int, bytes]:
    """The next line, which must begin with one of these words."""
    try:
        line = await reader.readuntil()  # not readline(), which returns half a line at the end of a connection
    except asyncio.LimitOverrunError:
        raise Refused("the line is too long") from None
    match = LINE.fullmatch(line)
    if match is None or match[1] not in words:
        raise Refused(f"not understood: {printable(line.rstrip())}")
    return match[1], int(match[2]), match[3]


def printable(text: bytes) -> str:
    """The text without characters that would control the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.decode(errors="replace"))


class Client:
    def __init__(self, nick: str) -> None:
        self.nick = nick
        self.session = secrets.token_hex()
        self.seen = 0
        self.said = 0
        self.unacknowledged: dict[int, bytes] = {}
        self.progress = asyncio.Event()

    def login(self) -> bytes:
        return f"login {self.seen} {self.session} {self.nick}\n".encode()

    async def log_in_again(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        # Complete lines in unread are dropped: they do not count as seen, so the server sends them again.
        writer.write(self.login())
        await self.hear(reader)
        # These include lines written since the old connection was lost; they are sent again when this returns, and the server
        # drops the duplicates.
        writer.writelines(list(self.unacknowledged.values()))
        await writer.drain()
        print("now by", bindsock.interface_of(writer), file=sys.stderr)

    async def talk(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self.login())
        async for text in standard_input():
            if len(text) > LONGEST:
                print(f"not sent: more than {LONGEST} bytes", file=sys.stderr)
                continue
            await self.acknowledged(all_but=WINDOW - 1)
            self.said += 1
            self.unacknowledged[self.said] = line = b"say %d %b\n" % (self.said, text)
            writer.write(line)
            await writer.drain()
        await self.acknowledged()

    async def acknowledged(self, all_but: int = 0) -> None:
        while len(self.unacknowledged) > all_but:
            self.progress.clear()
            await self.progress.wait()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                await self.hear(reader)
        except EOFError:
            raise ConnectionResetError("the server has closed the connection") from None

    async def hear(self, reader: asyncio.StreamReader) -> None:
        word, number, text = await receive(reader, b"have", b"said", b"missed", b"error")
        match word:
            case b"have":
                self.unacknowledged = {n: kept for n, kept in self.unacknowledged.items() if n > number}
                self.progress.set()
            case b"said":
                print(printable(text), flush=True)
                self.seen = number
            case b"missed":
                print(number - self.seen, "messages are not kept any more", file=sys.stderr)
                self.seen = number
            case b"error":
                raise Refused(printable(text))


async def standard_input() -> AsyncIterator[bytes]:
    """The lines of standard input. Not by a thread, which could not be ended, nor by O_NONBLOCK, which would affect a terminal's
    output."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    mode = os.fstat(0).st_mode
    waits = os.isatty(0) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # a file never waits, and epoll does not accept it
    rest = b""
    while True:
        if waits:
            loop.add_reader(0, ready.set)
            await ready.wait()
            loop.remove_reader(0)
            ready.clear()
        part = os.read(0, 2**16)
        if not part:
            break
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


async def join(host: str, port: int, nick: str, *, tls: bool, patience: float) -> None:
    client = Client(nick)
    reader, writer = await bindsock.open_connection(
        host, port, ssl=tls or None, on_reconnect=client.log_in_again, reconnect_timeout=patience
    )
    try:
        print("connected by", bindsock.interface_of(writer), file=sys.stderr)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(client.listen(reader))
            await client.talk(writer)
            listening.cancel()
    finally:
        writer.transport.abort()  # everything has been acknowledged, or never will be


class Room:
    """The server. While it runs, it keeps all sessions and the last HISTORY messages."""

    def __init__(self) -> None:
        self.heard: dict[bytes, int] = {}
        self.writers: dict[bytes, asyncio.StreamWriter] = {}
        self.messages: dict[int, tuple[bytes, bytes]] = {}
        self.last = 0
        self.news = asyncio.Event()

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until it ends, or another one of the session replaces it."""
        telling: asyncio.Task[None] | None = None
        try:
            _, seen, text = await receive(reader, b"login")
            session, _, nick = text.partition(b" ")
            self.log_in(session, seen, writer)
            print(printable(nick), "from", writer.get_extra_info("peername")[0], flush=True)
            telling = asyncio.create_task(self.tell(session, seen, writer))
            while True:
                word, number, text = await receive(reader, b"say", b"login")
                # A second login is the client's first one, which was held while the connection was replaced; the hook's came
                # first.
                if word == b"say":
                    self.hear(session, number, nick + b": " + text)
        except Refused as refusal:
            writer.write(f"error 0 {refusal}\n".encode())
        except (EOFError, OSError):
            pass  # the client may come back
        finally:
            if telling is not None:
                telling.cancel()
            writer.close()

    def log_in(self, session: bytes, seen: int, writer: asyncio.StreamWriter) -> None:
        if seen and session not in self.heard:
            raise Refused("this session is not known here any more")
        self.heard.setdefault(session, 0)
        old = self.writers.get(session)
        if old is not None and not old.is_closing():
            # It still looks open: a client that lost its interface could not close it.
            old.transport.abort()
        self.writers[session] = writer

    def hear(self, session: bytes, number: int, text: bytes) -> None:
        if number > self.heard[session] + 1:
            raise Refused(f"message {number} does not follow {self.heard[session]}")
        if number <= self.heard[session]:
            return  # a duplicate from a client that got no acknowledgement
        self.heard[session] = number
        self.last += 1
        self.messages[self.last] = session, text
        self.messages.pop(self.last - HISTORY, None)
        self.news.set()
        self.news = asyncio.Event()

    async def tell(self, session: bytes, seen: int, writer: asyncio.StreamWriter) -> None:
        """Send a client the messages that it lacks, only as fast as it reads, so that a slow client costs no memory."""
        acknowledged = -1
        with suppress(OSError):
            while True:
                if acknowledged < self.heard[session]:
                    acknowledged = self.heard[session]
                    writer.write(b"have %d\n" % acknowledged)
                elif seen < self.last - HISTORY:
                    seen = self.last - HISTORY
                    writer.write(b"missed %d\n" % seen)
                elif seen < self.last:
                    seen += 1
                    author, text = self.messages[seen]
                    if author != session:
                        writer.write(b"said %d %b\n" % (seen, text))
                else:
                    await self.news.wait()
                await writer.drain()


async def serve(host: str, port: int, *, certificate: str | None) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    room = Room()
    async with asyncio.TaskGroup() as connections:
        server = await asyncio.start_server(
            lambda reader, writer: connections.create_task(room.attend(reader, writer)), host, port, limit=2 * LONGEST, ssl=tls
        )
        print("listening", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat, bypassing the VPN, and lose no line on the way.")
    commands = parser.add_subparsers(required=True)
    joining = commands.add_parser(
        "join", help="send the lines of standard input and print those of others, until its end or Ctrl-C"
    )
    joining.add_argument("host")
    joining.add_argument("port", type=int)
    joining.add_argument("nick", help="the name that others see")
    joining.add_argument("--tls", action="store_true")
    joining.add_argument(
        "--patience", type=float, default=30.0, metavar="SECONDS", help="how long a lost connection may take to be replaced"
    )
    joining.set_defaults(run=join)
    serving = commands.add_parser("serve", help="run the server, until Ctrl-C")
    serving.add_argument("host", help="the address to listen on")
    serving.add_argument("port", type=int)
    serving.add_argument("--certificate", metavar="FILE", help="the certificate chain and the key, for TLS")
    serving.set_defaults(run=serve)
    arguments = vars(parser.parse_args())
    problem = None
    try:
        asyncio.run(arguments.pop("run")(**arguments))
    except* KeyboardInterrupt:
        pass
    except* (OSError, Refused) as group:
        error = group.exceptions[0]
        problem = ": ".join(str(part) for part in ("chat", error, error.__cause__) if part)
    sys.exit(problem)


if __name__ == "__main__":
    main()
