#!/usr/bin/env bash
# dnspython 2.9.2: a query over UDP to a resolver that is not running (127.0.0.1, nothing on the port).
# Guess: the kernel reports "connection refused" at once, and so does dnspython.
# Seen: the sockets are not connected, so the refusal is never reported: the query takes its whole timeout, sync and on asyncio.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages dnspython==2.9.2
py >"$seen" <<'PYTHON'
import asyncio
import socket
import time

import dns.asyncquery
import dns.exception
import dns.message
import dns.query

with socket.socket(type=socket.SOCK_DGRAM) as closed:
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
query = dns.message.make_query("example.org", "A")

with socket.socket(type=socket.SOCK_DGRAM) as plain:
    plain.connect(("127.0.0.1", port))
    plain.settimeout(2)
    plain.send(query.to_wire())
    try:
        plain.recv(1000)
    except OSError as error:
        print("a connected socket:", type(error).__name__)

for name, ask in (
    ("sync", lambda: dns.query.udp(query, "127.0.0.1", port=port, timeout=2)),
    ("asyncio", lambda: asyncio.run(dns.asyncquery.udp(query, "127.0.0.1", port=port, timeout=2))),
):
    begin = time.monotonic()
    try:
        ask()
    except (OSError, dns.exception.Timeout) as error:
        whole = time.monotonic() - begin > 1.9
        print(f"{name}: {type(error).__name__} after {'the whole timeout' if whole else 'less'}")
PYTHON
compare <<'SEEN'
a connected socket: ConnectionRefusedError
sync: Timeout after the whole timeout
asyncio: Timeout after the whole timeout
SEEN
