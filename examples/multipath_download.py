"""Downloads a file over one multipath TCP connection, which changes its interface during the download without connecting again.

Use it for long transfers if both ends run Linux and you can change the server; it needs no hook and no protocol of your own.
To move the connection, the client needs the privilege CAP_NET_ADMIN; without it, it depends on the system's endpoints
(ip mptcp endpoint). The server needs a listener with one more argument, as below, or: mptcpize run python -m http.server.
"""

import argparse
import asyncio
import contextlib
import hashlib
import socket
import sys
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import bindsock

CHUNK = 1 << 16
IPPROTO_MPTCP = getattr(socket, "IPPROTO_MPTCP", 262)


async def download(url: str, path: Path) -> None:
    """Write the content of the URL to a file, and print the interfaces that are used."""
    parts = urlsplit(url)
    reader, writer = await bindsock.open_connection(parts.hostname, parts.port or 80, multipath=True)
    if not bindsock.multipath_of(writer):
        print("the server or this system does not support multipath TCP: plain TCP")
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        if status.split()[1] != "200":
            raise ConnectionError(f"the server answered with {status}")
        lengths = [int(line.partition(":")[2]) for line in headers if line.lower().startswith("content-length:")]
        with path.open("wb") as file:
            await copy(reader, writer, file, lengths[0] if lengths else None)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, file: BinaryIO, length: int | None) -> None:
    """Copy until the end, and print each interface that the connection moves to."""
    digest, received, interface = hashlib.sha256(), 0, None
    while data := await reader.read(CHUNK):
        received += len(data)
        digest.update(data)
        file.write(data)
        now = bindsock.interface_of(writer)
        if now != interface:
            print(f"by {now} from byte {received - len(data)}", flush=True)
            interface = now
    if length is not None and received != length:
        raise ConnectionError(f"received {received} bytes instead of {length}")
    print(f"{received} bytes, sha256 {digest.hexdigest()}")


async def serve(host: str, port: int, file: Path) -> None:
    """Serve one file over HTTP."""
    length = file.stat().st_size  # noqa: ASYNC240 - no client is served yet

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
            with file.open("rb") as content:
                while data := content.read(CHUNK):
                    writer.write(data)
                    await writer.drain()
        writer.close()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(
        family, socket.SOCK_STREAM, IPPROTO_MPTCP
    ) as listener:  # this is enough; plain TCP clients are served, too
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        server = await asyncio.start_server(answer, sock=listener)
        print("serving", file, flush=True)
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Download a file by multipath TCP, bypassing the VPN, or serve one.")
    commands = parser.add_subparsers(required=True)
    client = commands.add_parser("get", help="download a file by HTTP")
    client.add_argument("url", help="as http://192.0.2.1:8000/file")
    client.add_argument("file", type=Path, help="where to write it")
    client.set_defaults(run=lambda arguments: download(arguments.url, arguments.file))
    server = commands.add_parser("serve", help="serve one file over HTTP, by multipath TCP and by TCP")
    server.add_argument("host", help="the address to listen on")
    server.add_argument("port", type=int)
    server.add_argument("file", type=Path)
    server.set_defaults(run=lambda arguments: serve(arguments.host, arguments.port, arguments.file))
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(arguments.run(arguments))
        except OSError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
