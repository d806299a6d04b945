"""A stream of datagrams that follows the effective interface, with one transport and the same local port.

Use it for telemetry, games, calls, DNS, a VPN client's own packets, instead of loop.create_datagram_endpoint().
The program need not do anything when the network changes, for example from Wi-Fi to Ethernet.
"""

import argparse
import asyncio
import contextlib
import itertools
from typing import Any

import bindsock


class Replies(asyncio.DatagramProtocol):
    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        print("received", data.decode(errors="replace"))

    def error_received(self, exc: Exception) -> None:
        print("error", exc)


async def stream(host: str, port: int, interval: float) -> None:
    transport, _ = await bindsock.create_datagram_endpoint(Replies, remote_addr=(host, port))
    try:
        for number in itertools.count(1):
            transport.sendto(str(number).encode())
            print("sent", number, "by", bindsock.interface_of(transport))
            await asyncio.sleep(interval)
    finally:
        transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Send numbered datagrams to an echo server, bypassing the VPN, until Ctrl-C.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two datagrams")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(stream(arguments.host, arguments.port, arguments.interval))


if __name__ == "__main__":
    main()
