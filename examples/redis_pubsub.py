"""A subscription to a Redis channel that is made again after each change of network.

Use it if a library reconnects by itself but does not take a socket: it only needs bindsock's event loop, on which the
connection ends in milliseconds when its interface goes, instead of waiting for messages that never arrive.
"""

import argparse
import asyncio
import contextlib

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

import bindsock

FOREVER = -1


async def subscribe(url: str, channel: str) -> None:
    retry = Retry(ExponentialBackoff(cap=5, base=0.05), FOREVER)
    async with redis.asyncio.Redis.from_url(url, retry=retry, decode_responses=True) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():  # subscribes again by itself on each new connection
            print(message["type"], message["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what is published on a channel, bypassing the VPN, until Ctrl-C.")
    parser.add_argument("url", help="as redis://localhost:6379")
    parser.add_argument("channel")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
        runner.run(subscribe(arguments.url, arguments.channel))


if __name__ == "__main__":
    main()
