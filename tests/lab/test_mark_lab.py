"""Firewall marks in addition to the binding: VPNs that exempt marked packets, and processes that may not set marks."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

import bindsock
from bindsock.errors import UnsupportedSystem
from bindsock.proxy import Proxy
from bindsock.testing import SimulatedKernel, network
from tests.cli.conftest import run as run
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.linux.namespaces import as_nobody

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel import Administration, Kernel
    from bindsock.model.network import Interface
    from bindsock.testing.lab import Lab
    from tests.cli.conftest import Run

MARK = 51820
_SO_MARK = 36


async def dial(lab: Lab, host: str, **preferences: Any) -> tuple[str | None, int]:
    """Connect. Returns the interface that the server saw, and the socket's mark."""
    async with bindsock.TransportFactory(bindsock.Preferences(**preferences)) as factory, asyncio.timeout(20):
        reader, writer = await factory.open_connection(host, lab.server.tcp_port)
        mark = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, _SO_MARK)
        source = (await reader.readline()).decode().split()[1]
        writer.close()
        await writer.wait_closed()
    return lab.interface_of(source), mark


@pytest.mark.lab
async def test_a_kill_switch_that_exempts_a_mark_lets_marked_sockets_pass(vpn: None, lab: Lab) -> None:
    lab.vpn_up("policy-kill", outer="fwmark")
    with pytest.raises(bindsock.NoEffectiveInterface):
        await dial(lab, lab.server.ipv4)
    with nothing_through_the_tunnel(lab, "tun0"):
        for host in (lab.server.ipv4, lab.server.ipv6):
            assert await dial(lab, host, mark=MARK) == ("wifi0", MARK)


@pytest.mark.lab
async def test_a_datagram_socket_keeps_its_mark_when_it_moves(vpn: None, lab: Lab) -> None:
    async with bindsock.TransportFactory(bindsock.Preferences(mark=MARK)) as factory, asyncio.timeout(20):
        transport, _ = await factory.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(lab.server.ipv4, lab.server.udp_port)
        )
        changes = factory.changes()
        lab.down("wifi0")
        while factory.interface_of(transport) != "eth0":
            await anext(changes)
        assert transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, _SO_MARK) == MARK
        transport.close()


@pytest.mark.lab
async def test_without_a_mark_none_is_set(lab: Lab) -> None:
    assert await dial(lab, lab.server.ipv4) == ("wifi0", 0)


@pytest.mark.lab
def test_a_process_that_may_not_mark_gets_an_error_and_no_connection(lab: Lab) -> None:
    host, port = lab.server.ipv4, lab.server.tcp_port

    def error() -> tuple[str, str | None, str | None, int | None]:
        async def attempt() -> tuple[str, str | None, str | None, int | None]:
            async with bindsock.TransportFactory(bindsock.Preferences(mark=MARK)) as factory:
                try:
                    await factory.open_connection(host, port)
                except bindsock.BindFailed as refused:
                    return refused.message, refused.interface, refused.call, refused.errno
            return "connected", None, None, None

        return asyncio.run(attempt())

    assert as_nobody(error) == ("the mark 0xca6c could not be set, which needs CAP_NET_ADMIN", "wifi0", "SO_MARK", 1)
    assert lab.streams() == []


@pytest.mark.lab
def test_explain_says_which_mark_a_rule_exempts(vpn: None, lab: Lab, run: Run) -> None:
    assert "mark" not in run("explain", lab.server.ipv4)[1]
    lab.vpn_up("policy")
    _, out, _ = run("explain", lab.server.ipv4)
    assert "note: packets with the mark 0xca6c bypass table 51820, by the rule `32765: not from all fwmark 0xca6c" in out
    _, out, _ = run("explain", "--json", lab.server.ipv4)
    assert len(json.loads(out)["exempt_marks"]) == 1
    assert "note:" not in run("explain", "--mark", "0xca6c", lab.server.ipv4)[1]
    assert run("explain", "http://nowhere")[1] == ""


