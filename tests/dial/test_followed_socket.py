"""Sockets that report when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
from typing import Any

import pytest

import bindsock
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.lingering_close import LingeringClose, LingeringSockets
from bindsock.testing import SimulatedKernel, interface, network
from tests.tls import tls_client_context, tls_server_context
from tests.virtual_loop import VirtualLoop

WIFI = interface("2: wifi0 wifi ::1/128")


class Transport:
    """Closes its socket when it is freed, after a file was opened in between.

    :param opened: called with the file's descriptor
    """

    sock: FollowedSocket

    def __init__(self, opened: list[int]) -> None:
        self._opened = opened

    def __del__(self) -> None:
        self._opened.append(os.open(os.devnull, os.O_RDONLY))
        os.close(self.sock.detach())


def test_what_is_freed_together_with_its_transport_closes_nobody_elses_file() -> None:
    opened: list[int] = []
    transport = Transport(opened)  # made before the socket, and so freed before it
    ours, theirs = socket.socketpair()
    sock = FollowedSocket(ours.family, ours.type, ours.proto, fileno=ours.detach())
    sock.set_lingering_close(LingeringClose(LingeringSockets(VirtualLoop().runtime), SimulatedKernel(network())))
    sock.expect_detach()
    transport.sock, sock.guard = sock, transport
    del sock, transport
    gc.collect()
    (descriptor,) = opened
    assert os.path.samestat(os.fstat(descriptor), os.stat(os.devnull))
    os.close(descriptor)
    assert theirs.recv(1) == b""
    theirs.close()


async def test_a_connection_that_ends_as_its_transport_is_made_closes_nobody_elses_file() -> None:
    """uvloop's transport closes the descriptor before it has the socket object."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = await bindsock.connect(*listener.getsockname())
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))

        def protocol() -> asyncio.Protocol:
            peer.close()
            return asyncio.Protocol()

        with pytest.raises(OSError, match=r"reset|pipe|lost"):
            await bindsock.create_connection(protocol, sock=sock, ssl=tls_client_context(), server_hostname="localhost")
    del sock
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
    await asyncio.sleep(0)
    gc.collect()
    for descriptor in opened:
        assert os.path.samestat(os.fstat(descriptor), os.stat(os.devnull))
        os.close(descriptor)


class Late(LingeringClose):
    """The handshake is over just after the state of the socket was looked at."""

    def __init__(self, listener: socket.socket, kernel: SimulatedKernel) -> None:
        super().__init__(LingeringSockets(VirtualLoop().runtime), kernel)
        self._address = listener.getsockname()

    def duplicate(self, sock: socket.socket) -> socket.socket | None:
        found = super().duplicate(sock)
        sock.connect(self._address)
        return found


def test_a_connection_that_is_made_as_its_dial_is_given_up_is_reset() -> None:
    """After an orderly end the kernel would answer the peer's FIN by the routing table."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        kernel = SimulatedKernel(network(WIFI))
        sock = FollowedSocket(socket.AF_INET6, socket.SOCK_STREAM)
        kernel.bind(sock, WIFI)
        sock.set_lingering_close(Late(listener, kernel))
        sock.close()
        with listener.accept()[0] as peer, pytest.raises(ConnectionResetError):
            peer.recv(1)


@pytest.mark.parametrize(("bound", "listening"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
def test_a_servers_socket_that_another_process_shares_keeps_its_connections_orderly(
    address: str, bound: bool, listening: bool
) -> None:
    kernel = SimulatedKernel(network(WIFI))
    closing = LingeringClose(LingeringSockets(VirtualLoop().runtime), kernel)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as server:
        if bound:
            kernel.bind(server, WIFI)
        server.bind((address, 0))
        if listening:
            server.listen()
        assert closing.duplicate(server) is None
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as accepted:
            accepted.sendall(b"ping")
            accepted.close()
            assert client.recv(4) == b"ping"
            assert client.recv(4) == b""


class Cancelling(asyncio.Protocol):
    """Cancels the dial as soon as the handshake is over."""

    dial: asyncio.Task[object]

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.dial.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def test_a_dial_that_is_cancelled_as_its_handshake_ends_leaves_its_descriptor_to_nobody() -> None:
    """The transport is still closing TLS at this time, and the loop watches its descriptor."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    protocol = Cancelling()
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls_server_context()) as server:
        host, port = server.sockets[0].getsockname()
        tls = tls_client_context()
        dial = bindsock.create_connection(lambda: protocol, host, port, ssl=tls, server_hostname="localhost")
        protocol.dial = asyncio.ensure_future(dial)
        with pytest.raises(asyncio.CancelledError):
            await protocol.dial
        _, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname="localhost")
        async with asyncio.timeout(20):
            await protocol.lost.wait()
        writer.write(b"still here")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def test_a_dial_that_is_cancelled_before_it_sees_that_its_handshake_is_over_raises_nothing_else() -> None:
    """uvloop closes the transport beneath a TLS protocol that has just become ready, and does not tell it."""
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    ours, theirs = socket.socketpair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls_server_context().wrap_bio(incoming, outgoing, server_side=True)
    dial = asyncio.ensure_future(
        bindsock.create_connection(asyncio.Protocol, sock=ours, ssl=tls_client_context(), server_hostname="localhost")
    )

    def answer_and_cancel() -> None:
        incoming.write(theirs.recv(2**16))
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        theirs.sendall(outgoing.read())
        dial.cancel()

    await asyncio.sleep(0)
    loop.call_soon(answer_and_cancel)  # right after the transport has called connection_made()
    with theirs, pytest.raises(asyncio.CancelledError):
        await dial
    await asyncio.sleep(0.01)
    assert reported == []
    assert ours.fileno() == -1


def test_a_socket_whose_first_connect_was_refused_reports_the_second() -> None:
    reported: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, FollowedSocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.on_connect(lambda _, address, chosen: reported.append((address, chosen)))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                sock.connect(unused.getsockname())
        assert reported == []
        sock.connect(listener.getsockname())
        assert [address for address, _ in reported] == [listener.getsockname()]
