#!/usr/bin/env bash
# uvloop 0.23.0: transport.sendto(b"").
# Guess: an empty datagram is a datagram; protocols use it as a keep-alive or to open a NAT mapping, and it is sent.
# Seen: nothing is sent and nothing is raised. trio 0.35.0 sends it. (asyncio of CPython 3.11.7 and 3.12.1 drops it, 3.13.0 sends it.)
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0 trio==0.35.0
py >"$seen" <<'PYTHON'
import asyncio
import socket

import trio
import uvloop

receiver = socket.socket(type=socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.settimeout(0.5)


async def with_uvloop():
    create = asyncio.get_running_loop().create_datagram_endpoint
    transport, _ = await create(asyncio.DatagramProtocol, remote_addr=receiver.getsockname())
    transport.sendto(b"")
    transport.sendto(b"next")
    transport.close()


async def with_trio():
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.sendto(b"", receiver.getsockname())
        await sock.sendto(b"next", receiver.getsockname())


for name, run in ("uvloop", lambda: uvloop.run(with_uvloop())), ("trio", lambda: trio.run(with_trio)):
    run()
    print(name, "received:", *[received for received in iter(lambda: receiver.recv(10), b"next")], "next")
PYTHON
compare <<'SEEN'
uvloop received: next
trio received: b'' next
SEEN
