"""Runs a program in any language with a proxy in its environment whose connections bypass the VPN.

Use it for programs that you cannot change but that use ALL_PROXY or HTTPS_PROXY: proxy.py curl https://example.com
For one proxy for many programs, run `bindsock proxy` and give them socks5h://127.0.0.1:1080.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

import bindsock
from bindsock.proxy import Proxy


async def run(command: Sequence[str]) -> int:
    async with bindsock.TransportFactory() as factory, Proxy(factory) as proxy:
        host, port = await proxy.listen("127.0.0.1", 0)
        url = f"http://{host}:{port}"
        names = ("all_proxy", "http_proxy", "https_proxy")
        proxies = {spelled: url for name in names for spelled in (name, name.upper())}
        program = await asyncio.create_subprocess_exec(*command, env=os.environ | proxies)
        return await program.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a program with a proxy that bypasses the VPN.")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("which program?")
    sys.exit(asyncio.run(run(arguments.command)))


if __name__ == "__main__":
    main()
