"""Firewalls that block a connection: the error message explains each of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import bindsock
from bindsock.dial import dialer
from bindsock.dial.attempt import Attempt
from bindsock.dial.race import Race
from bindsock.kernel.linux.kernel import LinuxKernel
from bindsock.netmon.watcher import Watcher
from bindsock.reconnect.controller import Controller
from bindsock.reconnect.machine import Event
from bindsock.testing.lab import Lab
from tests.waiting import until

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not shutil.which("iptables") or not shutil.which("nft"), reason="there is no iptables or no nft"),
]

REPOSITORY = Path(__file__).parents[2]
REDIRECT = """
table ip t {
  chain sub { meta l4proto tcp redirect to :12300; }
  chain o { type nat hook output priority -100; fib daddr type local return; jump sub; }
}
"""
AFTER_ROUTING = """
table ip t {
  chain source { type nat hook postrouting priority 100; oifname "wifi0" snat to 10.1.0.2; }
  chain last { type filter hook postrouting priority 0; oifname "wifi0" meta l4proto tcp drop; }
}
"""


def rule(program: str, *words: str) -> None:
    """Add a rule for all TCP packets that this host sends. It disappears with the laboratory's namespace."""
    subprocess.run([program, "-A", "OUTPUT", "!", "-o", "lo", "-p", "tcp", "-j", *words], check=True, capture_output=True)


def server(lab: Lab, family: socket.AddressFamily = socket.AF_INET) -> tuple[str, int]:
    return lab.server.address(family), lab.server.tcp_port


async def refused(lab: Lab, family: socket.AddressFamily = socket.AF_INET, seconds: float | None = 20.0) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the tests check it
        async with asyncio.timeout(30):
            await bindsock.open_connection(*server(lab, family), connect_timeout=seconds)
    return caught.value


@pytest.mark.parametrize("kind", ["icmp-port-unreachable", "icmp-net-unreachable", "icmp-admin-prohibited"])
async def test_a_rejection_of_this_hosts_own_firewall_is_told(lab: Lab, kind: str) -> None:
    rule("iptables", "REJECT", "--reject-with", kind)
    error = await refused(lab)
    assert isinstance(error, bindsock.FirewallBlocked)
    assert "the firewall of this host rejects it; `bindsock doctor`, run as root, finds the rule" in str(error)
    assert error.interface == "wifi0"


