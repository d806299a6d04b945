"""Binding on Darwin, on the simulated kernel: the right option for the family, and the state of sockets that move."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import pytest

from bindsock.errors import BindFailed
from bindsock.kernel.darwin import DarwinKernel, abi
from bindsock.model.network import Interface, InterfaceAddress
from bindsock.testing.darwin import SimulatedDarwin, SimulatedSocket
from tests.darwin.machines import two_uplinks

if TYPE_CHECKING:
    from collections.abc import Sequence

FAMILIES = (abi.AF_INET, abi.AF_INET6)
BOUND = (abi.IPPROTO_IP, abi.IP_BOUND_IF)


@pytest.fixture
def machine() -> SimulatedDarwin:
    return two_uplinks()


@pytest.fixture
def kernel(machine: SimulatedDarwin) -> DarwinKernel:
    return machine.kernel()


def plain(sock: object) -> socket.socket:
    return cast(socket.socket, sock)


def interface(kernel: DarwinKernel, name: str) -> Interface:
    found = kernel.network().named(name)
    assert found is not None
    return found


class FakeSocket:
    """A fake socket that only records calls."""

    def __init__(self, family: int, kind: int, refusals: Sequence[int] = ()) -> None:
        self.family = family
        self.type = kind
        self.calls: list[tuple[int, int, int]] = []
        self._refusals = list(refusals)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.calls.append((level, option, value))
        if self._refusals and (number := self._refusals.pop(0)):
            raise OSError(number, "refused")


EN0 = Interface("en0", 3)


@pytest.mark.parametrize(
    ("family", "option"),
    [(abi.AF_INET, (0, 25)), (abi.AF_INET6, (41, 125)), (socket.AF_INET, (0, 25)), (socket.AF_INET6, (41, 125))],
)
def test_bind_calls_setsockopt_alone_with_the_option_of_the_family(family: int, option: tuple[int, int]) -> None:
    datagram, stream = FakeSocket(family, abi.SOCK_DGRAM), FakeSocket(family, abi.SOCK_STREAM)
    for sock in (datagram, stream):
        DarwinKernel(SimulatedDarwin()).bind(plain(sock), EN0)
    assert datagram.calls == [(*option, 3)]
    assert stream.calls == [(*option, 3), (0xFFFF, 0x1023, 1)]


def test_a_system_without_noaddrerr_binds_all_the_same() -> None:
    sock = FakeSocket(abi.AF_INET, abi.SOCK_STREAM, (0, abi.ENOPROTOOPT))
    DarwinKernel(SimulatedDarwin()).bind(plain(sock), EN0)
    assert len(sock.calls) == 2


@pytest.mark.parametrize("index", [0, -1])
def test_an_index_that_would_unbind_never_reaches_the_socket(index: int) -> None:
    sock = FakeSocket(abi.AF_INET, abi.SOCK_DGRAM)
    with pytest.raises(BindFailed) as raised:
        DarwinKernel(SimulatedDarwin()).bind(plain(sock), Interface("en0", index))
    assert (raised.value.errno, sock.calls) == (abi.ENXIO, [])


def test_a_socket_of_another_family_is_refused() -> None:
    with pytest.raises(BindFailed, match="AF_INET6") as raised:
        DarwinKernel(SimulatedDarwin()).bind(plain(FakeSocket(1, abi.SOCK_STREAM)), EN0)
    assert raised.value.errno == abi.EAFNOSUPPORT


def test_a_failure_names_the_call_the_interface_and_darwins_errno() -> None:
    with pytest.raises(BindFailed) as raised:
        DarwinKernel(SimulatedDarwin()).bind(plain(FakeSocket(abi.AF_INET6, abi.SOCK_DGRAM, (abi.ENXIO,))), EN0)
    assert (raised.value.call, raised.value.interface, raised.value.errno) == ("IPV6_BOUND_IF", "en0", abi.ENXIO)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_bound_leaves_by_its_interface(machine: SimulatedDarwin, kernel: DarwinKernel, family: int) -> None:
    for name in ("en0", "en5"):
        sock = machine.socket(family, abi.SOCK_DGRAM)
        kernel.bind(plain(sock), interface(kernel, name))
        assert kernel.bound(plain(sock)) == interface(kernel, name).index
        sock.sendto(b"?", beyond(family))
        assert machine.sent[-1].interface == name


@pytest.mark.parametrize("family", FAMILIES)
def test_unbinding_lets_the_routes_decide_again(machine: SimulatedDarwin, kernel: DarwinKernel, family: int) -> None:
    sock = machine.socket(family, abi.SOCK_DGRAM)
    assert kernel.bound(plain(sock)) is None
    kernel.bind(plain(sock), interface(kernel, "en5"))
    kernel.unbind(plain(sock))
    assert kernel.bound(plain(sock)) is None
    sock.sendto(b"?", beyond(family))
    assert machine.sent[-1].interface == "en0"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connected_socket_that_is_unbound_has_the_source_of_its_new_route(
    machine: SimulatedDarwin, kernel: DarwinKernel, family: int
) -> None:
    sock = machine.socket(family, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en5"))
    sock.connect(beyond(family))
    before = sock.getsockname()
    kernel.unbind(plain(sock))
    sock.send(b"?")
    assert machine.sent[-1].interface == "en0"
    assert sock.getsockname()[0] != before[0]
    assert sock.getsockname()[1] == before[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unconnected_socket_moves_and_keeps_its_port(machine: SimulatedDarwin, kernel: DarwinKernel, family: int) -> None:
    sock = machine.socket(family, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.sendto(b"1", beyond(family))
    kernel.rebind(plain(sock), interface(kernel, "en5"))
    sock.sendto(b"2", beyond(family))
    first, second = machine.sent
    assert (first.interface, second.interface) == ("en0", "en5")
    assert first.source_port == second.source_port
    assert first.source != second.source


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connected_socket_is_connected_again_with_a_new_source(
    machine: SimulatedDarwin, kernel: DarwinKernel, family: int
) -> None:
    sock = machine.socket(family, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(beyond(family))
    before = sock.getsockname()
    kernel.rebind(plain(sock), interface(kernel, "en5"))
    assert sock.getpeername()[:2] == beyond(family)[:2]
    assert sock.getsockname()[0] != before[0]
    assert sock.getsockname()[1] == before[1]
    sock.send(b"?")
    assert machine.sent[-1].interface == "en5"


def test_moving_to_where_it_is_chooses_the_source_anew(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = machine.socket(abi.AF_INET, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(beyond(abi.AF_INET))
    machine.remove_address("en0", "192.168.1.23")
    machine.delete_route("0.0.0.0/0", "en0")
    machine.add_address("en0", "192.168.1.77/24")
    machine.add_route("0.0.0.0/0", "en0", "192.168.1.1")
    kernel.rebind(plain(sock), interface(kernel, "en0"))
    assert sock.getsockname()[0] == "192.168.1.77"


def test_a_rebind_that_fails_leaves_the_socket_bound_and_a_later_one_cures_it(
    machine: SimulatedDarwin, kernel: DarwinKernel
) -> None:
    sock = machine.socket(abi.AF_INET, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(beyond(abi.AF_INET))
    port = sock.getsockname()[1]
    machine.delete_route("0.0.0.0/0", "en5", scoped=True)
    with pytest.raises(BindFailed) as raised:
        kernel.rebind(plain(sock), interface(kernel, "en5"))
    assert (raised.value.call, raised.value.errno) == ("connect", abi.ENETUNREACH)
    assert kernel.bound(plain(sock)) == interface(kernel, "en5").index
    with pytest.raises(OSError, match="ENOTCONN"):
        sock.getpeername()
    machine.add_route("0.0.0.0/0", "en5", "10.20.0.1", scoped=True)
    kernel.rebind(plain(sock), interface(kernel, "en5"), peer=beyond(abi.AF_INET), port=port)
    assert (sock.getsockname(), sock.getpeername()) == (("10.20.0.15", port), beyond(abi.AF_INET))


def test_a_rebind_to_an_interface_that_is_gone_changes_nothing(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = machine.socket(abi.AF_INET, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(beyond(abi.AF_INET))
    gone = interface(kernel, "en5")
    machine.remove_interface("en5")
    with pytest.raises(BindFailed) as raised:
        kernel.rebind(plain(sock), gone)
    assert raised.value.errno == abi.ENXIO
    sock.send(b"?")
    assert machine.sent[-1].interface == "en0"


def test_a_socket_with_an_ipv4_mapped_peer_is_refused_with_the_reason(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = machine.socket(abi.AF_INET6, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(("::ffff:8.8.8.8", 53, 0, 0))
    with pytest.raises(BindFailed, match="IPv4-mapped") as raised:
        kernel.rebind(plain(sock), interface(kernel, "en5"))
    assert raised.value.errno == abi.EINVAL
    assert kernel.bound(plain(sock)) == interface(kernel, "en0").index


def test_a_link_local_peer_is_looked_for_on_the_new_link(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = machine.socket(abi.AF_INET6, abi.SOCK_DGRAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    sock.connect(("fe80::1", 7, 0, interface(kernel, "en0").index))
    kernel.rebind(plain(sock), interface(kernel, "en5"))
    assert sock.getpeername() == ("fe80::1", 7, 0, interface(kernel, "en5").index)


def connected(machine: SimulatedDarwin, kernel: DarwinKernel) -> SimulatedSocket:
    sock = machine.socket(abi.AF_INET, abi.SOCK_STREAM)
    kernel.bind(plain(sock), interface(kernel, "en0"))
    with pytest.raises(BlockingIOError):
        sock.connect(beyond(abi.AF_INET))
    sock.answer()
    return sock


def test_a_stream_never_moves_to_an_interface_that_has_not_its_address(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = connected(machine, kernel)
    with pytest.raises(BindFailed, match=r"192\.168\.1\.23 is not its address") as raised:
        kernel.rebind(plain(sock), interface(kernel, "en5"))
    assert raised.value.errno == abi.EADDRNOTAVAIL
    sock.send(b"?")
    assert machine.sent[-1].interface == "en0"


def test_a_stream_follows_its_address(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = connected(machine, kernel)
    machine.remove_address("en0", "192.168.1.23")
    machine.add_address("en5", "192.168.1.23/24")
    kernel.rebind(plain(sock), interface(kernel, "en5"))
    sock.send(b"?")
    assert machine.sent[-1].interface == "en5"


def test_a_bound_stream_fails_fast_when_its_address_is_gone(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = connected(machine, kernel)
    machine.remove_address("en0", "192.168.1.23")
    with pytest.raises(OSError, match="EADDRNOTAVAIL"):
        sock.send(b"?")


def test_the_addresses_of_an_interface_are_compared_without_a_mapping(kernel: DarwinKernel) -> None:
    class Stream(FakeSocket):
        def getsockname(self) -> tuple[Any, ...]:
            return "::ffff:192.0.2.5", 1, 0, 0

    sock = Stream(abi.AF_INET6, abi.SOCK_STREAM)
    kernel.rebind(plain(sock), Interface("en0", 3, addresses=(InterfaceAddress(ip_address("192.0.2.5"), 24),)))
    assert sock.calls == [(41, 125, 3)]


def test_an_aborted_stream_is_shut_down_in_both_directions(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    sock = connected(machine, kernel)
    kernel.abort(plain(sock))
    with pytest.raises(OSError, match="EINVAL"):
        sock.setsockopt(*BOUND, 3)


def test_activity_is_what_the_kernel_counts_of_the_connection(kernel: DarwinKernel) -> None:
    class Counting(FakeSocket):
        asked: tuple[int, int] = (0, 0)

        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            self.asked = (level, option)
            return bytes(abi.tcp_connection_info(tcpi_txbytes=17, tcpi_rxbytes=4))[:size]

    sock = Counting(abi.AF_INET, abi.SOCK_STREAM)
    assert kernel.activity(plain(sock)) == (17, 4)
    assert sock.asked == (6, 0x106)


def test_activity_is_unknown_of_a_socket_that_does_not_tell(machine: SimulatedDarwin, kernel: DarwinKernel) -> None:
    assert kernel.activity(plain(machine.socket(abi.AF_INET, abi.SOCK_DGRAM))) is None


def beyond(family: int) -> tuple[Any, ...]:
    return ("8.8.8.8", 53) if family == abi.AF_INET else ("2001:4860:4860::8888", 53, 0, 0)
