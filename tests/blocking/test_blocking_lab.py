"""Blocking sockets with a VPN: bound, refused with bindsock's errors, and ended by a loop in another thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

import bindsock
import bindsock.blocking
from bindsock.blocking import BlockingConnector, BlockingSocket, create_connection
from bindsock.stream import descriptors
from bindsock.testing.lab import Lab
from tests.integrations.test_http_lab import bring_up
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.waiting import until

pytestmark = pytest.mark.lab

PATIENCE = 20.0
NO_NAME = f"{'a' * 60}." * 5
"""Longer than a name can be: the system's resolver says so without asking a server."""
LOOPS: dict[str, Any] = {
    "asyncio": asyncio.SelectorEventLoop,
    "bindsock": bindsock.EventLoop,
    "bindsock-uvloop": bindsock.loop_factory(uvloop.Loop),
}


@pytest.fixture(autouse=True)
def beneath_vpn(lab: Lab) -> None:
    lab.vpn_up("metric")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run an asynchronous function on a loop that follows blocking sockets."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            bindsock.statistics()  # asyncio's own loop follows after the first use of bindsock
            async with asyncio.timeout(60):
                await main()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return run


def connect(lab: Lab, **options: Any) -> BlockingSocket:
    return create_connection((lab.server.ipv4, lab.server.tcp_port), PATIENCE, **options)


def source(sock: socket.socket) -> str:
    """The source address in the server's greeting."""
    with sock.makefile() as file:
        return file.readline().split()[1]


def tracked() -> int:
    return bindsock.statistics().tracked


def test_a_blocking_connection_leaves_beneath_the_vpn(lab: Lab) -> None:
    with nothing_through_the_tunnel(lab):
        for address in (lab.server.ipv4, lab.server.ipv6):
            with create_connection((address, lab.server.tcp_port), PATIENCE) as sock:
                assert lab.interface_of(source(sock)) == "wifi0"
                assert bindsock.interface_of(sock) == "wifi0"
                assert sock.gettimeout() == PATIENCE
        with connect(lab, interface="eth0") as sock:
            assert source(sock) == lab.address("eth0")


def test_what_is_on_this_machine_is_not_bound(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, create_connection(server.getsockname(), PATIENCE) as sock:
        assert bindsock.interface_of(sock) is None


def test_without_an_interface_nothing_is_sent_and_the_error_says_why(lab: Lab) -> None:
    lab.down("wifi0")
    lab.down("eth0")
    with nothing_through_the_tunnel(lab), pytest.raises(bindsock.NoEffectiveInterface, match="no interface may be used"):
        connect(lab)


def test_a_local_address_means_the_uplink_that_has_it(lab: Lab) -> None:
    own = lab.address("eth0")
    with nothing_through_the_tunnel(lab), create_connection((lab.server.ipv4, lab.server.tcp_port), 20, (own, 0)) as sock:
        assert sock.recv(100).split()[1] == own.encode()
        assert bindsock.interface_of(sock) == "eth0"


def test_a_local_address_of_the_tunnel_is_refused(lab: Lab) -> None:
    inside = lab.ip("-4", "-o", "addr", "show", "dev", "tun0").split()[3].partition("/")[0]
    with pytest.raises(bindsock.BindFailed, match="does not belong to wifi0"):
        create_connection((lab.server.ipv4, lab.server.tcp_port), 20, (inside, 0))


def test_errors_of_the_connection_are_the_standard_librarys(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        create_connection((lab.server.ipv4, 1), PATIENCE)
    with pytest.raises(ExceptionGroup, match="create_connection failed"):
        create_connection((lab.server.ipv4, 1), PATIENCE, all_errors=True)
    with pytest.raises(socket.gaierror):
        create_connection((NO_NAME, 1), PATIENCE)
    lab.blackhole("wifi0", True)  # of a host that is not there, the router would tell after three seconds
    with pytest.raises(TimeoutError):
        create_connection((lab.server.ipv4, 1), 0.2)


@pytest.mark.timeout(60, method="thread")  # a signal is not noticed in that wait
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_systems_own_timeout_for_a_connect_counts(lab: Lab, family: socket.AddressFamily) -> None:
    lab.blackhole("wifi0", True)
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200_000))
        with pytest.raises(BlockingIOError):
            BlockingConnector().connect(sock, (lab.server.address(family), lab.server.tcp_port))


