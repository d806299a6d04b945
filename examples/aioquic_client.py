"""Downloads a file by HTTP/3 over one QUIC connection, which goes on by another interface when its own goes.

Use it with aioquic for downloads, calls and tunnels that must not start again: QUIC identifies a connection by its id.
bindsock.integrations.aioquic.connect() takes the arguments of aioquic.asyncio.connect().
"""

import argparse
import asyncio
import sys
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent

from bindsock.integrations.aioquic import connect


class HttpClient(QuicConnectionProtocol):
    """A minimal HTTP/3 client that gets one file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.http = H3Connection(self._quic)
        self.events: asyncio.Queue[H3Event | ConnectionTerminated] = asyncio.Queue()

    def get(self, host: str, path: str) -> None:
        request = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in request.items()]
        self.http.send_headers(self._quic.get_next_available_stream_id(), headers, end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.events.put_nowait(event)
        for http_event in self.http.handle_event(event):
            self.events.put_nowait(http_event)


async def download(host: str, port: int, path: str, certificates: str | None) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN)
    if certificates is not None:
        configuration.load_verify_locations(certificates)
    async with connect(host, port, configuration=configuration, create_protocol=HttpClient) as client:
        assert isinstance(client, HttpClient)
        client.get(host, path)
        while True:
            match await client.events.get():
                case HeadersReceived(headers=headers):
                    print(dict(headers)[b":status"].decode(), file=sys.stderr)
                case DataReceived(data=data, stream_ended=ended):
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                    if ended:
                        break
                case ConnectionTerminated(reason_phrase=reason):
                    raise ConnectionError(reason)


def main() -> None:
    parser = argparse.ArgumentParser(description="Get a file by HTTP/3, bypassing the VPN, and write it to standard output.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="?", default="/")
    parser.add_argument("--certificates", metavar="FILE", help="the authorities to trust, instead of the usual ones")
    arguments = parser.parse_args()
    asyncio.run(download(arguments.host, arguments.port, arguments.path, arguments.certificates))


if __name__ == "__main__":
    main()
