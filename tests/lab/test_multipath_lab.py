"""Multipath connections in the laboratory: the byte stream itself moves, by either path manager or the system's endpoints."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

import bindsock
from bindsock.kernel.linux.mptcp import sockets as mptcp
from bindsock.kernel.linux.mptcp.commands import Commands
from bindsock.testing.lab import Lab
from tests.lab.multipath import (
    MOVING,
    SIZE,
    Serve,
    Source,
    closing,
    endpoints,
    interfaces,
    lossless,
    path_manager,
    ping,
    program,
    serve,
    several,
    source,
)
from tests.waiting import until

__all__ = ["lossless", "path_manager", "serve", "source"]

RESET = 4
SO_RCVBUFFORCE = 33

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(mptcp.protocol() is None, reason="this kernel has no multipath TCP"),
]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_50_mb_arrive_whole_across_switches(lab: Lab, path_manager: str, source: Source, tls: bool) -> None:
    if tls:
        await source.start_tls(lab)
    reader, writer = await bindsock.open_connection(*source.address, multipath=True, **source.tls)
    with closing(writer):
        assert bindsock.multipath_of(writer).real
        source.rate = 0.01
        writer.write(b"send\n")
        digest, received = hashlib.sha256(), 0
        switches: list[Callable[[], object]] = [
            lambda: lab.down("wifi0"),
            lambda: lab.up("wifi0"),
            lambda: lab.default("eth0"),
            lambda: lab.carrier("eth0", False),
        ]
        async with asyncio.timeout(60):
            while received < SIZE:
                data = await reader.read(1 << 16)
                assert data
                received += len(data)
                digest.update(data)
                if switches and received > (5 - len(switches)) * SIZE // 6:
                    switches.pop(0)()
        assert digest.hexdigest() == source.digest
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)
        await until(lambda: interfaces(writer) == ["wifi0"])


async def test_50_mb_are_sent_whole_across_switches(lab: Lab, path_manager: str, source: Source) -> None:
    reader, writer = await bindsock.open_connection(*source.address, multipath=True)
    with closing(writer):
        writer.write(b"receive\n")
        async with asyncio.timeout(60):
            for number in range(SIZE >> 20):
                writer.write(source.block)
                await writer.drain()
                if number == 15:
                    lab.down("wifi0")
                elif number == 35:
                    lab.up("wifi0")
            assert (await reader.readline()).decode().strip() == f"{SIZE} bytes, wrong: none"
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)
        await until(lambda: interfaces(writer) == ["wifi0"])


async def test_it_follows_each_change_and_is_connected_once(lab: Lab, path_manager: str, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True)
    writer = connected[1]
    with closing(writer):
        await ping(connected, b"0\n")
        here, there = "wifi0", "eth0"
        for number in range(8):
            if number % 2:
                lab.default(there)
            else:
                lab.down(here)
            await until(lambda there=there: interfaces(writer) == [there])  # type: ignore[misc]
            await ping(connected, b"%d\n" % number)
            # It may have been there for a moment, between the last two changes before.
            await until(lambda there=there: bindsock.interface_of(writer) == there)  # type: ignore[misc]
            if not number % 2:
                lab.up(here)
                lab.default(there)
            await ping(connected, b"more\n")
            here, there = there, here
        assert len(source.writers) == 1
        assert bindsock.statistics().ended == 0
        peers = mptcp.states(source.writers[0].get_extra_info("socket")) or ()
        assert len(peers) <= 2, "the server still counts subflows that are no more"


async def test_kept_while_there_is_nothing_and_resumed_when_there_is(lab: Lab, path_manager: str, source: Source) -> None:
    lab.down("eth0")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        lab.down("wifi0")
        pending = asyncio.create_task(ping(connected, b"meanwhile\n"))
        await asyncio.sleep(0.2)
        assert not pending.done()
        lab.up("eth0")
        await pending


async def test_ipv6(lab: Lab, path_manager: str, serve: Serve) -> None:
    lab.vpn_up("policy")
    source = await serve(family=socket.AF_INET6)
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        lab.remove_addresses("wifi0")
        await ping(connected, b"after\n")
        await until(lambda: interfaces(connected[1]) == ["eth0"])


async def test_what_was_added_to_the_system_is_removed(lab: Lab, source: Source) -> None:
    connections = [await bindsock.open_connection(*source.address, multipath=True) for _ in range(2)]
    for connected in connections:
        await ping(connected, b"x\n")
    lab.down("wifi0")
    for _, writer in connections:
        await until(lambda writer=writer: interfaces(writer) == ["eth0"])  # type: ignore[misc]
    assert lab.address("eth0") in endpoints(lab)
    assert lab.address("wifi0") not in endpoints(lab)
    connections[0][1].close()
    await connections[0][1].wait_closed()
    assert lab.address("eth0") in endpoints(lab)
    await ping(connections[1], b"still\n")
    connections[1][1].close()
    await connections[1][1].wait_closed()
    await until(lambda: endpoints(lab) == "")


async def test_the_systems_own_endpoints_are_left_alone(lab: Lab, source: Source) -> None:
    lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", "subflow")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        await until(lambda: sorted(map(str, interfaces(connected[1]))) == ["eth0", "wifi0"])
        before = endpoints(lab)
        lab.down("wifi0")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"y\n")
        assert endpoints(lab) == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def test_a_peer_without_multipath_gets_plain_tcp(lab: Lab, serve: Serve, family: socket.AddressFamily) -> None:
    source = await serve(multipath=False, family=family)
    reader, writer = await bindsock.open_connection(*source.address, multipath=True)
    with closing(writer):
        await ping((reader, writer), b"x\n")
        assert not bindsock.multipath_of(writer).real
        lab.down("wifi0")
        with pytest.raises(bindsock.InterfaceChanged):
            async with asyncio.timeout(20):
                await reader.readline()


async def test_a_system_without_multipath_gets_plain_tcp_and_says_so(
    lab: Lab, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    Path("/proc/sys/net/mptcp/enabled").write_text("0", encoding="ascii")
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        assert not bindsock.multipath_of(connected[1]).real
        assert "no multipath TCP" in caplog.text


async def test_a_socket_for_other_libraries(lab: Lab, path_manager: str, source: Source) -> None:
    sock = await bindsock.connect(*source.address, multipath=True)
    assert bindsock.multipath_of(sock).real
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connected = await asyncio.open_connection(sock=sock)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.down("wifi0")
        await ping(connected, b"y\n")


async def test_a_multipath_connection_with_a_hook_never_needs_it(lab: Lab, path_manager: str, source: Source) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None:
        pytest.fail("the hook ran")

    connected = await bindsock.open_connection(*source.address, multipath=True, on_reconnect=never)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.down("wifi0")
        await ping(connected, b"y\n")
        lab.up("wifi0")
        await until(lambda: interfaces(connected[1]) == ["wifi0"])
        await ping(connected, b"z\n")
        assert connected[1].get_extra_info("interface") == "wifi0"


UNPRIVILEGED = """
import asyncio, os, sys, concurrent.futures.thread, encodings.idna
import bindsock.default, bindsock.kernel.linux
from tests.unprivileged import drop_privileges
drop_privileges()
async def main():
    reader, writer = await bindsock.open_connection(sys.argv[1], int(sys.argv[2]), multipath=True)
    writer.write(b"one\\n")
    await reader.readline()
    print(bindsock.multipath_of(writer).real, flush=True)
    sys.stdin.readline()
    writer.write(b"two\\n")
    try:
        print((await asyncio.wait_for(reader.readline(), 20)).decode().strip(), flush=True)
    except bindsock.InterfaceChanged as error:
        print("ended:", error.new_interface, flush=True)
    writer.transport.abort()
    await asyncio.sleep(0)
