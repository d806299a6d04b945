#!/usr/bin/env bash
# Linux 6.18 with iproute2 6.1.0-3: a multipath TCP socket bound to wan0 with SO_BINDTODEVICE, and an endpoint "dev wan1 subflow".
# Guess: a binding holds for the whole connection, so no subflow is made beside wan0.
# Seen: it holds for the first subflow only; the path manager adds one by wan1, and SO_BINDTODEVICE still reads wan0.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian iproute2=6.1.0-3
two_uplinks
ip -n "$HOST" mptcp endpoint add 10.2.0.2 dev wan1 subflow
cat >"$work/server.py" <<'PYTHON'
import socket

with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listener:
    listener.bind(("10.9.0.10", 8000))
    listener.listen()
    print("ready", flush=True)
    accepted = listener.accept()[0]
    while data := accepted.recv(100):
        accepted.sendall(data)
PYTHON
cat >"$work/client.py" <<'PYTHON'
import socket
import subprocess
import time


def subflows():
    lines = subprocess.run(["ss", "-tnH", "state", "established"], capture_output=True, text=True).stdout.splitlines()
    return sorted(line.split()[2].rpartition(":")[0] for line in lines)


with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan0")
    sock.connect(("10.9.0.10", 8000))
    for _ in range(50):
        sock.sendall(b"x")
        sock.recv(1)
        if len(subflows()) > 1:
            break
        time.sleep(0.1)
    print("bound to", sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode())
    print("subflows", *subflows())
PYTHON
serve "$ROUTER" "$PYTHON" "$work/server.py"
host "$PYTHON" "$work/client.py" >"$seen"
compare <<'SEEN'
bound to wan0
subflows 10.1.0.2%wan0 10.2.0.2%wan1
SEEN
