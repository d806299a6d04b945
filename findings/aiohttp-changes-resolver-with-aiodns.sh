#!/usr/bin/env bash
# aiohttp 3.14.5: who resolves names when aiodns 4.0.4 happens to be installed.
# Guess: the event loop's getaddrinfo(), unless a resolver is passed to the connector.
# Seen: once aiodns can be imported, c-ares resolves, and loop.getaddrinfo() (an overridden one, too) is not asked any more. It is
#   enough that another package depends on aiodns.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages aiohttp==3.14.5 aiodns==4.0.4
cat >"$work/resolve.py" <<'PYTHON'
import asyncio

import aiohttp


class Loop(asyncio.SelectorEventLoop):
    asked = False

    async def getaddrinfo(self, host, port, **options):
        self.asked = self.asked or host == "localhost"
        return await super().getaddrinfo(host, port, **options)


async def main():
    async with aiohttp.ClientSession() as session:
        try:
            await session.get("http://localhost:9/")
        except aiohttp.ClientConnectorError:
            pass
    print("the loop was asked:", asyncio.get_running_loop().asked)


with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main())
PYTHON
py "$work/resolve.py" >"$seen"
"$PYTHON" -m pip --python "$work/venv/bin/python" uninstall --quiet --disable-pip-version-check --yes aiodns
py "$work/resolve.py" >>"$seen"
compare <<'SEEN'
the loop was asked: False
the loop was asked: True
SEEN
