"""Lets an event loop that a framework has made bind new connections.

It is for Jupyter, Textual and other frameworks, whose loop runs before your code. If you make the event loop yourself, use
bindsock.EventLoop instead; for a whole program, `bindsock run`.
"""

import argparse
import asyncio

import bindsock


async def greet(host: str, port: int) -> None:
    """Called by the framework, on its loop."""
    bindsock.adopt()
    reader, writer = await asyncio.open_connection(host, port)
    print(f"connected by {bindsock.interface_of(writer)}")
    print((await reader.readline()).decode().strip())
    writer.close()
    await writer.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    asyncio.run(greet(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
