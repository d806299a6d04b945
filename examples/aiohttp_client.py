"""aiohttp whose connections leave beneath the VPN: asks for a page again and again, whatever the network does meanwhile.

Use it to give one session a connector of its own while the rest of the program goes where the VPN wants.
When the interface goes, a request under way fails at once with aiohttp.ClientError; the next one leaves by the new interface.
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
    parser = argparse.ArgumentParser(description="Get a page by aiohttp every so often, beneath the VPN, until Ctrl-C.")
    parser.add_argument("url")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two requests")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(poll(arguments.url, arguments.interval))


if __name__ == "__main__":
    main()
