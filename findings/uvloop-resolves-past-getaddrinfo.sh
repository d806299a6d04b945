#!/usr/bin/env bash
# uvloop 0.23.0: a loop class that overrides getaddrinfo(), to ask a resolver of its own.
# Guess: create_connection(host) resolves by self.getaddrinfo(), as asyncio documents and does.
# Seen: on a subclass of uvloop.Loop the override is never called; libuv's resolver is asked.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0
py >"$seen" <<'PYTHON'
import asyncio

import uvloop


def subclass(base):
    class Loop(base):
        async def getaddrinfo(self, host, port, **options):
            print("asked for", host, end="; ")
            return await super().getaddrinfo(host, port, **options)

    return Loop


async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("localhost", server.sockets[0].getsockname()[1])
    print("connected")
    writer.close()
    server.close()


for base in asyncio.SelectorEventLoop, uvloop.Loop:
    print(base.__module__.partition(".")[0], end=": ")
    with asyncio.Runner(loop_factory=subclass(base)) as runner:
        runner.run(main())
PYTHON
compare <<'SEEN'
asyncio: asked for localhost; connected
uvloop: connected
SEEN
