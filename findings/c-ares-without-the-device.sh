#!/usr/bin/env bash
# aiodns 4.0.4, pycares 5.2.1 (c-ares): local_dev= names a device that does not exist (any more).
# Guess: an error, when the resolver is made or at the first query.
# Seen: neither; the query goes out unbound, by the default route, and is answered.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages aiodns==4.0.4 pycares==5.2.1
two_uplinks
serve "$ROUTER" "$PYTHON" dnsserver.py 10.9.0.10
cat >"$work/client.py" <<'PYTHON'
import asyncio
import sys

import aiodns


async def main(device):
    resolver = aiodns.DNSResolver(nameservers=["10.9.0.10"], local_dev=device, timeout=2, tries=1)
    result = await resolver.query_dns(f"{device}.example", "A")
    print(device, "answered with", result.answer[0].data.addr)


for device in sys.argv[1:]:
    asyncio.run(main(device))
PYTHON
host "$work/venv/bin/python" "$work/client.py" wan1 wan9 >"$seen"
grep asked "$work/output.0" >>"$seen"
compare <<'SEEN'
wan1 answered with 192.0.2.1
wan9 answered with 192.0.2.1
wan1.example asked from 10.2.0.2
wan9.example asked from 10.1.0.2
SEEN
