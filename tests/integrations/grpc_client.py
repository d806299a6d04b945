"""Programs that call the gRPC server, each in its own process. They print each observation as a line of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

import bindsock.integrations.grpc
from tests.integrations.grpc_server import PORT, SECOND_PORT, SERVICE, TLS_PORT

PATIENCE = 20.0


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def calls(host: str, authority_pem: str) -> None:
    """Every kind of call, insecure and secure."""
    tls = grpc.ssl_channel_credentials(authority_pem.encode())
    async with (
        bindsock.integrations.grpc.insecure_channel(f"{host}:{PORT}") as insecure,
        bindsock.integrations.grpc.secure_channel(f"dns:///{host}:{TLS_PORT}", tls) as secure,
        bindsock.integrations.grpc.insecure_channel(f"ipv4:{host}:{SECOND_PORT}") as second,
    ):
        for name, channel in (("insecure", insecure), ("secure", secure)):
            call = channel.unary_unary(f"/{SERVICE}/Whence")(b"", metadata=(("say", "hello"),), timeout=PATIENCE)
            source = (await call).decode()
            said = dict(await call.trailing_metadata())["said"]

            async def words() -> AsyncIterator[bytes]:
                for word in (b"one", b"two", b"three"):
                    yield word

            talk = [reply.decode() async for reply in channel.stream_stream(f"/{SERVICE}/Talk")(words(), timeout=PATIENCE)]
            total = (await channel.stream_unary(f"/{SERVICE}/Total")(words(), timeout=PATIENCE)).decode()
            counted = []
            async for message in channel.unary_stream(f"/{SERVICE}/Count")(b"", timeout=PATIENCE):
                counted.append(message.decode().split()[0])
                if len(counted) == 3:
                    break
            try:
                await channel.unary_unary(f"/{SERVICE}/Never")(b"", timeout=0.3)
            except grpc.aio.AioRpcError as error:
                deadline = error.code().name
            tell(channel=name, source=source, said=said, talk=talk, total=total, counted=counted, deadline=deadline)
        answer = await second.unary_unary(f"/{SERVICE}/Whence")(b"", timeout=PATIENCE)
        tell(channel="second", answer=answer.decode())
    # gRPC closes its connection a moment later.
    tell(
        tasks=[
            repr(task) for task in asyncio.all_tasks() if "bindsock/proxy" in repr(task) or "integrations/grpc.py" in repr(task)
        ]
    )


async def refused(host: str) -> None:
    """One call without a usable interface."""
    async with bindsock.integrations.grpc.insecure_channel(f"{host}:{PORT}") as channel:
        try:
            await channel.unary_unary(f"/{SERVICE}/Whence")(b"", timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            tell(code=error.code().name, details=error.details())


async def forgetful(host: str) -> None:
    """One call. The program ends without closing the channel."""
    channel = bindsock.integrations.grpc.insecure_channel(f"{host}:{PORT}")
    tell(source=(await channel.unary_unary(f"/{SERVICE}/Whence")(b"", timeout=PATIENCE)).decode())


async def follow(host: str) -> None:
    """A stream of messages, opened again whenever it fails, as in a program that watches something."""
    async with bindsock.integrations.grpc.insecure_channel(
        f"{host}:{PORT}",
        options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)],
    ) as channel:
        while True:
            source, latest = "", time.monotonic()
            try:
                async for message in channel.unary_stream(f"/{SERVICE}/Count")(b"", wait_for_ready=True):
                    latest = time.monotonic()
                    if message.decode().split()[1] != source:
                        source = message.decode().split()[1]
                        tell(source=source)
            except grpc.aio.AioRpcError as error:
                tell(broken=error.code().name, silent=time.monotonic() - latest)


async def local() -> None:
    """Targets on this machine: neither a proxy of the environment nor bindsock's proxy is used."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"local")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Whence": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    path = f"unix-abstract:bindsock-{port}"
    server.add_insecure_port(path)
    await server.start()
    for target in (f"127.0.0.1:{port}", f"localhost:{port}", path):
        async with bindsock.integrations.grpc.insecure_channel(target) as channel:
            answer = await channel.unary_unary(f"/{SERVICE}/Whence")(b"", timeout=PATIENCE, wait_for_ready=True)
            tell(target=target.partition(":")[0], answer=answer.decode(), led=hasattr(channel, "_endpoint"))
    await server.stop(0)


PROGRAMS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "calls": calls,
    "refused": refused,
    "forgetful": forgetful,
    "follow": follow,
    "local": local,
}

if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
