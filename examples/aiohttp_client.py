"""aiohttp whose connections bypass the VPN: it gets a page again and again while the network changes.

Use it to give one session its own connector while the rest of the program uses the VPN.
When the interface goes, a pending request fails at once with aiohttp.ClientError; the next one leaves by the new interface.
"""

import argparse
import asyncio
import contextlib

import aiohttp

from bindsock.integrations.aiohttp import TCPConnector


async def poll(url: str, interval: float) -> None:
    async with aiohttp.ClientSession(connector=TCPConnector()) as session:
        while True:
            try:
                async with session.get(url) as response:
                    print(response.status, await response.text())
            except aiohttp.ClientError as error:
                print(type(error).__name__, error)
            await asyncio.sleep(interval)


def main() -> None:
    parser = argparse.ArgumentParser(description="Get a page by aiohttp every so often, bypassing the VPN, until Ctrl-C.")
    parser.add_argument("url")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two requests")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(poll(arguments.url, arguments.interval))


if __name__ == "__main__":
    main()
