"""One HTTP request over TCP or TLS that bypasses the VPN.

Use it instead of asyncio.open_connection(): the arguments and the result are the same.
When the interface goes, the reader raises bindsock.InterfaceChanged, a ConnectionError, within milliseconds: connect again.
"""

import argparse
import asyncio
import contextlib

import bindsock


async def request(host: str, port: int, path: str, *, tls: bool) -> bytes:
    reader, writer = await bindsock.open_connection(host, port, ssl=tls or None)
    try:
        print("connected by", bindsock.interface_of(writer))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description="Send one HTTP request, bypassing the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="?", default="/")
    parser.add_argument("--tls", action="store_true")
    arguments = parser.parse_args()
    print(asyncio.run(request(arguments.host, arguments.port, arguments.path, tls=arguments.tls)).decode(errors="replace"))


if __name__ == "__main__":
    main()
