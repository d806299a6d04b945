"""A chat in which nothing is lost and nothing is said twice, whatever the network does meanwhile: its client, and its server.

Use it as the pattern for a protocol of your own whose connection may be replaced. Each side numbers what it says and keeps it for
the other. On a new connection the client logs in again and tells the last number that it has seen, and the server tells the last
that it has had; then each says again what the other lacks, and drops what it has. Every line is WORD NUMBER TEXT:

    login SEEN SESSION NICK    the client has seen the room's messages up to this one
    say NUMBER TEXT            a message; the session numbers its own from 1
    have NUMBER                the server has the session's messages up to this one: the acknowledgement
    said NUMBER NICK: TEXT     a message of somebody else; the room numbers all of them from 1
    missed NUMBER              the messages up to this one are not kept any more
    error 0 TEXT               the server's last word
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
"""How many messages the server keeps. A client that was away for more of them is told so."""
WINDOW = 50
"""How many messages a client says ahead of their acknowledgement."""
LONGEST = 1000
"""Bytes of a message."""

LINE = re.compile(rb"(\w+) (\d{1,18}) ?(.*)\n")


class Refused(Exception):
    """What the other side said makes no sense, or is a refusal.

    No OSError: when a hook raises one and its connection has ended, the network is to blame, and another connection is tried.
    """


async def receive(reader: asyncio.StreamReader, *words: bytes) -> tuple[bytes, int, bytes]:
    """The next line, which must begin with one of these words."""
    try:
        line = await reader.readuntil()  # not readline(), which takes half a line at the end of a connection for a whole one
    except asyncio.LimitOverrunError:
        raise Refused("the line is too long") from None
    match = LINE.fullmatch(line)
    if match is None or match[1] not in words:
        raise Refused(f"not understood: {printable(line.rstrip())}")
    return match[1], int(match[2]), match[3]


def printable(text: bytes) -> str:
    """What others write must not steer the terminal."""
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
        # Whole lines in unread could be used, but need not be: they do not count as seen, so the server says them again.
        writer.write(self.login())
        await self.hear(reader)
        # What was written since the cut is among these; it goes out once more when this returns, and the server drops it.
        writer.writelines(list(self.unacknowledged.values()))
        await writer.drain()
        print("now by", bindsock.interface_of(writer), file=sys.stderr)

    async def talk(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self.login())
        async for text in standard_input():
            if len(text) > LONGEST:
                print(f"not said: more than {LONGEST} bytes", file=sys.stderr)
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
    """Its lines, without a thread, which could not be ended, and without O_NONBLOCK, which a terminal's output would get, too."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    mode = os.fstat(0).st_mode
    waits = os.isatty(0) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # files never do, and no epoll takes them
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
        writer.transport.abort()  # all that was said has been acknowledged, or never will be


class Room:
    """The server. It remembers every session, and the last HISTORY messages, for as long as it runs."""

    def __init__(self) -> None:
        self.heard: dict[bytes, int] = {}
        self.writers: dict[bytes, asyncio.StreamWriter] = {}
        self.messages: dict[int, tuple[bytes, bytes]] = {}
        self.last = 0
        self.news = asyncio.Event()

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until it ends, or another takes its place."""
        telling: asyncio.Task[None] | None = None
        try:
            _, seen, text = await receive(reader, b"login")
            session, _, nick = text.partition(b" ")
            self.log_in(session, seen, writer)
            print(printable(nick), "from", writer.get_extra_info("peername")[0], flush=True)
            telling = asyncio.create_task(self.tell(session, seen, writer))
            while True:
                word, number, text = await receive(reader, b"say", b"login")
                # Another login is the client's first, which was held while the connection was replaced: the hook's went ahead.
                if word == b"say":
                    self.hear(session, number, nick + b": " + text)
        except Refused as refusal:
            writer.write(f"error 0 {refusal}\n".encode())
        except (EOFError, OSError):
            pass  # the client will be back, or not
        finally:
            if telling is not None:
                telling.cancel()
            writer.close()

    def log_in(self, session: bytes, seen: int, writer: asyncio.StreamWriter) -> None:
        if seen and session not in self.heard:
            raise Refused("this session is not known here any more")
        self.heard.setdefault(session, 0)
        if session in self.writers:
            # It may look alive: a client that lost its interface could not say goodbye.
            self.writers[session].transport.abort()
        self.writers[session] = writer

    def hear(self, session: bytes, number: int, text: bytes) -> None:
        if number > self.heard[session] + 1:
            raise Refused(f"message {number} does not follow {self.heard[session]}")
        if number <= self.heard[session]:
            return  # said again by a client that did not know of its arrival
        self.heard[session] = number
        self.last += 1
        self.messages[self.last] = session, text
        self.messages.pop(self.last - HISTORY, None)
        self.news.set()
        self.news = asyncio.Event()

    async def tell(self, session: bytes, seen: int, writer: asyncio.StreamWriter) -> None:
        """Tell a client what it does not know, as fast as it reads: one that is slow costs no memory."""
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
    parser = argparse.ArgumentParser(description="Chat, beneath the VPN, and lose no line on the way.")
    commands = parser.add_subparsers(required=True)
    joining = commands.add_parser("join", help="say what standard input says and print what others say, until its end or Ctrl-C")
    joining.add_argument("host")
    joining.add_argument("port", type=int)
    joining.add_argument("nick", help="by which the others know you")
    joining.add_argument("--tls", action="store_true")
    joining.add_argument("--patience", type=float, default=30.0, metavar="SECONDS", help="for a lost connection to be replaced")
    joining.set_defaults(run=join)
    serving = commands.add_parser("serve", help="be the server, until Ctrl-C")
    serving.add_argument("host", help="the address to listen on")
    serving.add_argument("port", type=int)
    serving.add_argument("--certificate", metavar="FILE", help="the chain and the key: speak TLS")
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
