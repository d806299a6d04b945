"""The factory in the laboratory: real dials, with a real VPN."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import bindsock
from bindsock import kernel as kernels
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.resolving import AddrInfo, resolve
from bindsock.model.network import Interface
from bindsock.testing.lab import Lab, VpnMode
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.waiting import until

pytestmark = pytest.mark.lab

KEEPING: tuple[VpnMode, ...] = ("metric", "halves", "policy")
"""The modes in which a VPN takes the default route and keeps the physical one."""


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection and wait until it is closed. Its errors do not matter."""
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(20):
            await writer.wait_closed()


async def greeting(lab: Lab, host: str, **options: Any) -> str:
    """Connect. Returns the source address that the server saw."""
    port = lab.server.tls_port if options.get("ssl") else lab.server.tcp_port
    reader, writer = await bindsock.open_connection(host, port, **options)
    try:
        async with asyncio.timeout(20):
            hello = (await reader.readline()).decode().split()
            writer.write(b"ping\n")
            assert await reader.readline() == b"ping\n"
    finally:
        await closed(writer)
    return hello[1]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def several(*addresses: str) -> Callable[..., Awaitable[Sequence[AddrInfo]]]:
    """A resolver to which every name has these addresses."""

    async def fake(host: str | None, port: int | str | None, **options: Any) -> list[AddrInfo]:
        infos: list[AddrInfo] = []
        for address in addresses:
            infos.extend(await resolve(address, port, **{**options, "family": 0}))
        return infos

    return fake


