#!/usr/bin/env bash
# httpx 0.28.1 (socksio 1.0.0), python-socks 3.2.1 (aiohttp-socks), websockets 17.4, requests 2.34.2 (PySocks 1.7.1): socks5:// and socks5h://.
# Guess: as in curl, socks5:// resolves the name here and socks5h:// leaves it to the proxy.
# Seen: httpx and python-socks send the name to the proxy for socks5:// as well, so names that only this side can resolve fail; and
#   python-socks does not know socks5h:// (ValueError). requests and websockets do what curl does.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages 'httpx[socks]==0.28.1' python-socks==3.2.1 websockets==17.4 'requests[socks]==2.34.2' PySocks==1.7.1 socksio==1.0.0
py >"$seen" <<'PYTHON'
import asyncio
import socket
import socketserver
import threading

import httpx
import requests
import websockets
from python_socks.async_.asyncio import Proxy


class Socks(socketserver.StreamRequestHandler):
    """Notes in which form the destination comes, and refuses."""

    def handle(self):
        version, methods = self.rfile.read(2)
        self.rfile.read(methods)
        self.wfile.write(b"\5\0")
        forms.append({1: "address", 3: "name", 4: "address"}[self.rfile.read(4)[3]])
        self.wfile.write(b"\5\1\0\1\0\0\0\0\0\0")


async def use_httpx(url):
    async with httpx.AsyncClient(proxy=url) as client:
        await client.get("http://localhost:9/")


async def use_python_socks(url):
    await Proxy.from_url(url).connect("localhost", 9)


async def use_websockets(url):
    await websockets.connect("ws://localhost:9/", proxy=url)


async def use_requests(url):
    await asyncio.to_thread(requests.get, "http://localhost:9/", proxies={"http": url})


forms = []
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Socks) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for use in use_httpx, use_python_socks, use_websockets, use_requests:
        print(use.__name__.removeprefix("use_"), end=":")
        for scheme in "socks5", "socks5h":
            forms.clear()
            try:
                asyncio.run(use(f"{scheme}://127.0.0.1:{server.server_address[1]}"))
            except Exception as error:
                print("", scheme, forms[0] if forms else type(error).__name__, end="")
        print()
    server.shutdown()
PYTHON
compare <<'SEEN'
httpx: socks5 name socks5h name
python_socks: socks5 name socks5h ValueError
websockets: socks5 address socks5h name
requests: socks5 address socks5h name
SEEN
