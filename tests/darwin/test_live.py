"""The Darwin backend on a real Mac. On other systems, all tests are skipped.

The tests do not change the machine's routes. They send only to documentation addresses (RFC 5737), from which nobody answers.
The tests that make a tunnel need root. A utun disappears as soon as its socket is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import socket
import subprocess
import sys
from ctypes import sizeof
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

import bindsock
from bindsock.errors import BindFailed
from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.kernel.darwin.syscalls import LiveSyscalls
from bindsock.model.decision import Basis
from bindsock.model.network import Interface, InterfaceKind
from bindsock.routing.effective import decide
from tests.abi.check import compile_with_system, source
from tests.networks import named

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.darwin,
    pytest.mark.skipif(sys.platform != "darwin", reason="needs a live macOS system"),
]

NOWHERE = ("192.0.2.1", 9)
_SYSPROTO_CONTROL = 2
_UTUN_OPT_IFNAME = 2
_UTUN_OPT_SET_DELEGATE_INTERFACE = 15

needs_root = pytest.mark.skipif(sys.platform == "darwin" and os.geteuid() != 0, reason="making a utun needs root")


@pytest.fixture
def kernel() -> Iterator[DarwinKernel]:
    kernel = DarwinKernel()
    yield kernel
    kernel.close()


@pytest.fixture
def uplink(kernel: DarwinKernel) -> Interface:
    """The effective interface for IPv4."""
    interface = decide(kernel.network(), socket.AF_INET).interface
    if interface is None:
        pytest.skip("this machine has no IPv4 network")
    return interface


class Tunnel:
    """A utun of our own."""

    def __init__(self) -> None:
        self.sock = socket.socket(abi.AF_SYSTEM, socket.SOCK_DGRAM, _SYSPROTO_CONTROL)
        try:
            # The socket module asks for the control's number itself (CTLIOCGINFO) and lets the kernel choose the unit.
            self.sock.connect("com.apple.net.utun_control")
            raw = self.sock.getsockopt(_SYSPROTO_CONTROL, _UTUN_OPT_IFNAME, 64)
        except OSError:
            self.sock.close()
            raise
        self.name = raw.split(b"\0", 1)[0].decode()

    def delegate(self, name: str) -> None:
        self.sock.setsockopt(_SYSPROTO_CONTROL, _UTUN_OPT_SET_DELEGATE_INTERFACE, name.encode())

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    made = Tunnel()
    yield made
    made.close()


def test_the_structures_are_those_of_this_machines_sdk() -> None:
    if subprocess.run(["xcrun", "--show-sdk-path"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there is no SDK on this machine")
    assert compile_with_system(source(whole_sdk=True)) is None


def test_the_sizes_are_those_that_ioctl_numbers_carry() -> None:
    for request, structure in (
        (abi.SIOCGIFDELEGATE, abi.ifreq),
        (abi.SIOCGIFAFLAG_IN6, abi.in6_ifreq),
        (abi.SIOCSKEVFILT, abi.kev_request),
    ):
        assert request >> 16 & abi.IOCPARM_MASK == sizeof(structure)
    assert sizeof(ctypes.c_long) == 8


def test_the_interfaces_are_those_that_the_system_lists(kernel: DarwinKernel) -> None:
    network = kernel.network()
    assert {i.index: i.name for i in network.interfaces.values()} == dict(socket.if_nameindex())
    assert named(network, "lo0").kind is InterfaceKind.LOOPBACK
    assert ip_address("127.0.0.1") in [a.address for a in named(network, "lo0").addresses]


def test_private_ioctls_are_answered(kernel: DarwinKernel, uplink: Interface) -> None:
    syscalls = LiveSyscalls()
    request = bytes(abi.ifreq(ifr_name=uplink.name.encode()))
    for code in (abi.SIOCGIFDELEGATE, abi.SIOCGIFTYPE, abi.SIOCGIFFUNCTIONALTYPE, abi.SIOCGIFEXPENSIVE, abi.SIOCGIFXFLAGS):
        assert len(syscalls.ioctl(code, request)) == 32
    with pytest.raises(OSError, match="not configured") as raised:
        syscalls.ioctl(abi.SIOCGIFDELEGATE, bytes(abi.ifreq(ifr_name=b"en987")))
    assert raised.value.errno == abi.ENXIO
    syscalls.close()


def test_the_effective_interface_is_the_one_of_the_default_route_or_its_delegate(kernel: DarwinKernel, uplink: Interface) -> None:
    shown = subprocess.run(["route", "-n", "get", "default"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"interface: (\S+)", shown)
    if match is None:
        pytest.skip("route(8) shows no default route")
    network = kernel.network()
    decision = decide(network, socket.AF_INET)
    if decision.basis is Basis.DEFAULT_ROUTE:
        assert match[1] == uplink.name
    else:
        assert match[1] in decision.tunnels


def test_ifconfig_names_the_same_delegates(kernel: DarwinKernel) -> None:
    network = kernel.network()
    for interface in network.interfaces.values():
        shown = subprocess.run(["ifconfig", "-v", interface.name], capture_output=True, text=True, check=False).stdout
        match = re.search(r"effective interface: (\S+)", shown)
        delegate = network.interfaces.get(interface.delegate or 0)
        if match is not None and delegate is not None:
            assert match[1] == delegate.name


def test_a_socket_bound_to_the_uplink_has_a_route(kernel: DarwinKernel, uplink: Interface) -> None:
    assert kernel.has_route(uplink, ip_address("192.0.2.1"))
    assert not kernel.has_route(Interface("en987", 9876), ip_address("192.0.2.1"))


def test_addresses_that_are_in_use_are_not_tentative(kernel: DarwinKernel) -> None:
    for interface in kernel.network().interfaces.values():
        for own in interface.addresses:
            with contextlib.suppress(OSError), socket.socket(own.family, socket.SOCK_DGRAM) as sock:
                if own.usable:
                    sock.bind((str(own.address), 0))
                    assert not own.tentative


def test_the_machine_has_not_slept_between_two_questions(kernel: DarwinKernel) -> None:
    first = kernel.suspended()
    assert first >= -0.001
    assert kernel.suspended() - first < 1.0


def test_status_names_the_effective_interface(uplink: Interface) -> None:
    done = subprocess.run([sys.executable, "-m", "bindsock", "status"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"effective interface: {uplink.name}\n")


def test_a_bound_datagram_leaves_by_its_interface(kernel: DarwinKernel, uplink: Interface) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        kernel.bind(sock, uplink)
        assert kernel.bound(sock) == uplink.index
        sock.connect(NOWHERE)
        assert ip_address(sock.getsockname()[0]) in uplink.usable_addresses(socket.AF_INET)
        sock.send(b"bindsock")
        assert sock.getsockopt(abi.IPPROTO_IP, abi.IP_OUT_IF) == uplink.index


def test_a_bound_stream_leaves_by_its_interface(kernel: DarwinKernel, uplink: Interface) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        kernel.bind(sock, uplink)
        assert sock.getsockopt(abi.SOL_SOCKET, abi.SO_NOADDRERR) != 0
        with contextlib.suppress(BlockingIOError):
            sock.connect(NOWHERE)
        assert ip_address(sock.getsockname()[0]) in uplink.usable_addresses(socket.AF_INET)
        assert sock.getsockopt(abi.IPPROTO_IP, abi.IP_OUT_IF) == uplink.index


def test_a_connected_datagram_socket_that_moves_keeps_its_port(kernel: DarwinKernel, uplink: Interface) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        kernel.bind(sock, uplink)
        sock.connect(NOWHERE)
        before = sock.getsockname()
        kernel.rebind(sock, uplink)
        assert (sock.getsockname(), sock.getpeername()) == (before, NOWHERE)
        kernel.unbind(sock)
        assert kernel.bound(sock) is None
        assert (sock.getsockname()[1], sock.getpeername()) == (before[1], NOWHERE)


def test_ipv6_sockets_are_bound_by_their_own_option(kernel: DarwinKernel, uplink: Interface) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        kernel.bind(sock, uplink)
        assert kernel.bound(sock) == uplink.index
        with pytest.raises(OSError, match="Invalid argument"):
            sock.setsockopt(abi.IPPROTO_IP, abi.IP_BOUND_IF, uplink.index)


def test_an_interface_that_does_not_exist_is_refused(kernel: DarwinKernel) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(BindFailed) as raised:
        kernel.bind(sock, Interface("en987", 9876))
    assert raised.value.errno == abi.ENXIO


def test_local_destinations_are_not_bound_since_a_bound_stream_cannot_reach_them(kernel: DarwinKernel, uplink: Interface) -> None:
    assert decide(kernel.network(), ip_address("127.0.0.1")).unbound
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        kernel.bind(sock, uplink)
        with pytest.raises(OSError, match="assign requested address") as raised:
            sock.connect(server.getsockname())
        assert raised.value.errno == abi.EADDRNOTAVAIL


def test_the_bytes_of_a_connection_are_counted(kernel: DarwinKernel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        before = kernel.activity(sock)
        assert before is not None
        accepted, _ = server.accept()
        with accepted:
            sock.sendall(b"twelve bytes")
            assert accepted.recv(100) == b"twelve bytes"
            assert kernel.activity(sock) != before


def test_both_event_sources_can_be_opened_and_are_silent_about_our_own_questions(kernel: DarwinKernel, uplink: Interface) -> None:
    sources = kernel.events()
    assert len(sources) == 2
    for source_ in sources:
        source_.drain()
    assert kernel.has_route(uplink, ip_address("192.0.2.1"))
    for source_ in sources:
        source_.close()


@needs_root
def test_a_new_tunnel_is_read_as_one(kernel: DarwinKernel, tunnel: Tunnel) -> None:
    found = named(kernel.network(), tunnel.name)
    assert (found.kind, found.delegate) == (InterfaceKind.TUNNEL, None)


@needs_root
def test_a_delegate_is_read_and_its_change_is_an_event(kernel: DarwinKernel, tunnel: Tunnel, uplink: Interface) -> None:
    other = Tunnel()
    route, events = kernel.events()
    events.drain()
    tunnel.delegate(uplink.name)
    assert events.drain()
    assert named(kernel.network(), tunnel.name).delegate == uplink.index
    tunnel.delegate(uplink.name)
    tunnel.delegate(other.name)
    assert events.drain()
    network = kernel.network()
    assert named(network, tunnel.name).delegate == named(network, other.name).index
    other.close()
    # The index of a removed interface stays, or belongs to another by now: a delegate is only a hint.
    assert named(kernel.network(), tunnel.name).kind is InterfaceKind.TUNNEL
    route.close()
    events.close()


@needs_root
def test_a_watcher_sees_delegates_set_and_changed(tunnel: Tunnel, uplink: Interface) -> None:
    async def watch() -> None:
        async with bindsock.TransportFactory() as factory:
            for delegate in (uplink.name, "lo0", uplink.name):
                seen = factory.statistics().events
                tunnel.delegate(delegate)
                async with asyncio.timeout(20):
                    while factory.statistics().events == seen:
                        await asyncio.sleep(0.01)

    asyncio.run(watch())


@needs_root
def test_a_tunnel_with_an_address_moves_nothing(kernel: DarwinKernel, tunnel: Tunnel, uplink: Interface) -> None:
    tunnel.delegate(uplink.name)
    subprocess.run(["ifconfig", tunnel.name, "198.51.100.1", "198.51.100.2", "up"], check=True)
    network = kernel.network()
    assert ip_address("198.51.100.1") in [a.address for a in named(network, tunnel.name).addresses]
    assert decide(network, socket.AF_INET).interface == named(network, uplink.name)
    assert decide(network, ip_address("198.51.100.1")).unbound


@needs_root
def test_a_route_into_a_tunnel_is_looked_through(kernel: DarwinKernel, tunnel: Tunnel, uplink: Interface) -> None:
    # An unused part of the address space, so that the test does not disturb the machine's own connections.
    subprocess.run(["ifconfig", tunnel.name, "198.51.100.1", "198.51.100.2", "up"], check=True)
    subprocess.run(["route", "-q", "-n", "add", "-net", "203.0.113.0/24", "-interface", tunnel.name], check=True)
    bypassing = decide(kernel.network(), ip_address("203.0.113.7"))
    assert bypassing.interface is not None
    assert bypassing.interface.name == uplink.name
    assert bypassing.tunnels[:1] == (tunnel.name,)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        kernel.bind(sock, uplink)
        sock.connect(("203.0.113.7", 9))
        assert ip_address(sock.getsockname()[0]) in uplink.usable_addresses(socket.AF_INET)
