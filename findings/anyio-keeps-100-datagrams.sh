#!/usr/bin/env bash
# anyio 4.16.0: datagrams that nobody has received yet.
# Guess: they wait in the kernel's buffer, so that a burst of 200 small ones is received whole on every backend.
# Seen: on asyncio and uvloop anyio reads them at once into a queue of 100 and drops the oldest without an error; on trio all are there.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages anyio==4.16.0 trio==0.35.0 uvloop==0.23.0
py >"$seen" <<'PYTHON'
import socket

import anyio
from anyio.abc import SocketAttribute


async def main():
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.connect(udp.extra(SocketAttribute.local_address))
            for number in range(200):
                sender.send(str(number).encode())
        await anyio.sleep(0.5)
        received = []
        with anyio.move_on_after(0.5):
            while True:
                received.append(int((await udp.receive())[0]))
    print(len(received), "received, from", received[0], "to", received[-1])


for backend, options in ("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {}):
    print(backend, *options, end=": ", flush=True)
    anyio.run(main, backend=backend, backend_options=options)
PYTHON
compare <<'SEEN'
asyncio: 100 received, from 100 to 199
asyncio use_uvloop: 100 received, from 100 to 199
trio: 200 received, from 0 to 199
SEEN
