"""anyio's UDP functions with the VPN up, on every backend."""

from __future__ import annotations

import socket

import anyio
import pytest
from anyio.abc import ConnectedUDPSocket, SocketAttribute, UDPSocket

import bindsock
import bindsock.anyio
from bindsock.anyio import BindsockAttribute, create_connected_udp_socket, create_udp_socket
from bindsock.datagram.open import open_datagram
from bindsock.testing.lab import Lab
from tests.anyio.conftest import opens_no_more_descriptors
from tests.integrations.tunnel import nothing_through_the_tunnel

from .conftest import Run

pytestmark = pytest.mark.lab

NUMBERED = 300
IN_FLIGHT = 50
"""Fewer than a socket keeps until they are received: a server that stands still for a while answers all at once."""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connected_socket_moves(lab: Lab, run: Run, family: socket.AddressFamily) -> None:
    async def main() -> None:
        async with await create_connected_udp_socket(lab.server.address(family), lab.server.udp_port) as sock:
            assert isinstance(sock, ConnectedUDPSocket)
            await sock.send(b"ping")
            assert (await sock.receive()).decode().split()[0] == lab.address("wifi0", family)
            assert sock.extra(BindsockAttribute.interface) == "wifi0"
            assert sock.extra(SocketAttribute.remote_address) == (lab.server.address(family), lab.server.udp_port)
            port = sock.extra(SocketAttribute.local_port)
            lab.down("wifi0")
            await sock.send(b"ping")
            assert (await sock.receive()).decode().split()[:2] == [lab.address("eth0", family), str(port)]
            assert sock.extra(BindsockAttribute.interface) == "eth0"
            assert sock.extra(SocketAttribute.local_address) == (lab.address("eth0", family), port)

    lab.vpn_up("metric")
    with nothing_through_the_tunnel(lab):
        run(main)


def test_an_unconnected_socket_moves(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async with await create_udp_socket(socket.AF_INET) as sock:
            assert isinstance(sock, UDPSocket)
            for interface in ("wifi0", "eth0"):
                await sock.sendto(b"ping", lab.server.ipv4, lab.server.udp_port)
                data, address = await sock.receive()
                assert data.decode().split()[0] == lab.address(interface)
                assert address == (lab.server.ipv4, lab.server.udp_port)
                lab.down("wifi0")

    lab.vpn_up("metric")
    run(main)


def test_between_two_live_uplinks_no_datagram_and_no_reply_is_lost(lab: Lab, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # An old socket receives until the last reply is here, however late the server is.
    assert open_datagram.__kwdefaults__ is not None
    monkeypatch.setitem(open_datagram.__kwdefaults__, "overlap", 1000.0)

    async def main() -> None:
        received: set[int] = set()
        unanswered = anyio.Semaphore(IN_FLIGHT)
        async with (
            await create_connected_udp_socket(lab.server.ipv4, lab.server.udp_port) as sock,
            anyio.create_task_group() as tasks,
        ):

            async def receive() -> None:
                while len(received) < NUMBERED:
                    received.add(int((await sock.receive()).split()[2]))
                    unanswered.release()

            tasks.start_soon(receive)
            for number in range(NUMBERED):
                if number % 50 == 25:
                    lab.default(("eth0", "wifi0")[number // 50 % 2])
                await unanswered.acquire()
                await sock.send(str(number).encode())
                await anyio.sleep(0.001)
            with anyio.fail_after(20):
                while len(received) < NUMBERED:
                    await anyio.sleep(0.01)

    lab.reply_delay(0.02)
    run(main)
    assert {lab.interface_of(d.source) for d in lab.datagrams()} == {"wifi0", "eth0"}


def test_what_is_sent_while_there_is_no_path_is_sent_by_the_next_one(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async with await create_connected_udp_socket(lab.server.ipv4, lab.server.udp_port) as sock:
            lab.down("wifi0")
            lab.down("eth0")
            async with anyio.create_task_group() as tasks:

                async def up() -> None:
                    await anyio.sleep(0.05)
                    lab.up("eth0")

                tasks.start_soon(up)
                await sock.send(b"ping")
            assert (await sock.receive()).decode().split()[0] == lab.address("eth0")

    run(main)


def test_conflicts_and_the_end_are_anyios(lab: Lab, run: Run) -> None:
    async def main() -> None:
        sock = await create_connected_udp_socket(lab.server.ipv4, lab.server.udp_port)
        async with anyio.create_task_group() as tasks:

            async def ended() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await sock.receive()

            tasks.start_soon(ended)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await sock.receive()
            await sock.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await sock.send(b"more")
        await sock.aclose()

    run(main)


def test_a_local_address_that_goes_ends_the_socket_with_the_reason(lab: Lab, run: Run) -> None:
    async def main() -> None:
        sock = await create_udp_socket(local_host=lab.address("wifi0"))
        async with sock:
            lab.remove_addresses("wifi0")
            with pytest.raises(anyio.BrokenResourceError) as error:
                await sock.receive()
            assert isinstance(error.value.__cause__, bindsock.InterfaceChanged)

    run(main)


def test_arguments_are_anyios(lab: Lab, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="must be given"):
            await create_udp_socket()
        async with await create_udp_socket(socket.AF_INET, local_port=45000, reuse_port=True) as sock:
            assert sock.extra(SocketAttribute.local_port) == 45000
            async with await create_udp_socket(local_host="0.0.0.0", local_port=45000, reuse_port=True) as other:
                assert other.extra(SocketAttribute.local_port) == 45000
        async with await create_connected_udp_socket(lab.server.ipv4, 9, local_port=45001, interface="eth0") as connected:
            assert connected.extra(SocketAttribute.local_address) == (lab.address("eth0"), 45001)
        lab.down("wifi0")
        lab.down("eth0")
        with pytest.raises(bindsock.NoEffectiveInterface):
            await create_connected_udp_socket(lab.server.ipv4, 9)

    run(main)


def test_nothing_is_left_open(lab: Lab, run: Run) -> None:
    async def main() -> None:
        async with await create_connected_udp_socket(lab.server.ipv4, lab.server.udp_port) as sock:
            await sock.send(b"ping")
            await sock.receive()
        async with await create_udp_socket(socket.AF_INET):
            pass

    opens_no_more_descriptors(run, main)
