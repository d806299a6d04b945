"""A datagram stream that follows the effective interface: one transport, the same local port, whatever the network does.

Use it for telemetry, games, calls, DNS, a VPN client's own packets: whatever would write loop.create_datagram_endpoint().
Send and receive as if nothing happened; there is nothing to do when Wi-Fi goes and Ethernet takes over.
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
    parser = argparse.ArgumentParser(description="Send numbered datagrams to an echo server, beneath the VPN, until Ctrl-C.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two datagrams")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(stream(arguments.host, arguments.port, arguments.interval))


if __name__ == "__main__":
    main()
