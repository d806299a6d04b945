"""A WebSocket client that reconnects after each change of network.

Use it for feeds and subscriptions: websockets' own reconnecting iterator connects again as soon as the connection ends. On
bindsock's event loop this happens milliseconds after the interface went, and the new connection uses the new interface.
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
            for message in messages:  # messages for the server on each connection, such as a subscription
                await connection.send(message)
            async for received in connection:
                print("received", received)
        except ConnectionClosed as error:
            print("closed:", error.__cause__ or error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a WebSocket server sends, bypassing the VPN, until Ctrl-C.")
    parser.add_argument("url")
    parser.add_argument("message", nargs="*", help="sent first on each connection")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(listen(arguments.url, arguments.message))


if __name__ == "__main__":
    main()