asyncio.run(main())
"""


@pytest.mark.parametrize("endpoint", [True, False])
async def test_without_privilege_the_systems_endpoints_serve_or_it_is_ended(lab: Lab, source: Source, endpoint: bool) -> None:
    if endpoint:
        lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", "subflow")
    async with program(UNPRIVILEGED, *source.address) as (process, lines):
        assert await lines.next() == "True"
        lab.down("wifi0")
        await asyncio.sleep(0.1)
        lines.tell("")
        assert await lines.next() == ("two" if endpoint else "ended: eth0")
        assert await process.wait() == 0


async def test_bound_beneath_the_vpn_no_subflow_goes_into_it(lab: Lab, path_manager: str, source: Source) -> None:
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        connected = await bindsock.open_connection(*source.address, multipath=True)
        with closing(connected[1]):
            await ping(connected, b"x\n")
            lab.default("eth0")
            await until(lambda: interfaces(connected[1]) == ["eth0"])
            await ping(connected, b"y\n")
    assert [packet for packet in tap.packets if packet.payload] == []


async def test_the_end_of_an_ipv6_subflow_does_not_go_into_the_tunnel(lab: Lab, path_manager: str, serve: Serve) -> None:
    """The kernel answers a peer's FIN by the routing table if this side has ended the subflow first."""
    lab.vpn_up("metric")
    source = await serve(family=socket.AF_INET6)
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        async with several(source, 3) as connections:
            for number, uplink in enumerate(["eth0", "wifi0"] * 3):
                lab.default(uplink)
                for connected in connections:
                    await until(lambda c=connected, u=uplink: interfaces(c[1]) == [u])  # type: ignore[misc]
                    await ping(connected, b"%d\n" % number)
            assert (bindsock.statistics().ended, len(source.writers)) == (0, 3)
    assert [packet for packet in tap.packets if packet.outgoing and not packet.flags & RESET] == []


