#!/usr/bin/env bash
# iproute2 6.1.0-3: "ss --kill" by a user without CAP_NET_ADMIN.
# Guess: it fails: a status other than 0.
# Seen: a line on standard error, status 0, and the connection stays open; a script that checks the status believes that it is closed.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian iproute2=6.1.0-3
two_uplinks
cat >"$work/kill.py" <<'PYTHON'
import socket
import subprocess

NOBODY = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]

with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
    accepted = listener.accept()[0]
    accepted.settimeout(5)
    port = str(listener.getsockname()[1])
    for name, prefix in ("nobody", NOBODY), ("root", []):
        status = subprocess.run([*prefix, "ss", "--kill", "dport", "=", port], capture_output=True).returncode
        try:
            sock.send(b"x")
            state = f"got {accepted.recv(1)}"
        except OSError as error:
            state = type(error).__name__
        print(f"{name}: status {status}, the connection: {state}")
PYTHON
host "$PYTHON" "$work/kill.py" >"$seen"
compare <<'SEEN'
nobody: status 0, the connection: got b'x'
root: status 0, the connection: ConnectionAbortedError
SEEN
