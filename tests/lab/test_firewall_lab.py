"""Firewalls in the way of a connection: what each of them does is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import socket
import subprocess

import pytest

import bindsock
from bindsock.kernel.linux.kernel import LinuxKernel
from bindsock.testing.lab import Lab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not shutil.which("iptables") or not shutil.which("nft"), reason="there is no iptables or no nft"),
]

REDIRECT = """
table ip t {
  chain sub { meta l4proto tcp redirect to :12300; }
  chain o { type nat hook output priority -100; fib daddr type local return; jump sub; }
}
"""


def rule(program: str, *words: str) -> None:
    """Add a rule for all TCP that this host sends. It goes with the laboratory's namespace."""
    subprocess.run([program, "-A", "OUTPUT", "!", "-o", "lo", "-p", "tcp", "-j", *words], check=True, capture_output=True)


def server(lab: Lab, family: socket.AddressFamily = socket.AF_INET) -> tuple[str, int]:
    return lab.server.address(family), lab.server.tcp_port


async def refused(lab: Lab, family: socket.AddressFamily = socket.AF_INET, seconds: float | None = 20.0) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the tests look at it
        async with asyncio.timeout(30):
            await bindsock.open_connection(*server(lab, family), connect_timeout=seconds)
    return caught.value


@pytest.mark.parametrize("kind", ["icmp-port-unreachable", "icmp-net-unreachable", "icmp-admin-prohibited"])
async def test_a_rejection_of_this_hosts_own_firewall_is_told(lab: Lab, kind: str) -> None:
    rule("iptables", "REJECT", "--reject-with", kind)
    error = await refused(lab)
    assert isinstance(error, bindsock.FirewallBlocked)
    assert "the firewall of this host rejects it" in str(error)
    assert error.interface == "wifi0"


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


async def test_a_server_that_refuses_is_no_firewall(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        await bindsock.open_connection(lab.server.ipv4, 9)


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


async def test_a_transparent_redirect_ends_in_time_and_is_named(lab: Lab) -> None:
    subprocess.run(["nft", "-f", "-"], input=REDIRECT.encode(), check=True, capture_output=True)
    error = await refused(lab, seconds=0.2)
    assert isinstance(error, bindsock.NoAnswer)
    assert "chain sub of table ip t redirects" in str(error)


async def test_a_stream_that_is_replaced_ends_with_what_was_seen(lab: Lab) -> None:
    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unread: bytes) -> None: ...

    reader, writer = await bindsock.open_connection(*server(lab), on_reconnect=hook, connect_timeout=0.2, reconnect_timeout=1.0)
    await reader.readline()
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


async def test_rules_for_what_comes_in_are_no_obstacle(lab: Lab) -> None:
    subprocess.run(["iptables", "-A", "INPUT", "-p", "udp", "--dport", "5", "-j", "DROP"], check=True, capture_output=True)
    kernel = LinuxKernel()
    assert kernel.administration is not None
    assert list(kernel.administration.firewall(4)) == []
    subprocess.run(["iptables", "-P", "OUTPUT", "DROP"], check=True, capture_output=True)
    assert list(kernel.administration.firewall(4)) == ["chain OUTPUT of table ip filter drops by its policy"]
    assert list(kernel.administration.firewall(6)) == []
    kernel.close()
