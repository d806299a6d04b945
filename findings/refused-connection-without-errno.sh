#!/usr/bin/env bash
# anyio 4.16.0, trio 0.35.0: a connection to one numeric address that refuses.
# Guess: with a single address there is a single error, ConnectionRefusedError, as asyncio raises it.
# Seen: anyio and trio raise a plain OSError whose errno is None; the refusal is only its cause (anyio) or in a group that is its cause (trio).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
packages anyio==4.16.0 trio==0.35.0 uvloop==0.23.0
py >"$seen" <<'PYTHON'
import asyncio
import socket

import anyio
import trio
import uvloop

listener = socket.socket()
listener.bind(("127.0.0.1", 0))  # bound and not listening: refuses
address = listener.getsockname()


async def with_asyncio():
    await asyncio.open_connection(*address)


async def with_anyio():
    await anyio.connect_tcp(*address)


async def with_trio():
    await trio.open_tcp_stream(*address)


for name, run in (
    ("asyncio", lambda: asyncio.run(with_asyncio())),
    ("uvloop", lambda: uvloop.run(with_asyncio())),
    ("anyio", lambda: anyio.run(with_anyio)),
    ("anyio on trio", lambda: anyio.run(with_anyio, backend="trio")),
    ("trio", lambda: trio.run(with_trio)),
):
    try:
        run()
    except OSError as error:
        print(f"{name}: {type(error).__name__}, errno {error.errno}, cause {type(error.__cause__).__name__}")
PYTHON
compare <<'SEEN'
asyncio: ConnectionRefusedError, errno 111, cause NoneType
uvloop: ConnectionRefusedError, errno 111, cause NoneType
anyio: OSError, errno None, cause ConnectionRefusedError
anyio on trio: OSError, errno None, cause ConnectionRefusedError
trio: OSError, errno None, cause ExceptionGroup
SEEN