async def test_over_tls_it_follows_each_change(lab: Lab, path_manager: str, source: Source) -> None:
    await source.start_tls(lab)
    connected = await bindsock.open_connection(*source.address, multipath=True, **source.tls)
    with closing(connected[1]):
        for number, uplink in enumerate(["eth0", "wifi0"] * 4):
            lab.default(uplink)
            await until(lambda uplink=uplink: interfaces(connected[1]) == [uplink])  # type: ignore[misc]
            await ping(connected, b"%d\n" % number)
        assert len(source.writers) == 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
async def test_the_new_interface_is_lost_in_the_middle(
    lab: Lab, path_manager: str, serve: Serve, family: socket.AddressFamily
) -> None:
    lab.vpn_up("metric")
    source = await serve(family=family)
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        for _ in range(5):
            lab.down("wifi0")
            await asyncio.sleep(0)
            lab.down("eth0")
            pending = asyncio.create_task(ping(connected, b"meanwhile\n"))
            await asyncio.sleep(0.01)
            lab.up("wifi0")
            await pending
            lab.up("eth0")
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)


@pytest.mark.parametrize("order", [("wifi0",), ("wifi0", "eth0"), ("eth0", "wifi0")], ids="-".join)
async def test_interfaces_that_are_deleted_and_made_again_with_their_addresses(
    lab: Lab, path_manager: str, source: Source, order: tuple[str, ...]
) -> None:
    """A subflow stays bound to the index of the old interface. No packet leaves by it, although its address is there again."""
    with lab.inside("server"):  # without another subflow, it does not learn that one has ended
        subprocess.run(["ip", "mptcp", "limits", "set", "subflows", "8"], check=True)
    async with several(source, 3) as connections:
        for number in range(4):
            for uplink in order:
                lab.delete(uplink)
            pending = [asyncio.create_task(ping(connected, b"%d\n" % number)) for connected in connections]
            if number % 2:
                await asyncio.sleep(0.3)  # long enough to be read, and to move if there is another
            for uplink in order:
                lab.create(uplink)
            await asyncio.gather(*pending)
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 3)


def end_subflows(lab: Lab, source: Source) -> None:
    """Let the server end all its subflows by a reset."""
    port = str(source.address[1])
    with lab.inside("server"):
        subprocess.run(["ss", "-K", "-t", "state", "established", "sport", "=", port], check=True, capture_output=True)


