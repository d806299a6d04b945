"""The proxy's limits and its shutdown, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

import pytest

from bindsock import TransportFactory
from bindsock.dial.resolving import AddrInfo
from bindsock.proxy import Proxy
from bindsock.testing import SimulatedKernel, network
from tests.waiting import until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def factory() -> AsyncIterator[TransportFactory]:
    async with TransportFactory(kernel=SimulatedKernel(network())) as factory:
        yield factory


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that reads everything, and then sends it back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(await reader.read())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def ask(address: tuple[str, int], port: int) -> Streams:
    """Ask the proxy for a connection."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
    return reader, writer


@contextlib.asynccontextmanager
async def through_proxy(factory: TransportFactory) -> AsyncIterator[tuple[Proxy, asyncio.StreamWriter]]:
    """A connection by a proxy to a server that echoes, once the proxy has connected it."""
    async with Proxy(factory) as proxy, echo() as port:
        reader, writer = await ask(await proxy.listen(port=0), port)
        await reader.readuntil(b"\r\n\r\n")
        yield proxy, writer


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_half_closed_connection_is_half_closed_on_the_other_side(factory: TransportFactory) -> None:
    async with Proxy(factory) as proxy, echo() as port:
        reader, writer = await ask(await proxy.listen(port=0), port)
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == b"HTTP/1.1 200 Connection established\r\n\r\nall of it"
        await end(writer)


async def test_further_clients_are_turned_away_until_one_leaves(
    factory: TransportFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(factory, max_connections=1) as proxy, echo() as port:
        address = await proxy.listen(port=0)
        reader, writer = await ask(address, port)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(3):
            with contextlib.suppress(ConnectionResetError):
                refused, refusing = await ask(address, port)
                assert await refused.read() == b""
            await end(refusing)
        await end(writer)
        async with asyncio.timeout(20):
            while True:
                reader, writer = await ask(address, port)
                with contextlib.suppress(ConnectionResetError):
                    if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                        break
                await end(writer)
        await end(writer)
    rejecting = [r.getMessage() for r in caplog.records if "rejecting" in r.getMessage()]
    assert rejecting[0] == "1 clients are connected, rejecting further clients"


async def test_a_client_that_does_not_say_what_it_wants_is_cut_off(
    factory: TransportFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Proxy(factory, handshake_timeout=0.05) as proxy:
        reader, writer = await asyncio.open_connection(*await proxy.listen(port=0))
        writer.write(b"CONNECT exam")
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        await end(writer)
    assert any("sent no complete request" in r.getMessage() for r in caplog.records)


async def test_a_head_beyond_the_limit_is_refused(factory: TransportFactory) -> None:
    async with Proxy(factory, head_limit=100) as proxy:
        reader, writer = await asyncio.open_connection(*await proxy.listen(port=0))
        writer.write(b"CONNECT example.com:443 HTTP/1.1\r\nX: " + b"x" * 200 + b"\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        await end(writer)


async def test_a_client_that_goes_away_takes_its_connection_with_it(factory: TransportFactory) -> None:
    gone: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    class Target(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            gone.set_result(exc)

    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0)
    async with server, Proxy(factory) as proxy:
        reader, writer = await ask(await proxy.listen(port=0), server.sockets[0].getsockname()[1])
        await reader.readuntil(b"\r\n\r\n")
        await end(writer)
        async with asyncio.timeout(20):
            await gone


async def test_a_client_that_does_not_wait_for_the_servers_last_words_breaks_nothing(
    factory: TransportFactory, caplog: pytest.LogCaptureFixture
) -> None:
    # As curl does, which closes its socket without waiting for the server's end of TLS.
    caplog.set_level(logging.INFO)
    async with through_proxy(factory) as (_, writer):
        writer.write(b"the end")
        await end(writer)
        await until(lambda: any(" up, " in r.getMessage() for r in caplog.records), seconds=20)
    assert "done, 7 bytes up, 7 down" in caplog.text


async def test_closing_the_proxy_ends_its_connections_and_leaves_nothing_open(factory: TransportFactory) -> None:
    async with echo() as port:
        before = len(os.listdir("/dev/fd"))
        async with Proxy(factory) as proxy:
            reader, writer = await ask(await proxy.listen(port=0), port)
            await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        await end(writer)
        await until(lambda: len(os.listdir("/dev/fd")) <= before, seconds=20)


async def test_the_log_says_of_a_connection_that_the_proxys_end_has_ended_it(
    factory: TransportFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with through_proxy(factory) as (proxy, writer):
        await proxy.aclose()
        await end(writer)
    assert "ended, because the proxy is stopped, 0 bytes up, 0 down" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_only_loopback_is_listened_on_without_credentials(factory: TransportFactory, host: str) -> None:
    async with Proxy(factory) as proxy:
        with pytest.raises(ValueError, match="needs credentials"):
            await proxy.listen(host, 0)


def test_no_credentials_at_all_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one user"):
        Proxy(TransportFactory(kernel=SimulatedKernel(network())), credentials={})


@pytest.mark.parametrize("host", ["a" * 80 + ".de", "a..b", ".de", "ä" * 60 + ".de"])
async def test_what_cannot_be_a_host_name_is_answered(
    factory: TransportFactory, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    name = host.encode()
    requests = {
        b"CONNECT " + name + b":80 HTTP/1.1\r\n\r\n": b"HTTP/1.1 400 Bad Request\r\n",
        b"GET http://" + name + b"/ HTTP/1.1\r\n\r\n": b"HTTP/1.1 400 Bad Request\r\n",
        b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x50": b"\x05\x00\x05\x04\x00\x01",
    }
    async with Proxy(factory) as proxy:
        address = await proxy.listen(port=0)
        for request, expected in requests.items():
            reader, writer = await asyncio.open_connection(*address)
            writer.write(request)
            assert (await reader.read()).startswith(expected)
            await end(writer)
    assert "Traceback" not in caplog.text


async def test_a_scope_that_is_no_number_is_answered(factory: TransportFactory, caplog: pytest.LogCaptureFixture) -> None:
    async with Proxy(factory) as proxy:
        reader, writer = await asyncio.open_connection(*await proxy.listen(port=0))
        writer.write("CONNECT [fe80::1%²]:80 HTTP/1.1\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        await end(writer)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("error", [OverflowError("too large"), ValueError("embedded null byte"), UnicodeError("not a label")])
async def test_a_resolver_that_does_not_understand_the_host_is_answered(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def resolver(host: str | None, port: int | str | None, **options: int) -> list[AddrInfo]:
        raise error

    async with TransportFactory(kernel=SimulatedKernel(network()), resolver=resolver) as factory, Proxy(factory) as proxy:
        reader, writer = await asyncio.open_connection(*await proxy.listen(port=0))
        writer.write(b"CONNECT example.com:80 HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        await end(writer)
    assert "Traceback" not in caplog.text
