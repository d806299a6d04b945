#!/usr/bin/env bash
# grpcio 1.85.3: proxies from the environment and from a channel option, for an insecure channel.
# Guess: HTTPS_PROXY and https_proxy alike, for TLS only; no_proxy=* turns it off; a channel option, if any, comes before the environment.
# Seen: only names in lower case count, and they count for insecure channels and numeric targets, too; no_proxy=* is not a wildcard; the option
#   grpc.http_proxy exists, and no_proxy from the environment overrides it; a socks5 URL is skipped with a log line: direct.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages grpcio==1.85.3
py >"$seen" <<'PYTHON'
import os
import socketserver
import subprocess
import sys
import threading

CHANNEL = """
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.http_proxy", sys.argv[2])] if sys.argv[2] else [])
try:
    grpc.channel_ready_future(channel).result(timeout=0.7)
except grpc.FutureTimeoutError:
    pass
"""


class Proxy(socketserver.StreamRequestHandler):
    def handle(self):
        requests.append(self.rfile.readline().decode().strip())
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def try_channel(target="localhost:9", option="", **environment):
    requests.clear()
    subprocess.run([sys.executable, "-c", CHANNEL, target, option], env=os.environ | environment, stderr=subprocess.DEVNULL, check=True)
    shown = " ".join(f"{name}={value}" for name, value in environment.items()) + (" grpc.http_proxy" if option else "")
    print(shown.replace(url, "URL").strip(), target, "->", requests[0] if requests else "direct")


requests = []
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"127.0.0.1:{server.server_address[1]}"
    try_channel(https_proxy=f"http://{url}")
    try_channel(HTTPS_PROXY=f"http://{url}")
    try_channel("ipv4:127.0.0.1:9", https_proxy=f"http://{url}")
    try_channel(https_proxy=f"http://{url}", no_proxy="*")
    try_channel(https_proxy=f"socks5://{url}")
    try_channel(option=f"http://{url}")
    try_channel(option=f"http://{url}", no_proxy="localhost")
    server.shutdown()
PYTHON
compare <<'SEEN'
https_proxy=http://URL localhost:9 -> CONNECT localhost:9 HTTP/1.1
HTTPS_PROXY=http://URL localhost:9 -> direct
https_proxy=http://URL ipv4:127.0.0.1:9 -> CONNECT 127.0.0.1:9 HTTP/1.1
https_proxy=http://URL no_proxy=* localhost:9 -> CONNECT localhost:9 HTTP/1.1
https_proxy=socks5://URL localhost:9 -> direct
grpc.http_proxy localhost:9 -> CONNECT localhost:9 HTTP/1.1
no_proxy=localhost grpc.http_proxy localhost:9 -> direct
SEEN