def answer_without_subflow(lab: Lab, connected: tuple[asyncio.StreamReader, asyncio.StreamWriter], source: Source) -> None:
    """Let the server write while the connection has no subflow, and before the event loop can make another one."""
    end_subflows(lab, source)
    for _ in range(60_000):
        if not interfaces(connected[1]):
            break
        time.sleep(0.001)
    else:
        pytest.fail("the connection has not lost its subflow")
    source.writers[0].write(b"answer\n")


@pytest.mark.skipif(shutil.which("ss") is None, reason="there is no ss here")
@pytest.mark.parametrize(("family", "uplink"), [(socket.AF_INET, "wifi0"), (socket.AF_INET6, "eth0")], ids=["IPv4", "IPv6"])
async def test_the_peer_sends_what_it_wrote_while_it_had_no_subflow(
    lab: Lab, path_manager: str, serve: Serve, family: socket.AddressFamily, uplink: str
) -> None:
    """Without a packet from this side its kernel would keep that for ever."""
    lab.vpn_up("metric")
    source = await serve(family=family)
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        connected = await bindsock.open_connection(*source.address, multipath=True)
        with closing(connected[1]):
            await ping(connected, b"before\n")
            answer_without_subflow(lab, connected, source)
            lab.default(uplink)
            async with asyncio.timeout(20):
                assert await connected[0].readline() == b"answer\n"
            assert interfaces(connected[1]) == [uplink]
            await ping(connected, b"after\n")
            assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)
    assert [packet for packet in tap.packets if packet.outgoing and not packet.flags & RESET] == []


@pytest.mark.skipif(shutil.which("ss") is None, reason="there is no ss here")
async def test_the_end_of_the_last_subflow_is_noticed_without_a_change(lab: Lab, path_manager: str, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        for _ in range(2):
            await ping(connected, b"before\n")
            answer_without_subflow(lab, connected, source)
            async with asyncio.timeout(20):
                assert await connected[0].readline() == b"answer\n"
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)


@pytest.mark.skipif(shutil.which("ss") is None, reason="there is no ss here")
async def test_many_connections_notice_the_end_of_their_last_subflows(lab: Lab, path_manager: str, source: Source) -> None:
    async with several(source, 10) as connections:
        end_subflows(lab, source)
        await asyncio.gather(*[ping(connected, b"after\n") for connected in connections])
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 10)


@pytest.mark.skipif(shutil.which("ss") is None or shutil.which("iptables") is None, reason="there is no ss or no iptables here")
async def test_the_peer_is_prompted_once_it_has_confirmed_the_new_subflow(lab: Lab, path_manager: str, source: Source) -> None:
    """The last packet of the join is lost at first. Until the peer has it, every packet is taken for a repetition of it."""
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"before\n")
        answer_without_subflow(lab, connected, source)
        rule = ["INPUT", "-p", "tcp", "--dport", str(source.address[1]), "!", "--syn", "-j", "DROP"]
        with lab.inside("server"):
            subprocess.run(["iptables", "-A", *rule], check=True, capture_output=True)
        lab.default("eth0")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await asyncio.sleep(0.3)
        with lab.inside("server"):
            subprocess.run(["iptables", "-D", *rule], check=True, capture_output=True)
        async with asyncio.timeout(20):
            assert await connected[0].readline() == b"answer\n"
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 1)


@pytest.mark.parametrize("flags", [["subflow"], ["subflow", "backup"], ["subflow", "fullmesh"]], ids=" ".join)
def test_an_endpoint_is_the_same_after_a_prompt(lab: Lab, flags: list[str]) -> None:
    lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", *flags)
    before = endpoints(lab)
    commands = Commands()
    commands.prompt_all(ip_address(lab.address("eth0")))
    commands.close()
    assert endpoints(lab) == before


def may_fix_buffers() -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 12)
        except PermissionError:
            return False
        return True