async def test_a_silent_gateway_is_no_firewall(lab: Lab) -> None:
    lab.ip("link", "set", "wifi0", "arp", "off", namespace="router")
    error = await refused(lab)
    assert error.errno == errno.EHOSTUNREACH
    assert not isinstance(error, bindsock.FirewallBlocked)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_firewall_on_the_way_that_says_so_is_told(lab: Lab, family: socket.AddressFamily) -> None:
    with lab.inside("server"):
        if family == socket.AF_INET:
            words = ["iptables", "-A", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited"]
        else:
            words = ["ip6tables", "-A", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "icmp6-adm-prohibited"]
        subprocess.run(words, check=True, capture_output=True)
    error = await refused(lab, family)
    assert isinstance(error, bindsock.FirewallBlocked)
    assert "forbids it" in str(error)


FAMILIES = [socket.AF_INET, socket.AF_INET6]
WITHOUT_PRIVILEGE = """
import asyncio, sys
import bindsock.anyio, bindsock.blocking, bindsock.default, bindsock.eventloop, bindsock.kernel.linux
import anyio, concurrent.futures.thread, encodings.idna, trio
from tests.unprivileged import drop_privileges
drop_privileges()
way, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
async def by_asyncio():
    await bindsock.open_connection(host, port)
async def by_anyio():
    await bindsock.anyio.TransportFactory().connect_tcp(host, port)
async def by_library():
    import socket
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
async def by_trios_library():
    bindsock.anyio.install_trio_socket_factory()
    await trio.open_tcp_stream(host, port)
def run():
    if way == "asyncio":
        asyncio.run(by_asyncio())
    elif way == "uvloop":
        import uvloop
        uvloop.run(by_asyncio())
    elif way == "trio":
        anyio.run(by_anyio, backend="trio")
    elif way == "library":
        with asyncio.Runner(loop_factory=bindsock.EventLoop) as runner:
            runner.run(by_library())
    elif way == "trio's library":
        trio.run(by_trios_library)
    else:
        bindsock.blocking.create_connection((host, port))
try:
    run()
except OSError as error:
    while error.__cause__ is not None:
        error = error.__cause__
    for each in getattr(error, "exceptions", [error]):
        print(type(each).__name__, each)
"""
WAYS = ["asyncio", "uvloop", "trio", "library", "trio's library", "blocking"]
REJECT_BY_NFT = """
table inet t {
  chain o { type filter hook output priority 0; oifname != "lo" meta l4proto tcp goto no; }
  chain no { reject with tcp reset; }
}
"""


def reject_with_a_reset(by: str, family: socket.AddressFamily) -> None:
    if by == "nft":
        subprocess.run(["nft", "-f", "-"], input=REJECT_BY_NFT.encode(), check=True, capture_output=True)
    else:
        rule("iptables" if family == socket.AF_INET else "ip6tables", "REJECT", "--reject-with", "tcp-reset")


def said(way: str, host: str, port: int) -> str:
    """The error that an unprivileged program gets from connect."""
    command = [sys.executable, "-c", WITHOUT_PRIVILEGE, way, host, str(port)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", ["iptables", "nft"])
def test_a_reset_of_this_hosts_own_firewall_is_told(lab: Lab, by: str, family: socket.AddressFamily, way: str) -> None:
    reject_with_a_reset(by, family)
    told = said(way, *server(lab, family))
    assert told.startswith("FirewallBlocked ")
    detail = "interface wifi0, call connect, errno 111"
    assert f"the firewall of this host rejects it with a reset; `bindsock doctor`, run as root, finds the rule ({detail}" in told


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_server_that_refuses_is_no_firewall(lab: Lab, family: socket.AddressFamily, way: str) -> None:
    with lab.tap(protocol="tcp", outgoing=True) as tap:
        told = said(way, lab.server.address(family), 9)
    assert told.startswith("ConnectionRefusedError ")
    assert "firewall" not in told
    assert {packet.interface for packet in tap.packets} == {"wifi0"}


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_router_that_resets_is_not_this_host(lab: Lab, family: socket.AddressFamily) -> None:
    with lab.inside("router"):
        program = "iptables" if family == socket.AF_INET else "ip6tables"
        words = [program, "-A", "FORWARD", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]
        subprocess.run(words, check=True, capture_output=True)
    assert isinstance(await refused(lab, family), ConnectionRefusedError)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_neighbour_that_refuses_is_not_this_host(lab: Lab, family: socket.AddressFamily) -> None:
    """The second attempt, which is limited to the first hop, reaches the neighbour."""
    gateway = {socket.AF_INET: "10.1.0.1", socket.AF_INET6: "fd10:1::1"}[family]
    with pytest.raises(ConnectionRefusedError):
        await bindsock.open_connection(gateway, 9)


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_attempt_that_never_leaves_this_host_is_told(lab: Lab, family: socket.AddressFamily) -> None:
    rule("iptables" if family == socket.AF_INET else "ip6tables", "DROP")
    error = await refused(lab, family, 0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert "the packets do not leave this host: its firewall, a policy or a full queue drops them" in str(error)


async def test_an_attempt_that_is_lost_further_on_has_left_this_host(lab: Lab) -> None:
    lab.blackhole("wifi0", True)
    error = await refused(lab, seconds=0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert "leave" not in str(error)


@pytest.mark.parametrize(
    ("program", "words", "told"),
    [
        ("iptables", ["DROP"], "chain OUTPUT of table ip filter drops"),
        ("ip6tables", ["DROP"], "chain OUTPUT of table ip6 filter drops"),
        ("ip6tables", ["REJECT"], "chain OUTPUT of table ip6 filter rejects"),
    ],
)
async def test_what_nothing_answers_to_ends_in_time_and_names_the_rule(
    lab: Lab, program: str, words: list[str], told: str
) -> None:
    """The kernel does not deliver this host's own ICMPv6 messages to a bound socket."""
    rule(program, *words)
    error = await refused(lab, socket.AF_INET6 if program == "ip6tables" else socket.AF_INET, 0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert told in str(error)
    assert error.errno == errno.ETIMEDOUT


async def test_a_chain_after_the_routing_is_named_and_a_change_of_the_source_is_no_redirect(lab: Lab) -> None:
    subprocess.run(["nft", "-f", "-"], input=AFTER_ROUTING.encode(), check=True, capture_output=True)
    error = await refused(lab, seconds=0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert "in the firewall of this host, chain last of table ip t drops (" in str(error)


async def test_a_transparent_redirect_ends_in_time_and_is_named(lab: Lab) -> None:
    subprocess.run(["nft", "-f", "-"], input=REDIRECT.encode(), check=True, capture_output=True)
    error = await refused(lab, seconds=0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert "chain sub of table ip t redirects" in str(error)


async def test_a_stream_that_is_replaced_ends_with_what_was_seen(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first dial may take its time, the second one gets no answer, and after it the time is up."""

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None: ...

    def impatient(watcher: Watcher, attempts: Sequence[Attempt], delay: float | None, timeout: float | None) -> Race:
        return Race(watcher, attempts, delay, 0.2)

    def last(controller: Controller) -> None:
        dial_failed(controller)
        controller.feed(Event.EXPIRED)

    reader, writer = await bindsock.open_connection(*server(lab), on_reconnect=hook, reconnect_timeout=3600.0)
    await reader.readline()
    dial_failed = Controller.dial_failed
    monkeypatch.setattr(Controller, "dial_failed", last)
    monkeypatch.setattr(dialer, "Race", impatient)
    rule("iptables", "DROP")
    lab.down("wifi0")
    with pytest.raises(bindsock.InterfaceChanged) as caught:
        async with asyncio.timeout(30):
            await reader.readline()
    assert isinstance(caught.value.__cause__, bindsock.NoAnswer)
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()


async def test_a_datagram_that_the_firewall_drops_is_told(lab: Lab) -> None:
    class Protocol(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.error: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        def error_received(self, exc: Exception) -> None:
            if not self.error.done():
                self.error.set_result(exc)

    subprocess.run(["iptables", "-A", "OUTPUT", "-p", "udp", "-j", "DROP"], check=True, capture_output=True)
    transport, protocol = await bindsock.create_datagram_endpoint(Protocol, remote_addr=(lab.server.ipv4, 9))
    transport.sendto(b"x")
    async with asyncio.timeout(20):
        assert isinstance(await protocol.error, bindsock.FirewallBlocked)
    transport.close()


async def test_datagrams_that_a_firewall_on_the_way_forbids_are_told_and_the_next_one_is_sent(lab: Lab) -> None:
    errors: list[Exception] = []

    class Protocol(asyncio.DatagramProtocol):
        def error_received(self, exc: Exception) -> None:
            errors.append(exc)

    with lab.inside("router"):
        words = ["ip6tables", "-A", "FORWARD", "-p", "udp", "-j", "REJECT", "--reject-with", "icmp6-adm-prohibited"]
        subprocess.run(words, check=True, capture_output=True)
    transport, _ = await bindsock.create_datagram_endpoint(Protocol, remote_addr=(lab.server.ipv6, 9))
    for _ in range(2):  # the second call finds the message about the first datagram, unless it arrives late
        transport.sendto(b"x")
    await until(lambda: errors, seconds=20)
    assert {type(error) for error in errors} == {bindsock.FirewallBlocked}
    assert "(interface wifi0, call recv, errno 13 " in str(errors[0])
    counted = bindsock.statistics()
    assert (counted.sent["wifi0"], counted.lost) == (2, 0)
    transport.close()


async def test_rules_for_what_comes_in_are_no_obstacle(lab: Lab) -> None:
    subprocess.run(["iptables", "-A", "INPUT", "-p", "udp", "--dport", "5", "-j", "DROP"], check=True, capture_output=True)
    kernel = LinuxKernel()
    assert kernel.administration is not None
    assert list(kernel.administration.firewall(4)) == []
    subprocess.run(["iptables", "-P", "OUTPUT", "DROP"], check=True, capture_output=True)
    assert list(kernel.administration.firewall(4)) == ["chain OUTPUT of table ip filter drops by its policy"]
    assert list(kernel.administration.firewall(6)) == []
    kernel.close()
