"""Firewall marks besides the binding: what a VPN lets pass by with a mark, and what becomes of a process that may not mark."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

import bindsock
from bindsock.errors import UnsupportedSystem
from bindsock.testing.lab import available
from bindsock.testing.simulated import SimulatedKernel, network
from tests.cli.conftest import run as run
from tests.integrations.tunnel import nothing_through_the_tunnel
from tests.linux.namespaces import as_nobody

if TYPE_CHECKING:
    from bindsock.testing.lab import Lab
    from tests.cli.conftest import Run

MARK = 51820
_SO_MARK = 36


@pytest.fixture
def vpn() -> None:
    if (reason := available(vpn=True)) is not None:
        pytest.skip(reason)


async def dial(lab: Lab, host: str, **preferences: Any) -> tuple[str | None, int]:
    """By which interface the server sees the connection come, and the socket's mark."""
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

    def error() -> tuple[str | None, str | None, int | None]:
        async def attempt() -> tuple[str | None, str | None, int | None]:
            async with bindsock.TransportFactory(bindsock.Preferences(mark=MARK)) as factory:
                try:
                    await factory.open_connection(host, port)
                except bindsock.BindFailed as refused:
                    return refused.interface, refused.call, refused.errno
            return None, None, None

        return asyncio.run(attempt())

    assert as_nobody(error) == ("wifi0", "SO_MARK", 1)
    assert lab.streams() == []


@pytest.mark.lab
def test_explain_says_which_mark_a_rule_exempts(vpn: None, lab: Lab, run: Run) -> None:
    assert "mark" not in run("explain", lab.server.ipv4)[1]
    lab.vpn_up("policy")
    _, out, _ = run("explain", lab.server.ipv4)
    assert "note: packets with the mark 0xca6c pass by table 51820, by the rule `32765: not from all fwmark 0xca6c" in out
    _, out, _ = run("explain", "--json", lab.server.ipv4)
    assert len(json.loads(out)["exempt_marks"]) == 1


@pytest.mark.lab
def test_a_blocking_connection_is_marked_too(vpn: None, lab: Lab) -> None:
    from bindsock.blocking import create_connection

    lab.vpn_up("policy-kill", outer="fwmark")
    address = (lab.server.ipv4, lab.server.tcp_port)
    with create_connection(address, 20, preferences=bindsock.Preferences(mark=MARK)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, _SO_MARK) == MARK
        with sock.makefile("rb") as stream:
            assert lab.interface_of(stream.readline().decode().split()[1]) == "wifi0"


@pytest.mark.parametrize("mark", [-1, 1 << 32])
def test_a_mark_has_32_bits(mark: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        bindsock.Preferences(mark=mark)


@pytest.mark.parametrize("mark", ["1", 1.0, True])
def test_a_mark_is_a_number(mark: Any) -> None:
    with pytest.raises(TypeError, match="a number"):
        bindsock.Preferences(mark=mark)


def test_a_system_without_marks_refuses_one() -> None:
    with pytest.raises(UnsupportedSystem, match="mark needs Linux"):
        bindsock.TransportFactory(bindsock.Preferences(mark=1), kernel=SimulatedKernel(network()))
