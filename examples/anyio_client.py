"""anyio's streams and datagrams, bypassing the VPN, on asyncio and on trio.

Use it in programs and libraries written for anyio: the functions have its names, arguments and return types.
When the interface goes, a stream raises anyio.BrokenResourceError at once, caused by bindsock.InterfaceChanged; UDP sockets move.
"""

import argparse

import anyio

import bindsock.anyio


async def request(host: str, port: int, path: str) -> None:
    async with await bindsock.anyio.connect_tcp(host, port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async for part in stream:
            print(part.decode(errors="replace"), end="")


async def ask(host: str, port: int, question: str) -> None:
    async with await bindsock.anyio.create_connected_udp_socket(host, port) as socket:
        await socket.send(question.encode())
        print((await socket.receive()).decode(errors="replace"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Send an HTTP request, or a datagram with a question, bypassing the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="?", default="/")
    parser.add_argument("--udp", action="store_true", help="the path is a question to be sent as a datagram")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    function = ask if arguments.udp else request
    anyio.run(function, arguments.host, arguments.port, arguments.path, backend=arguments.backend)


if __name__ == "__main__":
    main()
