#!/usr/bin/env bash
# pyroute2 0.9.7: IPRoute(netns=NAME) with a name that does not exist.
# Guess: FileNotFoundError, as "ip netns exec" and "ip -n" refuse it.
# Seen: a new, empty network namespace of that name is created and used, and stays: a misspelt name looks like a machine without routes.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
needs_root
packages pyroute2==0.9.7
name=finding-misspelt-$$
forget() { if [ -e "/run/netns/$name" ]; then namespaces+=("$name"); fi; finish; }
trap forget EXIT
py - "$name" >"$seen" <<'PYTHON'
import os
import sys

from pyroute2 import IPRoute

name = sys.argv[1]
print("there before:", os.path.exists(f"/run/netns/{name}"))
with IPRoute(netns=name) as route:
    print("links:", [link.get("ifname") for link in route.get_links()])
print("there after:", os.path.exists(f"/run/netns/{name}"))
PYTHON
compare <<'SEEN'
there before: False
links: ['lo']
there after: True
SEEN