def test_a_refusal_does_not_wait_for_the_timeout(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        create_connection((lab.server.ipv4, 1), 3600.0)


@pytest.mark.parametrize("options", [{"dead_after": 0}, {"better_path": "abrot"}, {"interfase": "eth0"}])
def test_a_keyword_that_makes_no_sense_is_refused(lab: Lab, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        connect(lab, **options)


def test_a_connection_waits_for_an_interface_where_the_preferences_say_so(lab: Lab) -> None:
    lab.down("wifi0")
    lab.down("eth0")
    preferences = bindsock.Preferences(on_no_interface="wait")
    with pytest.raises(TimeoutError, match="no interface may be used"):
        create_connection((lab.server.ipv4, lab.server.tcp_port), 0.2, preferences=preferences)
    with nothing_through_the_tunnel(lab), ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: connect(lab, preferences=preferences))
        lab.up("eth0")
        with waiting.result(timeout=PATIENCE) as sock:
            assert source(sock) == lab.address("eth0")


def test_a_socket_of_somebody_elses_is_bound_and_connected(lab: Lab) -> None:
    address = (lab.server.ipv4, lab.server.tcp_port)
    with nothing_through_the_tunnel(lab), socket.socket() as sock:
        BlockingConnector().connect(sock, address)
        assert source(sock) == lab.address("wifi0")
    lab.down("wifi0")
    lab.down("eth0")
    sock = socket.socket()
    with nothing_through_the_tunnel(lab), pytest.raises(bindsock.NoEffectiveInterface):
        BlockingConnector().connect(sock, address)
    assert sock.fileno() == -1


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_thread_that_waits_on_a_lost_path_is_woken_with_the_reason(lab: Lab, run: Any, timeout: float | None) -> None:
    async def main() -> None:
        with connect(lab) as sock:
            source(sock)
            sock.settimeout(timeout)
            receiving = asyncio.create_task(asyncio.to_thread(sock.recv, 100))
            await until(lambda: tracked() == 1)
            lab.down("wifi0")
            with pytest.raises(bindsock.InterfaceChanged, match="wifi0 is down") as caught:
                await receiving
            assert caught.value.new_interface == "eth0"
            with pytest.raises(bindsock.InterfaceChanged):
                sock.sendall(b"more")
        assert bindsock.statistics().ended == 1

    run(main)


def test_a_tls_connection_on_a_lost_path_is_ended_as_well(lab: Lab, run: Any) -> None:
    context = lab.client_ssl_context()

    async def main() -> None:
        plain = create_connection((lab.server.ipv4, lab.server.tls_port), PATIENCE)
        with context.wrap_socket(plain, server_hostname=lab.server.name) as sock:
            source(sock)
            receiving = asyncio.create_task(asyncio.to_thread(sock.recv, 100))
            await until(lambda: tracked() == 1)
            lab.down("wifi0")
            if sys.version_info >= (3, 13):
                with pytest.raises(ConnectionError):
                    await receiving
            else:
                # Before, ssl reports every reset as an end of file (python/cpython#115627).
                assert await receiving == b""

    run(main)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_better_path_ends_a_connection_only_where_that_is_asked_for_and_no_local_address_forbids_it(
    lab: Lab, run: Any, pinned: bool
) -> None:
    async def main() -> None:
        lab.default("eth0")
        options = {"better_path": "abort", "source_address": (lab.address("eth0"), 0)} if pinned else {}
        with connect(lab, **options) as kept, connect(lab, better_path="abort") as left:
            assert {source(kept), source(left)} == {lab.address("eth0")}
            receiving = asyncio.create_task(asyncio.to_thread(left.recv, 100))
            await until(lambda: tracked() == 2)
            lab.default("wifi0")
            with pytest.raises(bindsock.InterfaceChanged, match="wifi0 is the better path"):
                await receiving
            kept.sendall(b"still here\n")
            with kept.makefile() as file:
                assert "still here" in file.readline()
            assert tracked() == 1

    run(main)


def test_a_closed_connection_is_followed_no_longer(lab: Lab, run: Any) -> None:
    async def main() -> None:
        with connect(lab):
            await until(lambda: tracked() == 1)
        await until(lambda: tracked() == 0)

    run(main)


def test_a_connection_that_is_closed_without_a_word_is_let_go_of(lab: Lab, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_STILL_THERE", 0.02)

    async def main() -> None:
        descriptor = connect(lab).detach()
        await until(lambda: tracked() == 1)
        os.close(descriptor)
        await until(lambda: tracked() == 0)

    run(main)


def test_another_connection_on_the_same_descriptor_is_left_alone(lab: Lab, run: Any) -> None:
    async def main() -> None:
        number = connect(lab).detach()
        await until(lambda: tracked() == 1)
        other = socket.socket()
        bindsock.bind(other, lab.server.ipv4, interface="eth0")
        other.connect((lab.server.ipv4, lab.server.tcp_port))
        os.dup2(other.fileno(), number)
        other.close()
        with socket.socket(fileno=number) as sock:
            lab.down("wifi0")
            await until(lambda: tracked() == 0)
            assert sock.getpeername() == (lab.server.ipv4, lab.server.tcp_port)
        assert bindsock.statistics().ended == 0

    run(main)


def test_threads_that_connect_and_close_while_the_uplinks_change(lab: Lab, run: Any) -> None:
    stop = threading.Event()
    sources: list[str] = []

    def work() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(lab) as sock:
                sources.append(source(sock))

    async def main() -> None:
        with ThreadPoolExecutor(4) as pool:
            working = [asyncio.get_running_loop().run_in_executor(pool, work) for _ in range(4)]
            try:
                for number in range(4):
                    away, other = ("wifi0", "eth0") if number % 2 == 0 else ("eth0", "wifi0")
                    await asyncio.to_thread(bring_up, lab, other)
                    lab.down(away)
                    seen = len(sources)
                    while lab.address(other) not in sources[seen:]:
                        await asyncio.sleep(0.01)
            finally:
                stop.set()
            await asyncio.gather(*working)
        await until(lambda: tracked() == 0)

    with nothing_through_the_tunnel(lab):
        run(main)
    assert {lab.interface_of(s) for s in sources} == {"wifi0", "eth0"}