@pytest.mark.lab
def test_a_blocking_connection_is_marked_too(vpn: None, lab: Lab) -> None:
    from bindsock.blocking import create_connection

    lab.vpn_up("policy-kill", outer="fwmark")
    address = (lab.server.ipv4, lab.server.tcp_port)
    with create_connection(address, 20, preferences=bindsock.Preferences(mark=MARK)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, _SO_MARK) == MARK
        with sock.makefile("rb") as stream:
            assert lab.interface_of(stream.readline().decode().split()[1]) == "wifi0"


@pytest.mark.lab
async def test_each_connection_of_a_proxy_is_marked(vpn: None, lab: Lab) -> None:
    lab.vpn_up("policy-kill", outer="fwmark")
    request = f"CONNECT {lab.server.ipv4}:{lab.server.tcp_port} HTTP/1.1\r\n\r\n".encode()
    async with bindsock.TransportFactory(bindsock.Preferences(mark=MARK)) as factory, Proxy(factory) as proxy:
        address = await proxy.listen(port=0)
        for _ in range(3):
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(request)
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                assert lab.interface_of((await reader.readline()).decode().split()[1]) == "wifi0"
                writer.close()
                await writer.wait_closed()


class Marks:
    """An administration that only finds a mark."""

    mark = 0


class MarkingKernel(SimulatedKernel):
    """A kernel that records the mark of each socket that it binds."""

    def __init__(self) -> None:
        super().__init__(network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0"))
        self.marks: list[int] = []
        self.administration = cast("Administration", Marks())

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        super().bind(sock, interface)
        assert self.administration is not None
        self.marks.append(self.administration.mark)


def ask_about(kernel: Kernel) -> None:
    with socket.socket() as sock:
        bindsock.interface_of(sock, kernel=kernel)
        bindsock.multipath_of(sock, kernel=kernel)


@pytest.mark.parametrize(
    "other",
    [
        ask_about,
        lambda kernel: bindsock.explain("198.51.100.7", kernel=kernel),
        lambda kernel: bindsock.effective_interface(kernel=kernel),
        lambda kernel: bindsock.TransportFactory(kernel=kernel),
    ],
    ids=["interface_of", "explain", "effective_interface", "factory"],
)
def test_whoever_asks_the_same_kernel_without_a_mark_leaves_a_factorys_mark_alone(other: Callable[[Kernel], Any]) -> None:
    kernel = MarkingKernel()
    factory = bindsock.TransportFactory(bindsock.Preferences(mark=MARK), kernel=kernel)
    for _ in range(3):
        with socket.socket() as sock:
            factory.bind(sock, "198.51.100.7")
        other(kernel)
    assert kernel.marks == [MARK] * 3


def test_a_kernel_is_not_shared_between_two_marks() -> None:
    kernel = MarkingKernel()
    bindsock.TransportFactory(bindsock.Preferences(mark=MARK), kernel=kernel)
    with pytest.raises(ValueError, match="already marks its sockets"):
        bindsock.TransportFactory(bindsock.Preferences(mark=MARK + 1), kernel=kernel)
    bindsock.TransportFactory(bindsock.Preferences(mark=MARK), kernel=kernel)


@pytest.mark.parametrize("mark", [-1, 1 << 32])
def test_a_mark_has_32_bits(mark: int) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        bindsock.Preferences(mark=mark)


@pytest.mark.parametrize("mark", ["1", 1.0, True])
def test_a_mark_is_a_number(mark: Any) -> None:
    with pytest.raises(TypeError, match="a number"):
        bindsock.Preferences(mark=mark)


def test_a_system_without_marks_refuses_one() -> None:
    with pytest.raises(UnsupportedSystem, match="no firewall marks"):
        bindsock.TransportFactory(bindsock.Preferences(mark=1), kernel=SimulatedKernel(network()))