@pytest.mark.skipif(shutil.which("ss") is None, reason="there is no ss here")
@pytest.mark.parametrize("most", [6 << 20, 512 << 20], ids=["as large as can be", "may grow"])
async def test_a_subflow_that_joins_late_can_receive_as_much(lab: Lab, path_manager: str, source: Source, most: int) -> None:
    """The kernel starts with a small buffer, and the sender waits for its retransmission timer when the buffer is full."""
    if most == 6 << 20 and not may_fix_buffers():
        pytest.skip("a receive buffer of the largest size needs CAP_NET_ADMIN outside of user namespaces")
    Path("/proc/sys/net/ipv4/tcp_rmem").write_text(f"4096 131072 {most}", encoding="ascii")
    reader, writer = await bindsock.open_connection(*source.address, multipath=True)
    with closing(writer):
        writer.write(b"send\n")
        await reader.readexactly(SIZE)
        sock = writer.get_extra_info("socket")
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert before > 1 << 20, "it has grown with the download"
        lab.down("wifi0")
        await until(lambda: interfaces(writer) == ["eth0"])
        shown = subprocess.run(["ss", "-tmnH", "src", lab.address("eth0")], capture_output=True, text=True, check=True).stdout
        (buffer,) = re.findall(r"\brb(\d+)", shown)
        assert int(buffer) >= before // 2 * 2
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


async def test_many_connections_move_together(lab: Lab, path_manager: str, source: Source) -> None:
    async with several(source, 100) as connections:
        for uplink, switch in (("eth0", lab.down), ("wifi0", lab.up)):
            switch("wifi0")
            await until(lambda uplink=uplink: all(interfaces(writer) == [uplink] for _, writer in connections))  # type: ignore[misc]
            for connected in connections:
                await ping(connected, b"y\n")
        assert (bindsock.statistics().ended, len(source.writers)) == (0, 100)
    await until(lambda: endpoints(lab) == "")


