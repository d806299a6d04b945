#!/usr/bin/env bash
# anyio 4.16.0: a connected UDP socket whose peer answers with ICMP "port unreachable".
# Guess: a pending receive() raises BrokenResourceError on every backend.
# Seen: on trio it does; on asyncio and uvloop it goes on waiting, and the next send() succeeds as well. Only a timeout that the program sets ends it.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages anyio==4.16.0 trio==0.35.0 uvloop==0.23.0
py >"$seen" <<'PYTHON'
import socket

import anyio


async def main():
    with socket.socket(type=socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    async with await anyio.create_connected_udp_socket("127.0.0.1", port) as udp:
        await udp.send(b"question")
        try:
            with anyio.fail_after(1):
                await udp.receive()
        except Exception as error:
            print(type(error).__name__, "by", type(error.__cause__).__name__ if error.__cause__ else "fail_after()", end="; ")
        await udp.send(b"question")
        print("sent again")


for backend, options in ("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {}):
    print(backend, *options, end=": ", flush=True)
    anyio.run(main, backend=backend, backend_options=options)
PYTHON
compare <<'SEEN'
asyncio: TimeoutError by fail_after(); sent again
asyncio use_uvloop: TimeoutError by fail_after(); sent again
trio: BrokenResourceError by ConnectionRefusedError; sent again
SEEN
