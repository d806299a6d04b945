#!/usr/bin/env bash
# aioquic 1.7.2: aioquic.asyncio.connect() to a name with two addresses, of which the first does not answer.
# Guess: the second is tried, at the latest when the first has been refused.
# Seen: only the first address of getaddrinfo() is used. The refusal (ICMP) is not noticed, nothing is sent to the second address, and
#   after the idle timeout a ConnectionError without a message is raised.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages aioquic==1.7.2
py >"$seen" <<'PYTHON'
import asyncio
import socket

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

second = socket.socket(type=socket.SOCK_DGRAM)
second.bind(("127.0.0.1", 0))
second.setblocking(False)
port = second.getsockname()[1]


class Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, host, port, **options):
        addresses = await super().getaddrinfo("127.0.0.2", port, type=socket.SOCK_DGRAM)
        return addresses + await super().getaddrinfo("127.0.0.1", port, type=socket.SOCK_DGRAM)


async def main():
    configuration = QuicConfiguration(alpn_protocols=["h3"], idle_timeout=2)
    try:
        async with connect("name.example", port, configuration=configuration):
            print("connected")
    except ConnectionError as error:
        print(repr(error))
    try:
        second.recv(2000)
        print("the second address was tried")
    except BlockingIOError:
        print("the second address was not tried")


with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main())
PYTHON
compare <<'SEEN'
ConnectionError()
the second address was not tried
SEEN