async def test_an_endpoint_in_the_tunnel_speaks_against_multipath(
    lab: Lab, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel adds a subflow from each endpoint, even if the socket is bound to another interface."""
    lab.ip("mptcp", "endpoint", "add", lab.address("tun0"), "dev", "tun0", "subflow")
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        for _ in range(2):
            connected = await bindsock.open_connection(*source.address, multipath=True)
            with closing(connected[1]):
                await ping(connected, b"x\n")
                assert not bindsock.multipath_of(connected[1])
                assert bindsock.interface_of(connected[1]) == "wifi0"
    assert tap.packets == []
    assert caplog.text.count("the system would add a subflow by tun0, where it has a multipath endpoint") == 1


async def test_that_the_system_follows_what_peers_announce_speaks_against_multipath(
    lab: Lab, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """It would connect to the announced address by the default route, which is the tunnel's."""
    lab.ip("mptcp", "limits", "set", "add_addr_accepted", "2")
    lab.ip("address", "add", "10.9.0.11/24", "dev", "eth0", namespace="server")
    lab.ip("mptcp", "endpoint", "add", "10.9.0.11", "dev", "eth0", "signal", namespace="server")
    with lab.tap(interface="tun0", protocol="tcp") as tap:
        connected = await bindsock.open_connection(*source.address, multipath=True)
        with closing(connected[1]):
            await ping(connected, b"x\n")
            assert not bindsock.multipath_of(connected[1])
    assert tap.packets == []
    assert "addresses that the peer announces" in caplog.text


async def test_a_subflow_that_appears_in_the_tunnel_is_ended_at_the_next_reading(lab: Lab, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.ip("mptcp", "endpoint", "add", lab.address("tun0"), "dev", "tun0", "subflow")
        await until(lambda: sorted(map(str, interfaces(connected[1]))) == ["tun0", "wifi0"])
        lab.metric("eth0", 650)
        await until(lambda: interfaces(connected[1]) == ["wifi0"])
        await ping(connected, b"y\n")


async def test_the_systems_endpoints_come_and_go_and_the_connection_stays(lab: Lab, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        for _ in range(3):
            lab.ip("mptcp", "endpoint", "add", lab.address("eth0"), "dev", "eth0", "subflow")
            await until(lambda: sorted(map(str, interfaces(connected[1]))) == ["eth0", "wifi0"])
            await ping(connected, b"with it\n")
            number = lab.ip("mptcp", "endpoint", "show").split()[2]
            lab.ip("mptcp", "endpoint", "delete", "id", number)
            await until(lambda: interfaces(connected[1]) == ["wifi0"])
            await ping(connected, b"without it\n")


async def test_a_pinned_connection_stays_on_its_interface(lab: Lab, path_manager: str, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True, interface="wifi0")
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.default("eth0")
        await ping(connected, b"y\n")
        lab.carrier("wifi0", False)
        pending = asyncio.create_task(ping(connected, b"z\n"))
        await asyncio.sleep(0.1)
        assert interfaces(connected[1]) == ["wifi0"]
        lab.carrier("wifi0", True)
        await pending
        assert bindsock.statistics().ended == 0


async def test_one_that_has_said_nothing_moves_when_it_has(lab: Lab, path_manager: str, source: Source) -> None:
    """Linux makes no subflow before both sides have sent data."""
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        lab.default("eth0")
        await asyncio.sleep(0.1)
        assert interfaces(connected[1]) == ["wifi0"]
        await ping(connected, b"x\n")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"y\n")


async def test_keep_stays_on_what_works(lab: Lab, path_manager: str, source: Source) -> None:
    connected = await bindsock.open_connection(*source.address, multipath=True, better_path="keep")
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.default("eth0")
        await ping(connected, b"y\n")
        assert interfaces(connected[1]) == ["wifi0"]
        lab.down("wifi0")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        await ping(connected, b"z\n")


STRANGER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sock.bind((sys.argv[1], 0))
sock.connect((sys.argv[2], int(sys.argv[3])))
for line in sys.stdin:
    sock.sendall(line.encode())
    print(sock.recv(100).decode().strip(), flush=True)
"""


async def test_other_programs_connections_are_not_touched(lab: Lab, source: Source) -> None:
    """Removing an endpoint ends all subflows with its address, also those of other programs."""
    lab.vpn_down()
    connected = await bindsock.open_connection(*source.address, multipath=True)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        lab.default("eth0")
        await until(lambda: interfaces(connected[1]) == ["eth0"])
        async with program(STRANGER, lab.address("eth0"), *source.address) as (_, lines):

            async def works(text: str) -> None:
                lines.tell(text)
                assert await lines.next() == text

            await works("before")
            lab.default("wifi0")
            await until(lambda: interfaces(connected[1]) == ["wifi0"])
            await ping(connected, b"ours\n")
            await works("while we have left")
            assert lab.address("eth0") in endpoints(lab), "it would take the other program's subflow along"
            connected[1].transport.abort()
            await asyncio.sleep(0.2)
            await works("when we are gone")
    await until(lambda: endpoints(lab) == "")


PROGRAM = f"""{MOVING}
from bindsock.kernel.linux.mptcp import path_manager
path_manager._EXIT_SECONDS = 20.0  # for the server in the test's process
async def main():
    connected = await moved()
    print("moved", flush=True)
    await asyncio.sleep(100)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
"""


async def test_a_program_that_is_interrupted_leaves_no_endpoint(lab: Lab, source: Source) -> None:
    async with program(PROGRAM, *source.address) as (process, lines):
        assert await lines.next() == "connected"
        lab.down("wifi0")
        assert await lines.next() == "moved"
        assert lab.address("eth0") in endpoints(lab)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert endpoints(lab) == ""


@pytest.mark.parametrize("multipath", [True, False], ids=["multipath", "fallen back"])
async def test_dead_after(lab: Lab, multipath: bool, serve: Serve) -> None:
    lab.vpn_up("metric")
    source = await serve(multipath=multipath)
    connected = await bindsock.open_connection(*source.address, multipath=True, dead_after=1.0)
    with closing(connected[1]):
        await ping(connected, b"x\n")
        assert bindsock.multipath_of(connected[1]).real is multipath
        lab.blackhole("wifi0", True)
        connected[1].write(b"y\n")
        with pytest.raises((bindsock.InterfaceChanged, TimeoutError)) as caught:
            async with asyncio.timeout(20):
                await connected[0].readline()
        assert caught.value.errno is not None, "the test's own patience ended first"
    lab.blackhole("wifi0", False)
