#!/usr/bin/env bash
# asyncio of CPython 3.11.7, 3.12.1, 3.13.0, uvloop 0.23.0: TCP_NODELAY of a connected multipath TCP socket that is given as sock=.
# Guess: asyncio sets it on every stream connection, and the kernel supports it for MPTCP.
# Seen: asyncio sets it only where the socket's protocol is IPPROTO_TCP, so Nagle's algorithm stays on; uvloop sets it.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0
py >"$seen" <<'PYTHON'
import asyncio
import socket

import uvloop


async def main(name):
    protocol = getattr(socket, name)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
        sock.connect(listener.getsockname())
        _, writer = await asyncio.open_connection(sock=sock)
        print(name, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), end="; ")
        writer.close()


for run in asyncio.run, uvloop.run:
    print(run.__module__.partition(".")[0], end=": ")
    run(main("IPPROTO_TCP"))
    run(main("IPPROTO_MPTCP"))
    print("done")
PYTHON
compare <<'SEEN'
asyncio: IPPROTO_TCP 1; IPPROTO_MPTCP 0; done
uvloop: IPPROTO_TCP 1; IPPROTO_MPTCP 1; done
SEEN
