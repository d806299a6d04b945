#!/usr/bin/env bash
# openssh-client 1:9.2p1, curl 7.88.1: "ssh -B wan1" and "curl --interface wan1" (as root), beside a default route by wan0.
# Guess: both bind the socket to the device, as "ping -I" does, and leave by wan1.
# Seen: curl does; ssh only takes wan1's address as its source, and its packets leave by wan0, by the default route.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
two_uplinks
{ ssh -V 2>&1 | grep -o 'OpenSSH_9.2p1'; curl --version | grep -o '^curl 7.88.1'; } >"$seen"
cat >"$work/server.py" <<'PYTHON'
import socketserver


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()


socketserver.ThreadingTCPServer.allow_reuse_address = True
with socketserver.ThreadingTCPServer(("10.9.0.10", 2222), Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
PYTHON
cat >"$work/tap.py" <<'PYTHON'
"""Prints by which uplink the first segments of the client leave, and from which address."""

import select
import socket
import sys

taps = {}
for device in "wan0", "wan1":
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL: outgoing packets, too
    tap.bind((device, 3))
    taps[tap] = device
print("ready", flush=True)
for _ in range(1000):
    for tap in select.select(list(taps), [], [], 20)[0]:
        packet, source = tap.recvfrom(2000)
        if source[1] == 0x0800 and source[2] == socket.PACKET_OUTGOING and packet[9] == socket.IPPROTO_TCP and packet[33] & 2:
            print(socket.inet_ntoa(packet[12:16]), "leaves by", taps[tap], flush=True)
            sys.exit()
PYTHON
serve "$ROUTER" "$PYTHON" "$work/server.py"
one_connection() {
    local number=${#processes[@]}
    serve "$HOST" "$PYTHON" "$work/tap.py"
    timeout 5 ip netns exec "$HOST" "$@" </dev/null >/dev/null 2>&1 || true
    until_it grep -q leaves "$work/output.$number"
    echo "$1: $(grep leaves "$work/output.$number")" >>"$seen"
}
one_connection ssh -F none -o BatchMode=yes -B wan1 -p 2222 user@10.9.0.10
one_connection curl --silent --max-time 2 --interface wan1 http://10.9.0.10:2222/
compare <<'SEEN'
OpenSSH_9.2p1
curl 7.88.1
ssh: 10.2.0.2 leaves by wan0
curl: 10.2.0.2 leaves by wan1
SEEN
