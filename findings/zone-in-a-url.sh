#!/usr/bin/env bash
# httpx 0.28.1, aiohttp 3.14.5, websockets 17.4, requests 2.34.2: a link-local address with a zone in a URL.
# Guess: http://[fe80::1%25wan0]/ works, as in RFC 6874 and in curl.
# Seen: it works in none of the four. The bare %wan0 works in httpx, aiohttp and websockets, which also send the zone to the server in the
#   Host header; in requests neither works.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages httpx==0.28.1 aiohttp==3.14.5 websockets==17.4 requests==2.34.2
two_uplinks
cat >"$work/server.py" <<'PYTHON'
import socket
import socketserver


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        host = next(line for line in iter(self.rfile.readline, b"") if line.lower().startswith(b"host:"))
        answer = b"zone sent" if b"%" in host else b"no zone sent"
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


with Server(("::", 80), Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
PYTHON
serve "$ROUTER" "$PYTHON" "$work/server.py"
ip -n "$ROUTER" address add fe80::1/64 dev lan0 nodad
link_local_is_usable() { ip -n "$HOST" -6 -oneline address show dev wan0 scope link -tentative | grep -q fe80; }
until_it link_local_is_usable
cat >"$work/client.py" <<'PYTHON'
import asyncio

import aiohttp
import httpx
import requests
import websockets


async def use_httpx(host):
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://{host}/")).text


async def use_aiohttp(host):
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}/") as response:
        return await response.text()


async def use_websockets(host):
    try:
        await websockets.connect(f"ws://{host}/")
    except websockets.InvalidStatus as refused:
        return refused.response.body.decode()


async def use_requests(host):
    return (await asyncio.to_thread(requests.get, f"http://{host}/")).text


for use in use_httpx, use_aiohttp, use_websockets, use_requests:
    print(use.__name__.removeprefix("use_"), end=":")
    for host in "[fe80::1%25wan0]", "[fe80::1%wan0]":
        try:
            print("", host, asyncio.run(use(host)), end=";")
        except Exception as error:
            print("", host, type(error).__name__, end=";")
    print()
PYTHON
host "$work/venv/bin/python" "$work/client.py" >"$seen"
compare <<'SEEN'
httpx: [fe80::1%25wan0] ConnectError; [fe80::1%wan0] zone sent;
aiohttp: [fe80::1%25wan0] ClientConnectorError; [fe80::1%wan0] zone sent;
websockets: [fe80::1%25wan0] gaierror; [fe80::1%wan0] zone sent;
requests: [fe80::1%25wan0] ConnectionError; [fe80::1%wan0] ConnectionError;
SEEN
