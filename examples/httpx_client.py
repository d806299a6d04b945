"""httpx whose connections leave beneath the VPN, on asyncio or trio.

Use it to give one client a transport of its own while the rest of the program goes where the VPN wants.
When the interface goes, a request under way fails at once with httpx.ReadError; idle connections are dropped from the pool.
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
        response = await client.get(url)  # a GET may be said twice: now by the interface that took over
    print(url, response.status_code, response.text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Get pages by httpx, beneath the VPN.")
    parser.add_argument("url", nargs="+")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    anyio.run(get, arguments.url, backend=arguments.backend)


if __name__ == "__main__":
    main()
