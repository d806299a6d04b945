"""A real gRPC server in its own process, in the laboratory's server. It reports its clients' addresses.

gRPC's C core keeps threads for the whole process, and each thread makes its sockets in the network namespace in which it was
started. So the server and the client each need their own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from bindsock.testing.lab import Lab
from tests.integrations.servers import Servers

PORT, TLS_PORT, SECOND_PORT = 50051, 50052, 50053
SERVICE = "lab.Echo"


@contextlib.contextmanager
def grpc_server(lab: Lab, servers: Servers) -> Iterator[None]:
    """Run the server until the block is left."""
    command = [sys.executable, "-m", __name__, servers.host, str(servers.chain_file), str(servers.key_file)]
    with (
        lab.inside("server"),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            with lab.inside("host"):
                yield
        finally:
            process.send_signal(signal.SIGTERM)


def source_of(context: Any) -> str:
    """The client's address. gRPC has it as ``ipv4:10.0.0.1:1234`` or ``ipv6:%5Bfd00::1%5D:1234``."""
    return unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")


async def whence(request: bytes, context: Any) -> bytes:
    """Answer with the client's address, and with the client's metadata as trailing metadata."""
    sent = dict(context.invocation_metadata())
    context.set_trailing_metadata((("said", str(sent.get("say", ""))), ("authority", str(sent.get("host", "")))))
    return source_of(context).encode()


async def whence_message(request: bytes, context: Any) -> bytes:
    """Answer with the client's address, in a message whose first field is a string."""
    source = source_of(context).encode()
    return bytes([0x0A, len(source)]) + source


async def never(request: bytes, context: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
    """Send numbers and the client's address until the client ends the call."""
    number = 0
    while True:
        yield f"{number} {source_of(context)}".encode()
        number += 1
        await asyncio.sleep(0.005)


async def talk(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


async def total(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return str(sum([len(request) async for request in requests])).encode()


async def serve(host: str, chain_file: str, key_file: str) -> None:
    handlers = {
        "Whence": grpc.unary_unary_rpc_method_handler(whence),
        "WhenceMessage": grpc.unary_unary_rpc_method_handler(whence_message),
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Total": grpc.stream_unary_rpc_method_handler(total),
    }
    second = {"Whence": grpc.unary_unary_rpc_method_handler(lambda request, context: b"the second server")}
    credentials = grpc.ssl_server_credentials([(Path(key_file).read_bytes(), Path(chain_file).read_bytes())])
    servers = [grpc.aio.server(), grpc.aio.server()]
    servers[0].add_insecure_port(f"{host}:{PORT}")
    servers[0].add_secure_port(f"{host}:{TLS_PORT}", credentials)
    servers[1].add_insecure_port(f"{host}:{SECOND_PORT}")
    for server, methods in zip(servers, (handlers, second), strict=True):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("ready", flush=True)
    await ended.wait()
    for server in servers:
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
