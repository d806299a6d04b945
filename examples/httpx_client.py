"""httpx whose connections bypass the VPN, on asyncio or trio.

Use it to give one client its own transport while the rest of the program uses the VPN.
When the interface goes, a pending request fails at once with httpx.ReadError; idle connections are dropped from the pool.
"""

import argparse
from collections.abc import Sequence

import anyio
import httpx

from bindsock.integrations.httpx import AsyncTransport


async def get(urls: Sequence[str]) -> None:
    async with httpx.AsyncClient(transport=AsyncTransport()) as client, anyio.create_task_group() as tasks:
        for url in urls:
            tasks.start_soon(show, client, url)


async def show(client: httpx.AsyncClient, url: str) -> None:
    try:
        response = await client.get(url)
    except httpx.ReadError:
        response = await client.get(url)  # a GET may be repeated: now by the new interface
    print(url, response.status_code, response.text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Get pages by httpx, bypassing the VPN.")
    parser.add_argument("url", nargs="+")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    anyio.run(get, arguments.url, backend=arguments.backend)


if __name__ == "__main__":
    main()
