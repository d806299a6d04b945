#!/usr/bin/env bash
# pyroute2 0.9.7: the synchronous IPRoute in a coroutine.
# Guess: it blocks the loop for a moment, as other synchronous sockets do, and works, as it does with 0.8.1.
# Seen: since 0.9 it drives an event loop of its own inside and raises RuntimeError where one is running. In a thread it works.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages pyroute2==0.9.7
py >"$seen" <<'PYTHON'
import asyncio

from pyroute2 import IPRoute


def loopback():
    with IPRoute() as route:
        return [link.get("ifname") for link in route.get_links() if link["index"] == 1]


async def main():
    print("in a thread:", await asyncio.to_thread(loopback))
    try:
        print("in a coroutine:", loopback())
    except RuntimeError as error:
        print("in a coroutine:", error)


asyncio.run(main())
PYTHON
compare <<'SEEN'
in a thread: ['lo']
in a coroutine: This event loop is already running
SEEN
