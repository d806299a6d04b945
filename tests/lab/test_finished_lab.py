"""Connections whose peer has said everything: what has arrived is read to its end, although the path is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

import bindsock
from bindsock.kernel.linux import sockets
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.stream import viability
from bindsock.testing.lab import Lab
from tests.waiting import settle, until

pytestmark = pytest.mark.lab

TCP_INFO = 11
ANSWER = bytes(range(256)) * 1000


class Answering(asyncio.Protocol):
    """The server's end: answers with :data:`ANSWER`, and ends its stream."""

    def __init__(self, made: list[asyncio.Transport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._made[-1].write(ANSWER)
        self._made[-1].write_eof()


@contextlib.asynccontextmanager
async def answering(lab: Lab, family: socket.AddressFamily = socket.AF_INET, protocol: int = 0) -> AsyncIterator[tuple[str, int]]:
    """The address of a server for one connection."""
    made: list[asyncio.Transport] = []
    with lab.inside("server"):
        listener = socket.socket(family, socket.SOCK_STREAM, protocol)
        listener.bind((lab.server.address(family), 0))
    async with await asyncio.get_running_loop().create_server(lambda: Answering(made), sock=listener):
        yield listener.getsockname()[:2]
        for transport in made:
            transport.abort()
        await settle()


async def asked(address: tuple[str, int], **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with the answer in the kernel, since the reader takes no more than a few bytes."""
    reader, writer = await bindsock.open_connection(*address, limit=1 << 10, **options)
    writer.write(b"question\n")
    await until(lambda: sockets.has_finished(writer.get_extra_info("socket")))
    return reader, writer


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def test_an_answer_that_has_come_is_read_after_its_interface_is_lost(lab: Lab, family: socket.AddressFamily) -> None:
    lab.vpn_up("metric")
    async with answering(lab, family) as address:
        reader, writer = await asked(address)
        lab.down("wifi0")
        await until(lambda: bindsock.effective_interface(family).name == "eth0")
        assert await reader.read() == ANSWER
        assert bindsock.statistics().ended == 0
        writer.write(b"another question\n")
        await until(lambda: isinstance(reader.exception(), bindsock.InterfaceChanged))
        writer.close()


@pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP")
async def test_unread_data_of_a_multipath_connection_outlives_its_subflows(lab: Lab) -> None:
    async with answering(lab, protocol=mptcp.IPPROTO_MPTCP) as address:
        reader, writer = await asked(address, multipath=True, dead_after=0.8)
        sock = writer.get_extra_info("socket")
        writer.write_eof()
        await until(lambda: mptcp.states(sock) == [])
        await asyncio.sleep(2 * viability.STALL_GRACE)  # the end of the last subflow is noticed after last_subflow.PERIOD
        lab.down("wifi0")
        await until(lambda: bindsock.effective_interface().name == "eth0")
        assert await reader.read() == ANSWER
        assert bindsock.statistics().ended == 0
        writer.close()


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection by wifi0."""
    with lab.inside("server"):
        listener = socket.create_server((lab.server.ipv4, 0))
    with listener:
        near = socket.create_connection(listener.getsockname(), 20, (lab.address("wifi0"), 0))
        far, _ = listener.accept()
    with near, far:
        yield near, far


async def test_what_counts_as_finished(lab: Lab, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    finished = sockets.has_finished
    assert not finished(near)
    near.sendall(b"question")
    far.sendall(ANSWER[:1000])
    assert not finished(near)
    assert far.recv(100) == b"question"
    far.shutdown(socket.SHUT_WR)
    near.recv(1, socket.MSG_PEEK)
    await until(lambda: finished(near))
    lab.down("wifi0")
    near.sendall(b"x")
    assert not finished(near), "one byte is unacknowledged"
    lab.up("wifi0")
    await until(lambda: finished(near))
    near.shutdown(socket.SHUT_WR)
    await until(lambda: near.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] == 7)  # TCP_CLOSE
    assert finished(near)
    near.close()
    assert not finished(near)


async def test_a_reset_is_no_end(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    await until(lambda: near.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] == 7)
    assert not sockets.has_finished(near)
