#!/usr/bin/env bash
# uvloop 0.23.0: a bound UDP socket given to create_datagram_endpoint(sock=).
# Guess: its options are the caller's and stay as they are, as with asyncio.
# Seen: uvloop sets SO_REUSEADDR on it, although it is bound already.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0
py >"$seen" <<'PYTHON'
import asyncio
import socket

import uvloop


async def main():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
    print("SO_REUSEADDR", sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
    transport.close()


for run in asyncio.run, uvloop.run:
    print(run.__module__.partition(".")[0], end=": ", flush=True)
    run(main())
PYTHON
compare <<'SEEN'
asyncio: SO_REUSEADDR 0
uvloop: SO_REUSEADDR 1
SEEN
