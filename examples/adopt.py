"""Make an event loop that somebody else has made bind from now on.

It is for Jupyter, Textual and other frameworks, where the loop runs before any of your code does. With an event loop of your own,
use bindsock.EventLoop instead; for a whole program, `bindsock run`.
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
