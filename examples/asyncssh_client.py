"""Runs a command on another machine, by asyncssh over a socket that bindsock connected.

Use it with any library that takes a connected socket as sock=: only that connection is bound, on a plain event loop.
The socket is followed until it is closed: when its interface goes, the library sees the connection end at once.
"""

import argparse
import asyncio
import sys

import asyncssh

import bindsock


async def run(host: str, port: int, command: str, **options: str) -> int:
    sock = await bindsock.connect(host, port)
    print("connected by", bindsock.interface_of(sock), file=sys.stderr)
    # The host name is used to check the host's key, not to connect.
    async with asyncssh.connect(host, port, sock=sock, **options) as connection:
        result = await connection.run(command)
        print(result.stdout, end="")
        return result.exit_status if result.exit_status is not None else 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a command by SSH, bypassing the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("command")
    parser.add_argument("--username", default=argparse.SUPPRESS)
    parser.add_argument("--known-hosts", default=argparse.SUPPRESS, metavar="FILE")
    sys.exit(asyncio.run(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
