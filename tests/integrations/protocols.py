"""Small servers with as much of each protocol as a client needs to connect, to send something and to disconnect."""

from __future__ import annotations

import asyncio
import json
import struct

import bson
import dnslib  # type: ignore[import-untyped]

MDNS_PORT = 5353
MDNS_GROUP = "224.0.0.251"
SERVICE = "lab._lab._tcp.local."


def mdns(question: bytes) -> bytes | None:
    """A service's answer to a question about itself (RFC 6762), ``None`` to any other question."""
    request = dnslib.DNSRecord.parse(question)
    if request.header.qr or not any(str(q.qname).lower() == SERVICE for q in request.questions):
        return None
    reply = dnslib.DNSRecord(dnslib.DNSHeader(qr=1, aa=1))
    for name, kind, data in (
        (SERVICE, dnslib.QTYPE.SRV, dnslib.SRV(0, 0, 80, "lab.local.")),
        (SERVICE, dnslib.QTYPE.TXT, dnslib.TXT("source=lab")),
        ("lab.local.", dnslib.QTYPE.A, dnslib.A("192.0.2.1")),
    ):
        reply.add_answer(dnslib.RR(name, kind, rdata=data, ttl=120))
    packed: bytes = reply.pack()
    return packed


async def smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """SMTP (RFC 5321)."""
    writer.write(b"220 lab ESMTP\r\n")
    while line := await reader.readline():
        command = line[:4].upper()
        writer.write({b"EHLO": b"250-lab\r\n250 8BITMIME\r\n", b"QUIT": b"221 bye\r\n"}.get(command, b"250 ok\r\n"))
        if command == b"QUIT":
            break


async def imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """IMAP (RFC 3501)."""
    writer.write(b"* OK lab\r\n")
    while line := await reader.readline():
        tag, command = line.split()[:2]
        untagged = {b"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\n", b"LOGOUT": b"* BYE lab\r\n"}
        writer.write(untagged.get(command.upper(), b"") + tag + b" OK done\r\n")
        if command.upper() == b"LOGOUT":
            break


async def mqtt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """MQTT 3.1.1 and 5."""
    while True:
        kind = (await reader.readexactly(1))[0] >> 4
        length = shift = 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        body = await reader.readexactly(length)
        if kind == 1:  # CONNECT; the protocol level follows the name
            writer.write(b"\x20\x03\0\0\0" if body[6] == 5 else b"\x20\x02\0\0")
        elif kind == 12:  # PINGREQ
            writer.write(b"\xd0\0")
        elif kind == 14:  # DISCONNECT
            break


async def postgresql(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """PostgreSQL's frontend/backend protocol 3.0, without TLS and authentication."""
    while True:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        (code,) = struct.unpack("!I", (await reader.readexactly(length - 4))[:4])
        if code >> 16 == 3:
            break
        writer.write(b"N")  # neither SSL nor GSSAPI

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!I", len(body) + 4) + body

    writer.write(message(b"R", struct.pack("!I", 0)))
    for name, value in (("server_version", "16.0"), ("client_encoding", "UTF8"), ("server_encoding", "UTF8")):
        writer.write(message(b"S", f"{name}\0{value}\0".encode()))
    writer.write(message(b"K", struct.pack("!II", 1, 1)) + message(b"Z", b"I"))
    await reader.readexactly(5)  # Terminate


async def mysql(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """MySQL's client/server protocol, with a password that is not checked."""

    def packet(number: int, body: bytes) -> bytes:
        return struct.pack("<I", len(body))[:3] + bytes([number]) + body

    capabilities = 0x00000001 | 0x00000200 | 0x00008000 | 0x00080000  # long password, protocol 4.1, secure connection, plugins
    writer.write(
        packet(
            0,
            b"\x0a8.0.0\0"
            + struct.pack("<I", 1)
            + b"a" * 8
            + b"\0"
            + struct.pack("<HBHHB", capabilities & 0xFFFF, 45, 2, capabilities >> 16, 21)
            + bytes(10)
            + b"a" * 12
            + b"\0mysql_native_password\0",
        )
    )
    while True:
        header = await reader.readexactly(4)
        body = await reader.readexactly(int.from_bytes(header[:3], "little"))
        if header[3] == 0 and body[:1] == b"\x01":  # COM_QUIT
            break
        writer.write(packet(header[3] + 1, b"\0\0\0\x02\0\0\0"))


async def nats(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """NATS."""
    information = {"server_id": "lab", "version": "2.10.0", "proto": 1, "headers": True, "max_payload": 1048576}
    writer.write(b"INFO " + json.dumps(information).encode() + b"\r\n")
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


async def mongodb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """MongoDB's wire protocol: every command is answered as ``hello`` is."""
    document = bson.encode(
        {
            "ok": 1,
            "ismaster": True,
            "helloOk": True,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "maxBsonObjectSize": 1 << 24,
            "maxMessageSizeBytes": 48000000,
            "maxWriteBatchSize": 100000,
        }
    )
    while True:
        length, number, _, operation = struct.unpack("<iiii", await reader.readexactly(16))
        await reader.readexactly(length - 16)
        if operation == 2004:  # OP_QUERY is answered by OP_REPLY
            body, kind = struct.pack("<iqii", 8, 0, 0, 1) + document, 1
        else:  # OP_MSG by OP_MSG
            body, kind = struct.pack("<iB", 0, 0) + document, 2013
        writer.write(struct.pack("<iiii", 16 + len(body), 1, number, kind) + body)


async def kafka(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Kafka: a broker that closes the connection after the first request, as a broker of another version does."""
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    await reader.readexactly(length)


async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """SOCKS5 (RFC 1928): a proxy that answers every HTTP request itself."""
    _, count = await reader.readexactly(2)
    await reader.readexactly(count)
    writer.write(b"\x05\0")
    _, _, _, kind = await reader.readexactly(4)
    length = (await reader.readexactly(1))[0] if kind == 3 else {1: 4, 4: 16}[kind]
    await reader.readexactly(length + 2)
    writer.write(b"\x05\0\0\x01" + bytes(6))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
