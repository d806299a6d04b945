#!/usr/bin/env bash
# dnspython 2.9.2: dns.asyncquery under asyncio and then under trio, in one process, as a test suite with both backends does.
# Guess: the library that is running is found out at each call.
# Seen: the first call decides for the process; under the other one every call fails with RuntimeError, until
#   dns.asyncbackend.set_default_backend() is called or backend= is given.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages dnspython==2.9.2 trio==0.35.0
cat >"$work/both.py" <<'PYTHON'
import asyncio
import socket
import sys

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.message
import trio

silent = socket.socket(type=socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 0))


async def main(name):
    query = dns.message.make_query("example.org", "A")
    try:
        await dns.asyncquery.udp(query, "127.0.0.1", port=silent.getsockname()[1], timeout=0.2)
    except dns.exception.Timeout:
        print(name, "asked")
    except RuntimeError as error:
        print(name, "RuntimeError:", error)


for name in sys.argv[1:]:
    asyncio.run(main(name)) if name == "asyncio" else trio.run(main, name)
dns.asyncbackend.set_default_backend(name)
asyncio.run(main(name)) if name == "asyncio" else trio.run(main, name)
PYTHON
{ py "$work/both.py" asyncio trio; py "$work/both.py" trio asyncio; } >"$seen"
compare <<'SEEN'
asyncio asked
trio RuntimeError: no running event loop
trio asked
trio asked
asyncio RuntimeError: Cannot be used outside of a run context
asyncio asked
SEEN
