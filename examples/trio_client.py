"""A trio program all of whose connections bypass the VPN.

Use it for connections of trio's own functions, or of libraries on trio: one line at the start does what bindsock.EventLoop does
for asyncio. When the interface goes, the stream raises trio.BrokenResourceError; this program connects again.
"""

import argparse
import contextlib

import trio

import bindsock.anyio


async def listen(host: str, port: int) -> None:
    bindsock.anyio.install_trio_socket_factory()
    while True:
        stream = await trio.open_tcp_stream(host, port)
        try:
            async with stream:
                async for part in stream:
                    print("received", part.decode(errors="replace"), end="")
        except trio.BrokenResourceError as error:
            print("broken:", error.__cause__ or error)
        else:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a server says, bypassing the VPN, until it ends or Ctrl-C.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(listen, arguments.host, arguments.port)


if __name__ == "__main__":
    main()
