#!/usr/bin/env bash
# aiodns 4.0.4, pycares 5.2.1 (c-ares): /etc/resolv.conf is replaced while a resolver exists, as at a change of network.
# Guess: the servers were read when the resolver was made, and stay until a new one is made.
# Seen: a thread of c-ares notices the new file by itself, and an existing resolver has the new servers a moment later.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages aiodns==4.0.4 pycares==5.2.1
needs_root
cat >"$work/follow.py" <<'PYTHON'
import asyncio
import os

import aiodns


async def main():
    resolver = aiodns.DNSResolver()
    print("before:", resolver.nameservers)
    with open("/etc/resolv.conf.new", "w") as new:
        new.write("nameserver 192.0.2.2\n")
    os.rename("/etc/resolv.conf.new", "/etc/resolv.conf")
    for _ in range(50):
        if resolver.nameservers != ["192.0.2.1"]:
            break
        await asyncio.sleep(0.1)
    print("after:", resolver.nameservers)


asyncio.run(main())
PYTHON
# In a mount namespace of its own, where /etc is another one.
unshare --mount sh -eu -c '
    mount -t tmpfs none /etc
    echo "hosts: files dns" >/etc/nsswitch.conf
    echo "nameserver 192.0.2.1" >/etc/resolv.conf
    exec "$0" "$1"' "$work/venv/bin/python" "$work/follow.py" >"$seen"
compare <<'SEEN'
before: ['192.0.2.1']
after: ['192.0.2.2']
SEEN
