#!/usr/bin/env bash
# uvloop 0.23.0: sys.addaudithook() as a watch on outgoing connections.
# Guess: every connection that a Python program makes raises the audit event socket.connect (PEP 578).
# Seen: create_connection(host, port) raises none on uvloop, since libuv connects; with asyncio it raises one.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages uvloop==0.23.0
py >"$seen" <<'PYTHON'
import asyncio
import sys

import uvloop

events = []
sys.addaudithook(lambda event, args: events.append(event) if event == "socket.connect" else None)


async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    writer.close()
    server.close()


for run in asyncio.run, uvloop.run:
    events.clear()
    run(main())
    print(run.__module__.partition(".")[0], events)
PYTHON
compare <<'SEEN'
asyncio ['socket.connect']
uvloop []
SEEN