async def test_a_dial_while_the_interface_had_no_address_is_made_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the network is as it was read before, so no change interrupts the dial."""
    address = f"{lab.address('eth0', socket.AF_INET6)}/64"
    connect_ex = FollowedSocket.connect_ex

    def late(sock: FollowedSocket, peer: Any) -> int:
        monkeypatch.undo()
        lab.ip("-6", "addr", "del", address, "dev", "eth0")
        try:
            return connect_ex(sock, peer)
        finally:
            lab.ip("-6", "addr", "add", address, "dev", "eth0", "nodad")

    async with bindsock.TransportFactory(interface="eth0") as factory:
        monkeypatch.setattr(FollowedSocket, "connect_ex", late)
        _, writer = await factory.open_connection(lab.server.ipv6, lab.server.tcp_port)
        assert lab.interface_of(writer.get_extra_info("sockname")[0]) == "eth0"
        assert factory.statistics().redialled == 1
        await closed(writer)


@pytest.mark.parametrize("mode", KEEPING)
async def test_connections_leave_beneath_the_vpn(lab: Lab, mode: VpnMode) -> None:
    lab.vpn_up(mode)
    tls = lab.client_ssl_context()
    with nothing_through_the_tunnel(lab):
        for family in (socket.AF_INET, socket.AF_INET6):
            host = lab.server.address(family)
            for options in ({}, {"ssl": tls, "server_hostname": lab.server.name}, {"ssl": tls}):
                assert await greeting(lab, host, **options) == lab.address("wifi0", family)


async def test_a_plain_connection_would_have_gone_into_the_tunnel(lab: Lab) -> None:
    lab.vpn_up("metric")
    reader, writer = await asyncio.open_connection(lab.server.ipv4, lab.server.tcp_port)
    assert (await reader.readline()).decode().split()[1] == lab.address("tun0")
    await closed(writer)


@pytest.mark.parametrize("mode", ["replace", "policy-kill"])
async def test_no_physical_route_is_an_error_at_once_that_names_a_cure(lab: Lab, mode: VpnMode) -> None:
    lab.vpn_up(mode)
    with pytest.raises(bindsock.NoEffectiveInterface, match="ip rule add") as caught:
        await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port)
    assert lab.server.ipv4 not in lab.ip("neigh", "show"), "it waited for an answer that cannot come"
    assert any(c.interface == "tun0" for d in caught.value.decisions for c in d.candidates)


async def test_a_pinned_interface_without_a_route_is_an_error_that_names_a_cure(lab: Lab) -> None:
    lab.vpn_up("replace")
    gc.collect()  # of other tests
    before = descriptors()
    async with bindsock.TransportFactory() as factory:
        with pytest.raises(bindsock.NoRoute, match="ip rule add") as caught:
            await factory.open_connection(lab.server.ipv4, lab.server.tcp_port, interface="eth0")
    assert caught.value.interface == "eth0"
    assert descriptors() == before


async def test_a_pin_is_obeyed(lab: Lab) -> None:
    assert await greeting(lab, lab.server.ipv4, interface="eth0") == lab.address("eth0")
    with pytest.raises(bindsock.NoEffectiveInterface, match="wlan7"):
        await greeting(lab, lab.server.ipv4, interface="wlan7")


async def test_waiting_for_an_interface(lab: Lab) -> None:
    lab.vpn_up("replace")
    factory = bindsock.TransportFactory(bindsock.Preferences(on_no_interface="wait"))
    dial = asyncio.ensure_future(factory.connect(lab.server.ipv4, lab.server.tcp_port))
    await asyncio.sleep(0.2)
    assert not dial.done()
    lab.vpn_down()
    async with asyncio.timeout(20):
        sock = await dial
    assert sock.getsockname()[0] == lab.address("wifi0")
    sock.close()


async def test_unbound_only_where_it_was_asked_for(lab: Lab) -> None:
    lab.vpn_up("replace")
    factory = bindsock.TransportFactory(bindsock.Preferences(on_no_interface="unbound"))
    sock = await factory.connect(lab.server.ipv4, lab.server.tcp_port)
    assert sock.getsockname()[0] == lab.address("tun0")
    assert bindsock.interface_of(sock) is None
    sock.close()


async def test_an_address_whose_family_has_no_interface_is_left_out(lab: Lab) -> None:
    for uplink in ("wifi0", "eth0"):
        lab.ip("-6", "route", "del", "default", "dev", uplink)
    factory = bindsock.TransportFactory(resolver=several(lab.server.ipv6, lab.server.ipv4))
    sock = await factory.connect("server", lab.server.tcp_port, happy_eyeballs_delay=None)
    assert sock.family == socket.AF_INET
    sock.close()


async def test_happy_eyeballs_pass_by_an_address_that_does_not_answer(lab: Lab) -> None:
    lab.ip("-6", "route", "add", "blackhole", f"{lab.server.ipv6}/128", namespace="router")
    factory = bindsock.TransportFactory(resolver=several(lab.server.ipv6, lab.server.ipv4))
    async with asyncio.timeout(20):
        sock = await factory.connect("server", lab.server.tcp_port, happy_eyeballs_delay=0.05)
    assert sock.family == socket.AF_INET
    sock.close()


async def test_an_answer_that_came_while_the_loop_was_busy_is_not_too_late(lab: Lab) -> None:
    Path("/proc/sys/net/ipv4/neigh/wifi0/mcast_solicit").write_text("1200", encoding="ascii")  # for a minute
    lab.ip("link", "set", "wifi0", "arp", "off", namespace="router")
    loop = asyncio.get_running_loop()
    timeout = 0.2
    wakes, wake = socket.socketpair()

    def busy() -> None:
        loop.remove_reader(wakes)
        lab.ip("link", "set", "wifi0", "arp", "on", namespace="router")
        while not lab.streams():
            time.sleep(0.01)
        time.sleep(timeout)

    with wakes, wake:
        loop.add_reader(wakes, busy)
        wake.send(b"x")
        _, writer = await bindsock.open_connection(lab.server.ipv4, lab.server.tcp_port, connect_timeout=timeout)
    await closed(writer)


async def test_each_attempts_own_error_is_raised(lab: Lab) -> None:
    factory = bindsock.TransportFactory(resolver=several(lab.server.ipv4, lab.server.ipv6))
    closed = lab.server.tcp_port + 1000
    with pytest.raises(ExceptionGroup) as group:
        await factory.create_connection(asyncio.Protocol, "server", closed, all_errors=True)
    assert [type(e) for e in group.value.exceptions] == [ConnectionRefusedError, ConnectionRefusedError]
    with pytest.raises(OSError, match="Multiple exceptions") as combined:
        await factory.create_connection(asyncio.Protocol, "server", closed)
    assert combined.value.errno == errno.ECONNREFUSED
    with pytest.raises(ConnectionRefusedError):
        await bindsock.create_connection(asyncio.Protocol, lab.server.ipv4, closed)


async def test_a_local_address_of_an_uplink_is_that_uplink_and_any_other_is_refused(lab: Lab) -> None:
    lab.vpn_up("metric")
    for uplink in ("wifi0", "eth0"):
        assert await greeting(lab, lab.server.ipv4, local_addr=(lab.address(uplink), 0)) == lab.address(uplink)
    tunnels = lab.address("tun0")
    with pytest.raises(bindsock.BindFailed, match=f"{tunnels} does not belong to wifi0") as caught:
        await greeting(lab, lab.server.ipv4, local_addr=(tunnels, 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("host", ["198.18.0.1", "fd99::1"])
async def test_what_a_router_says_beyond_a_healthy_interface_is_the_plain_error(lab: Lab, host: str) -> None:
    """The router has no route to the destination, and sends an ICMP error."""
    with pytest.raises(OSError, match=host) as caught:
        await bindsock.open_connection(host, 9)
    assert not isinstance(caught.value, bindsock.BindsockError)
    assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


@pytest.mark.parametrize("host", ["server.ipv4", "server.ipv6"])
async def test_an_interface_that_goes_while_the_socket_connects_is_no_router(lab: Lab, host: str) -> None:
    """The kernel refuses to connect by an interface that is gone: the binding has failed."""
    lab.default("wifi0")
    address = getattr(lab.server, host.removeprefix("server."))

    def gone(sock: socket.socket, interface: Interface) -> None:
        bind(sock, interface)
        lab.down("wifi0")
        lab.down("eth0")

    kernel = kernels.current()
    bind, has_route = kernel.bind, kernel.has_route
    kernel.bind = gone  # type: ignore[method-assign]
    kernel.has_route = lambda interface, destination: True  # type: ignore[method-assign]
    with pytest.raises(bindsock.BindFailed, match="the interface is gone") as caught:
        await bindsock.TransportFactory(kernel=kernel).connect(address, lab.server.tcp_port)
    assert caught.value.interface == "wifi0"
    assert caught.value.call == "connect"
    kernel.has_route = has_route  # type: ignore[method-assign]


async def test_a_dial_in_flight_is_dialled_again_when_its_path_changes(lab: Lab) -> None:
    lab.vpn_up("metric")
    lab.blackhole("wifi0", True)
    factory = bindsock.TransportFactory()
    dial = asyncio.ensure_future(factory.connect(lab.server.ipv4, lab.server.tcp_port))
    await asyncio.sleep(0.1)
    assert not dial.done()
    lab.default("eth0")
    async with asyncio.timeout(20):
        sock = await dial
    assert sock.getsockname()[0] == lab.address("eth0")
    assert factory.statistics().redialled == 1
    sock.close()


async def test_a_change_that_does_not_concern_the_dial_leaves_it_alone(lab: Lab) -> None:
    lab.blackhole("wifi0", True)
    factory = bindsock.TransportFactory()
    dial = asyncio.ensure_future(factory.connect(lab.server.ipv4, lab.server.tcp_port))
    await asyncio.sleep(0.1)
    lab.metric("eth0", 800)
    lab.down("eth0")
    await asyncio.sleep(0.3)
    assert factory.statistics().redialled == 0
    dial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dial


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.05])
@pytest.mark.parametrize("tls", [False, True])
async def test_cancelling_leaves_nothing_open(lab: Lab, delay: float, tls: bool) -> None:
    context = lab.client_ssl_context() if tls else None
    await greeting(lab, lab.server.ipv4)
    await asyncio.sleep(0.05)
    gc.collect()  # of other tests
    before, tasks = descriptors(), asyncio.all_tasks()
    if delay >= 0.05:
        lab.blackhole("wifi0", True)
    port = lab.server.tls_port if tls else lab.server.tcp_port
    async with bindsock.TransportFactory(resolver=several(lab.server.ipv4, lab.server.ipv6)) as factory:
        dial = asyncio.ensure_future(factory.open_connection(lab.server.name, port, happy_eyeballs_delay=0.01, ssl=context))
        await asyncio.sleep(delay)
        dial.cancel()
        try:
            _, writer = await dial
        except asyncio.CancelledError:
            pass
        else:
            writer.transport.abort()
    # An IPv6 connection that was closed lives until the server ends it, too.
    await until(lambda: (descriptors(), asyncio.all_tasks()) == (before, tasks), seconds=20)


async def test_a_failed_handshake_leaves_nothing_open(lab: Lab) -> None:
    lab.client_ssl_context()
    await greeting(lab, lab.server.ipv4)
    await asyncio.sleep(0.05)
    gc.collect()  # of other tests
    before = descriptors()
    with pytest.raises(ssl.SSLCertVerificationError):
        await bindsock.open_connection(lab.server.ipv4, lab.server.tls_port, ssl=ssl.create_default_context())
    await asyncio.sleep(0.1)
    assert descriptors() == before


async def test_an_egress_through_the_tunnel_is_noticed(lab: Lab) -> None:
    lab.vpn_up("metric")

    class Forgetful:
        """A kernel whose bind does nothing."""

        def __init__(self) -> None:
            self._kernel = kernels.current()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._kernel, name)

        def bind(self, sock: socket.socket, interface: Interface) -> None:
            pass

    gc.collect()  # of other tests
    before = descriptors()
    async with bindsock.TransportFactory(kernel=Forgetful()) as factory:
        with pytest.raises(bindsock.EgressMismatch, match="tun0"):
            await factory.connect(lab.server.ipv4, lab.server.tcp_port)
    assert descriptors() == before


async def test_numeric_hosts_do_not_touch_the_executor(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("the resolver was asked for a numeric host")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert await greeting(lab, lab.server.ipv6) == lab.address("wifi0", socket.AF_INET6)


async def test_the_machine_itself_is_reached_unbound(lab: Lab) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here\n")
        writer.close()

    for host in ("127.0.0.1", lab.address("eth0")):
        server = await asyncio.start_server(serve, host, 0)
        reader, writer = await bindsock.open_connection(host, server.sockets[0].getsockname()[1])
        assert bindsock.interface_of(writer) is None
        assert await reader.readline() == b"here\n"
        await closed(writer)
        server.close()
        await server.wait_closed()


async def test_a_socket_for_other_libraries(lab: Lab) -> None:
    lab.vpn_up("policy")
    sock = await bindsock.connect(lab.server.ipv4, lab.server.tcp_port)
    assert bindsock.interface_of(sock) == "wifi0"
    reader, writer = await asyncio.open_connection(sock=sock)
    assert (await reader.readline()).decode().split()[1] == lab.address("wifi0")
    lab.down("wifi0")
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(20):
            while await reader.readline():
                pass
            raise AssertionError("a clean end of file")
    await closed(writer)


async def test_a_socket_factory_for_other_libraries(lab: Lab) -> None:
    import aiohappyeyeballs

    lab.vpn_up("metric")
    infos = await resolve(lab.server.ipv4, lab.server.tcp_port, type=socket.SOCK_STREAM)
    sock = await aiohappyeyeballs.start_connection(infos, socket_factory=bindsock.socket_factory)
    assert sock.getsockname()[0] == lab.address("wifi0")
    sock.close()


async def test_a_connected_socket_is_followed_and_never_bound(lab: Lab) -> None:
    plain = socket.create_connection((lab.server.ipv4, lab.server.tcp_port))
    plain.setblocking(False)
    reader, writer = await bindsock.open_connection(sock=plain)
    await reader.readline()
    assert kernels.current().bound(plain) is None
    lab.remove_addresses("wifi0")
    with pytest.raises(bindsock.InterfaceChanged):
        async with asyncio.timeout(20):
            await reader.readline()
    await closed(writer)


async def test_changes_are_told(lab: Lab) -> None:
    changes = bindsock.changes()
    lab.vpn_up("metric")
    lab.default("eth0")
    async with asyncio.timeout(20):
        change = await anext(changes)
    assert change.ipv4.new_path is not None
    assert change.ipv4.new_path.interface == "eth0"
    await changes.aclose()


async def test_leaving_the_factory_stops_following_and_keeps_the_sockets(lab: Lab) -> None:
    async with bindsock.TransportFactory() as factory:
        sock = await factory.connect(lab.server.ipv4, lab.server.tcp_port)
        changes = factory.changes()
        assert factory.statistics().tracked == 1
    await changes.aclose()
    assert factory.statistics().tracked == 0
    assert bindsock.interface_of(sock) == "wifi0"
    lab.down("wifi0")
    await asyncio.sleep(0.2)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.close()


def test_synchronous_functions_need_no_loop(lab: Lab) -> None:
    lab.vpn_up("metric")
    assert bindsock.effective_interface().name == "wifi0"
    assert bindsock.effective_interface(socket.AF_INET6).name == "wifi0"
    assert "tun0" in bindsock.explain(lab.server.ipv4).tunnels
    with socket.socket() as sock:
        decision = bindsock.bind(sock, lab.server.ipv4)
        assert decision.interface is not None
        sock.settimeout(20)
        sock.connect((lab.server.ipv4, lab.server.tcp_port))
        assert sock.getsockname()[0] == lab.address("wifi0")
        assert bindsock.interface_of(sock) == "wifi0"


def test_a_socket_that_cannot_be_bound_is_closed(lab: Lab) -> None:
    lab.vpn_up("replace")
    sock = socket.socket()
    with pytest.raises(bindsock.NoEffectiveInterface):
        bindsock.bind(sock, lab.server.ipv4)
    assert sock.fileno() == -1


def test_a_factory_belongs_to_one_loop(lab: Lab) -> None:
    factory = bindsock.TransportFactory()

    async def connect() -> None:
        (await factory.connect(lab.server.ipv4, lab.server.tcp_port)).close()

    first = asyncio.new_event_loop()
    first.run_until_complete(connect())
    second = asyncio.new_event_loop()
    with pytest.raises(RuntimeError, match="another event loop"):
        second.run_until_complete(connect())
    first.close()
    second.run_until_complete(connect())
    second.close()


UNPRIVILEGED = """
import asyncio, os, sys
import bindsock.default, bindsock.kernel.linux, encodings.idna  # what cannot be read any more later
from tests.unprivileged import drop_privileges
drop_privileges()
async def main():
    reader, writer = await bindsock.open_connection(sys.argv[1], int(sys.argv[2]))
    print((await reader.readline()).decode().split()[1], bindsock.interface_of(writer))
    writer.close()
asyncio.run(main())
"""


def test_no_privilege_is_needed(lab: Lab) -> None:
    import bindsock as package

    lab.vpn_up("metric")
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, lab.server.ipv4, str(lab.server.tcp_port)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=os.path.dirname(os.path.dirname(package.__file__)),
    )
    assert done.stdout.split() == [lab.address("wifi0"), "wifi0"], done.stderr
