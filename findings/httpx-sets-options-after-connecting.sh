#!/usr/bin/env bash
# httpx 0.28.1, httpcore 1.0.9: HTTPTransport(socket_options=[(SOL_SOCKET, SO_BINDTODEVICE, b"wan1")]), beside a default route by wan0.
# Guess: socket options are set before the connection is made, so the request leaves by wan1.
# Seen: they are set on the connected socket: the handshake has gone out by wan0, its replies are no longer accepted, and the
#   request ends with ReadTimeout (async and sync). Options that only matter before connect() come too late without an error.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages httpx==0.28.1 httpcore==1.0.9 anyio==4.16.0
two_uplinks
cat >"$work/server.py" <<'PYTHON'
import socketserver


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        print("connected from", self.client_address[0], flush=True)
        self.request.settimeout(5)
        try:
            if self.request.recv(1000):
                self.request.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        except OSError:
            pass


with socketserver.ThreadingTCPServer(("10.9.0.10", 80), Handler) as server:
    server.daemon_threads = True
    print("ready", flush=True)
    server.serve_forever()
PYTHON
serve "$ROUTER" "$PYTHON" "$work/server.py"
cat >"$work/client.py" <<'PYTHON'
import asyncio
import socket

import httpx

options = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan1")]


async def with_async():
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(socket_options=options), timeout=2) as client:
        await client.get("http://10.9.0.10/")


def with_sync():
    with httpx.Client(transport=httpx.HTTPTransport(socket_options=options), timeout=2) as client:
        client.get("http://10.9.0.10/")


for name, run in ("async", lambda: asyncio.run(with_async())), ("sync", with_sync):
    try:
        run()
        print(name, "answered")
    except httpx.HTTPError as error:
        print(name, type(error).__name__)
PYTHON
host "$work/venv/bin/python" "$work/client.py" >"$seen"
grep connected "$work/output.0" >>"$seen"
compare <<'SEEN'
async ReadTimeout
sync ReadTimeout
connected from 10.1.0.2
connected from 10.1.0.2
SEEN
