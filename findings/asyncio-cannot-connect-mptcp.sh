#!/usr/bin/env bash
# asyncio of CPython 3.11.7, 3.12.1, 3.13.0, aiohappyeyeballs 2.7.1, uvloop 0.23.0: loop.sock_connect() on a multipath TCP socket, to a numeric address.
# Guess: a numeric address needs no resolver, and an IPPROTO_MPTCP socket is a stream socket like any other.
# Seen: asyncio gives the address to getaddrinfo() with protocol 262, which knows no such protocol (gaierror -7). aiohappyeyeballs, by
#   which aiohttp dials, fails in the same way. uvloop connects.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0 aiohappyeyeballs==2.7.1
py >"$seen" <<'PYTHON'
import asyncio
import socket

import aiohappyeyeballs
import uvloop

listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
listener.bind(("127.0.0.1", 0))
listener.listen()


def multipath():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    sock.setblocking(False)
    return sock


async def sock_connect():
    with multipath() as sock:
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
    print("connected")


async def happy_eyeballs():
    address = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", listener.getsockname())
    with await aiohappyeyeballs.start_connection([address], socket_factory=lambda info: multipath()):
        print("connected")


for name, run, main in (
    ("asyncio", asyncio.run, sock_connect),
    ("aiohappyeyeballs on asyncio", asyncio.run, happy_eyeballs),
    ("uvloop", uvloop.run, sock_connect),
):
    print(name, end=": ", flush=True)
    try:
        run(main())
    except OSError as error:
        print(type(error).__name__, error.errno)
PYTHON
compare <<'SEEN'
asyncio: gaierror -7
aiohappyeyeballs on asyncio: gaierror -7
uvloop: connected
SEEN
