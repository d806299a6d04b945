"""A WebSocket that is there again after each change of network.

Use it for feeds and subscriptions: websockets' own reconnecting iterator dials again as soon as the connection ends,
and on bindsock's event loop that is milliseconds after the interface went, by the one that took over.
"""

import argparse
import asyncio
import contextlib
from collections.abc import Sequence

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import bindsock


async def listen(url: str, messages: Sequence[str]) -> None:
    async for connection in connect(url):
        print("connected by", bindsock.interface_of(connection.transport))
        try:
            for message in messages:  # what the server must be told on each connection, a subscription for one
                await connection.send(message)
            async for received in connection:
                print("received", received)
        except ConnectionClosed as error:
            print("closed:", error.__cause__ or error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a WebSocket server sends, beneath the VPN, until Ctrl-C.")
    parser.add_argument("url")
    parser.add_argument("message", nargs="*", help="said first on each connection")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(listen(arguments.url, arguments.message))


if __name__ == "__main__":
    main()
