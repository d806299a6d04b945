"""Binding and moving sockets, observed from the other end of the cable, with and without privilege."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from bindsock.errors import BindFailed
from bindsock.kernel.linux import LinuxKernel
from bindsock.model.network import Interface
from tests.linux.namespaces import as_nobody, in_this_process, ip, received
from tests.networks import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.linux.namespaces import World

pytestmark = pytest.mark.lab

V4, V6 = socket.AF_INET, socket.AF_INET6
SOURCES = {("wifi0", V4): "10.1.0.2", ("eth0", V4): "10.2.0.2", ("wifi0", V6): "fd10:1::2", ("eth0", V6): "fd10:2::2"}

families = pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
privileges = pytest.mark.parametrize("privilege", [in_this_process, as_nobody], ids=["root", "nobody"])


class Failure(NamedTuple):
    """A BindFailed that can be sent by pipe."""

    errno: int | None
    call: str | None
    interface: str | None


def failure(function: Callable[[], object]) -> Failure | None:
    try:
        function()
    except BindFailed as failed:
        return Failure(failed.errno, failed.call, failed.interface)
    return None


@pytest.fixture
def wifi0(kernel: LinuxKernel) -> Interface:
    return named(kernel.network(), "wifi0")


@pytest.fixture
def eth0(kernel: LinuxKernel) -> Interface:
    return named(kernel.network(), "eth0")


def free_port(world: World, family: int) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


@privileges
@families
def test_a_bound_datagram_leaves_by_the_interface_against_the_default(
    world: World, kernel: LinuxKernel, eth0: Interface, family: socket.AddressFamily, privilege: Any
) -> None:
    server = world.server(family)

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, eth0)
            assert kernel.bound(sock) == eth0.index
            sock.sendto(b"x", server.getsockname()[:2])

    privilege(send)
    arrived = received(world, server)
    assert (arrived.interface, arrived.source) == ("eth0", SOURCES["eth0", family])


@privileges
@families
def test_a_bound_stream_connects_by_the_interface(
    world: World, kernel: LinuxKernel, eth0: Interface, family: socket.AddressFamily, privilege: Any
) -> None:
    server = world.server(family, socket.SOCK_STREAM)

    def connect() -> str:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            kernel.bind(sock, eth0)
            sock.settimeout(20)
            sock.connect(server.getsockname()[:2])
            return str(sock.getsockname()[0])

    assert privilege(connect) == SOURCES["eth0", family]
    accepted, peer = server.accept()
    accepted.close()
    assert peer[0] == SOURCES["eth0", family]


@privileges
def test_binding_again_to_the_same_interface_is_harmless(kernel: LinuxKernel, eth0: Interface, privilege: Any) -> None:
    def bind() -> int | None:
        with socket.socket(V4, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, eth0)
            kernel.bind(sock, eth0)
            return kernel.bound(sock)

    assert privilege(bind) == eth0.index


def test_a_refused_bind_says_which_call_and_why(kernel: LinuxKernel, eth0: Interface, wifi0: Interface) -> None:
    def bind() -> tuple[Failure | None, int | None]:
        with socket.socket(V4, socket.SOCK_STREAM) as sock:
            kernel.bind(sock, eth0)
            return failure(lambda: kernel.bind(sock, wifi0)), kernel.bound(sock)

    assert as_nobody(bind) == (Failure(errno.EPERM, "SO_BINDTOIFINDEX", "wifi0"), eth0.index)


@pytest.mark.parametrize("index", [0, -1, 4711])
def test_an_index_that_nothing_has_is_refused_and_never_unbinds(
    world: World, kernel: LinuxKernel, eth0: Interface, index: int
) -> None:
    sock = world.client(V4)
    kernel.bind(sock, eth0)
    for call in (kernel.bind, kernel.rebind):
        with pytest.raises(BindFailed) as failed:
            call(sock, replace(eth0, index=index))
        assert failed.value.errno == errno.ENODEV
    assert kernel.bound(sock) == eth0.index


def test_a_closed_socket_is_refused(world: World, kernel: LinuxKernel, eth0: Interface) -> None:
    sock = world.client(V4)
    sock.close()
    for call in (kernel.bind, kernel.rebind):
        with pytest.raises(BindFailed) as failed:
            call(sock, eth0)
        assert failed.value.errno == errno.EBADF


def test_an_interface_that_came_back_under_its_name_is_another(world: World, kernel: LinuxKernel, eth0: Interface) -> None:
    sock = world.client(V4)
    kernel.bind(sock, eth0)
    ip("link del eth0", "link add eth0 type veth peer name x1", "link set eth0 up")
    assert kernel.bound(sock) == eth0.index
    with pytest.raises(BindFailed) as failed:
        kernel.bind(world.client(V4), eth0)
    assert failed.value.errno == errno.ENODEV
    kernel.rebind(sock, named(kernel.network(), "eth0"))
    assert kernel.bound(sock) == named(kernel.network(), "eth0").index != eth0.index


@privileges
@families
@pytest.mark.parametrize("explicit", [False, True], ids=["automatic port", "explicit port"])
def test_a_connected_socket_moves_and_keeps_port_peer_and_queue(
    world: World,
    kernel: LinuxKernel,
    wifi0: Interface,
    eth0: Interface,
    family: socket.AddressFamily,
    explicit: bool,
    privilege: Any,
) -> None:
    server = world.server(family)
    port = free_port(world, family) if explicit else 0

    def move() -> list[Any]:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            kernel.bind(sock, wifi0)
            if explicit:
                sock.bind(("", port))
            sock.connect(server.getsockname()[:2])
            sock.send(b"0")
            server.sendto(b"early", server.recvfrom(100)[1])
            descriptor, local = sock.fileno(), sock.getsockname()
            moved = []
            for number, interface in enumerate((eth0, wifi0, eth0), 1):
                kernel.rebind(sock, interface)
                assert sock.getsockname()[:2] == (SOURCES[interface.name, family], local[1])
                assert sock.getpeername()[:2] == server.getsockname()[:2]
                assert kernel.bound(sock) == interface.index
                assert sock.fileno() == descriptor
                sock.send(b"%d" % number)
                moved.append(interface.name)
            return [sock.recv(100), local[1], moved]

    early, used, moved = privilege(move)
    assert early == b"early"
    assert not explicit or used == port
    for number, name in enumerate(moved, 1):
        arrived = received(world, server)
        assert arrived[:4] == (b"%d" % number, SOURCES[name, family], used, name)


@privileges
@families
def test_replies_reach_a_socket_that_was_moved(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, family: socket.AddressFamily, privilege: Any
) -> None:
    server = world.server(family)

    def exchange() -> bytes:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            kernel.bind(sock, wifi0)
            sock.connect(server.getsockname()[:2])
            kernel.rebind(sock, eth0)
            sock.send(b"ping")
            data, sender = server.recvfrom(100)
            server.sendto(data + b" pong", sender)
            return sock.recv(100)

    assert privilege(exchange) == b"ping pong"


@privileges
@families
def test_an_unconnected_socket_moves_and_keeps_its_port(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, family: socket.AddressFamily, privilege: Any
) -> None:
    server = world.server(family)

    def move() -> int:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, wifi0)
            sock.sendto(b"0", server.getsockname()[:2])
            port = int(sock.getsockname()[1])
            kernel.rebind(sock, eth0)
            sock.sendto(b"1", server.getsockname()[:2])
            assert sock.getsockname()[1] == port
            with pytest.raises(OSError, match="not connected"):
                sock.getpeername()
            return port

    port = privilege(move)
    for data, name in ((b"0", "wifi0"), (b"1", "eth0")):
        assert received(world, server)[:4] == (data, SOURCES[name, family], port, name)


@privileges
def test_a_socket_that_never_had_an_interface_moves_to_one(
    world: World, kernel: LinuxKernel, eth0: Interface, privilege: Any
) -> None:
    server = world.server(V4)

    def move() -> None:
        for connected in (True, False):
            with socket.socket(V4, socket.SOCK_DGRAM) as sock:
                if connected:
                    sock.connect(server.getsockname())
                kernel.rebind(sock, eth0)
                sock.sendto(b"x", server.getsockname())

    privilege(move)
    assert [received(world, server).interface for _ in range(2)] == ["eth0", "eth0"]


@privileges
def test_a_dual_stack_socket_with_an_ipv4_peer_moves(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, privilege: Any
) -> None:
    server = world.server(V4)
    mapped = (f"::ffff:{server.getsockname()[0]}", server.getsockname()[1])

    def move() -> int:
        with socket.socket(V6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            kernel.bind(sock, wifi0)
            sock.connect(mapped)
            port = int(sock.getsockname()[1])
            kernel.rebind(sock, eth0)
            sock.send(b"x")
            return port

    port = privilege(move)
    assert received(world, server)[:4] == (b"x", "10.2.0.2", port, "eth0")


@privileges
def test_a_link_local_peer_is_looked_for_on_the_new_link(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, privilege: Any
) -> None:
    def move() -> tuple[Any, Any]:
        with socket.socket(V6, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, wifi0)
            sock.connect(("fe80::77", 4000, 0, wifi0.index))
            kernel.rebind(sock, eth0)
            return sock.getsockname(), sock.getpeername()

    local, peer = privilege(move)
    assert (peer[0].split("%")[0], *peer[1:]) == ("fe80::77", 4000, 0, eth0.index)
    assert local[0].split("%")[0] == "fe80::2:2"


@privileges
def test_an_explicit_local_address_is_left_alone(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, privilege: Any
) -> None:
    server = world.server(V4)

    def move() -> list[Any]:
        with socket.socket(V4, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, wifi0)
            sock.bind(("10.1.0.2", 0))
            local = sock.getsockname()
            sock.connect(server.getsockname())
            kernel.rebind(sock, eth0)
            return [local, sock.getsockname(), sock.getpeername(), kernel.bound(sock)]

    local, moved, peer, bound = privilege(move)
    assert moved == local
    assert peer == server.getsockname()
    assert bound == eth0.index


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [(V4, "10.2.0.2/24", "10.2.0.9/24"), (V6, "fd10:2::2/64", "fd10:2::9/64")],
    ids=["IPv4", "IPv6"],
)
def test_moving_to_the_same_interface_takes_its_new_address(
    world: World, kernel: LinuxKernel, eth0: Interface, family: socket.AddressFamily, old: str, new: str
) -> None:
    server = world.server(family)
    sock = world.client(family)
    kernel.bind(sock, eth0)
    sock.connect(server.getsockname()[:2])
    port = sock.getsockname()[1]
    ip(f"addr del {old} dev eth0", f"addr add {new} dev eth0 {'nodad' if family == V6 else ''}")
    ip("route replace default via 10.2.0.1 dev eth0 metric 700", "-6 route replace default via fd10:2::1 dev eth0 metric 700")
    kernel.rebind(sock, eth0)
    sock.send(b"x")
    assert received(world, server)[:4] == (b"x", new.split("/")[0], port, "eth0")


@privileges
def test_a_move_that_fails_at_the_connect_stays_bound_and_succeeds_later(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, privilege: Any
) -> None:
    server = world.server(V6)
    ip("-6 route del default dev eth0")

    def move() -> tuple[Failure | None, int | None, int, int, int]:
        with socket.socket(V6, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, wifi0)
            sock.connect(server.getsockname()[:2])
            peer, port = sock.getpeername(), int(sock.getsockname()[1])
            failed = failure(lambda: kernel.rebind(sock, eth0))
            bound = kernel.bound(sock)
            try:
                sock.send(b"refused")
                refused = 0
            except OSError as error:
                refused = error.errno or 0
            assert failure(lambda: kernel.rebind(sock, eth0, peer=peer, port=port)) == failed
            kernel.rebind(sock, wifi0, peer=peer, port=port)
            sock.send(b"x")
            return failed, bound, refused, port, int(sock.getsockname()[1])

    failed, bound, refused, port, kept = privilege(move)
    assert failed == Failure(errno.ENETUNREACH, "connect", "eth0")
    assert bound == eth0.index
    assert refused == errno.EDESTADDRREQ
    assert kept == port
    assert received(world, server)[:4] == (b"x", "fd10:1::2", port, "wifi0")


@privileges
def test_a_move_that_fails_at_the_port_succeeds_later_with_the_port_that_the_caller_knows(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, privilege: Any
) -> None:
    server = world.server(V4)

    def move() -> tuple[Failure | None, int | None, int, int]:
        with socket.socket(V4, socket.SOCK_DGRAM) as sock, socket.socket(V4, socket.SOCK_DGRAM) as squatter:
            kernel.bind(sock, wifi0)
            sock.connect(server.getsockname())
            peer, port = sock.getpeername(), int(sock.getsockname()[1])
            # The port is free on another device while this socket is bound to its own device.
            kernel.bind(squatter, eth0)
            squatter.bind(("", port))
            failed = failure(lambda: kernel.rebind(sock, eth0))
            bound = kernel.bound(sock)
            squatter.close()
            kernel.rebind(sock, eth0, peer=peer, port=port)
            sock.send(b"x")
            return failed, bound, port, int(sock.getsockname()[1])

    failed, bound, port, kept = privilege(move)
    assert failed == Failure(errno.EADDRINUSE, "bind", "eth0")
    assert bound == eth0.index
    assert kept == port
    assert received(world, server)[:4] == (b"x", "10.2.0.2", port, "eth0")


class Refusing(socket.socket):
    """A socket that the kernel refuses to bind by index."""

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == (socket.SOL_SOCKET, 62):
            raise OSError(errno.EPERM, "as before Linux 5.7")
        super().setsockopt(*arguments)


@families
def test_a_socket_that_has_lost_its_interface_and_gets_none_cannot_send(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, family: socket.AddressFamily
) -> None:
    server = world.server(family)
    with socket.socket(family, socket.SOCK_DGRAM) as first:
        kernel.bind(first, wifi0)
        first.connect(server.getsockname()[:2])
        sock = Refusing(family, socket.SOCK_DGRAM, fileno=first.detach())
    with sock:
        with pytest.raises(BindFailed) as failed:
            kernel.rebind(sock, eth0)
        assert failed.value.call == "SO_BINDTOIFINDEX"
        with pytest.raises(BrokenPipeError):
            sock.sendto(b"x", server.getsockname()[:2])


def test_an_unconnected_socket_that_is_there_already_is_not_touched(world: World, kernel: LinuxKernel, eth0: Interface) -> None:
    first = world.client(V4)
    kernel.bind(first, eth0)
    with Refusing(V4, socket.SOCK_DGRAM, fileno=first.detach()) as sock:
        kernel.rebind(sock, eth0)
        assert kernel.bound(sock) == eth0.index


class Old(socket.socket):
    """A socket on a kernel before 5.0, without ``SO_BINDTOIFINDEX``."""

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == (socket.SOL_SOCKET, 62):
            raise OSError(errno.ENOPROTOOPT, "no such option")
        super().setsockopt(*arguments)

    def getsockopt(self, *arguments: Any) -> Any:
        if arguments[:2] == (socket.SOL_SOCKET, 62):
            raise OSError(errno.ENOPROTOOPT, "no such option")
        return super().getsockopt(*arguments)


def test_without_binding_by_index_the_present_name_of_the_index_is_bound(
    world: World, kernel: LinuxKernel, eth0: Interface
) -> None:
    server = world.server(V4)
    ip("link set eth0 down", "link set eth0 name lan7", "link set lan7 up", "route add default via 10.2.0.1 dev lan7 metric 700")
    with Old(V4, socket.SOCK_DGRAM) as sock:
        assert kernel.bound(sock) is None
        kernel.bind(sock, eth0)
        assert kernel.bound(sock) == eth0.index
        sock.sendto(b"x", server.getsockname())
        assert received(world, server).interface == "eth0"
        ip("link del lan7")
        assert kernel.bound(sock) == -1
        kernel.unbind(sock)
        assert kernel.bound(sock) is None


@privileges
@families
def test_an_unbound_datagram_socket_follows_the_routing_table_again(
    world: World, kernel: LinuxKernel, eth0: Interface, family: socket.AddressFamily, privilege: Any
) -> None:
    server = world.server(family)

    def unbind() -> int:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            kernel.bind(sock, eth0)
            sock.bind(("", 0))
            port = int(sock.getsockname()[1])
            kernel.unbind(sock)
            assert kernel.bound(sock) is None
            sock.sendto(b"x", server.getsockname()[:2])
            assert sock.getsockname()[1] == port
            return port

    port = privilege(unbind)
    assert received(world, server)[:4] == (b"x", SOURCES["wifi0", family], port, "wifi0")


def test_a_stream_is_not_unbound_without_privilege(kernel: LinuxKernel, eth0: Interface) -> None:
    def unbind() -> Failure | None:
        with socket.socket(V4, socket.SOCK_STREAM) as sock:
            kernel.bind(sock, eth0)
            return failure(lambda: kernel.unbind(sock))

    assert as_nobody(unbind) == Failure(errno.EPERM, "SO_BINDTOIFINDEX", None)


@families
def test_a_stream_stays_where_its_address_is(
    world: World, kernel: LinuxKernel, wifi0: Interface, eth0: Interface, family: socket.AddressFamily
) -> None:
    server = world.server(family, socket.SOCK_STREAM)
    sock = world.client(family, socket.SOCK_STREAM)
    kernel.bind(sock, wifi0)
    sock.connect(server.getsockname()[:2])
    with pytest.raises(BindFailed, match="a stream cannot move to eth0"):
        kernel.rebind(sock, eth0)
    kernel.rebind(sock, wifi0)
    assert kernel.bound(sock) == wifi0.index
    accepted, _ = server.accept()
    with accepted:
        sock.send(b"still here")
        assert accepted.recv(100) == b"still here"


def test_a_stream_moves_along_with_its_address(world: World, kernel: LinuxKernel, wifi0: Interface) -> None:
    from tests.linux.namespaces import inside

    server = world.server(V4, socket.SOCK_STREAM)
    sock = world.client(V4, socket.SOCK_STREAM)
    kernel.bind(sock, wifi0)
    sock.connect(server.getsockname())
    ip("addr del 10.1.0.2/24 dev wifi0", "addr add 10.1.0.2/32 dev eth0")
    with inside(world.peer):
        ip("route add 10.1.0.2/32 dev eth0")
    eth0 = named(kernel.network(), "eth0")
    kernel.rebind(sock, eth0)
    assert kernel.bound(sock) == eth0.index
    accepted, _ = server.accept()
    with accepted:
        sock.send(b"moved")
        accepted.settimeout(20)
        assert accepted.recv(100) == b"moved"
        accepted.send(b"seen")
        assert sock.recv(100) == b"seen"


@pytest.mark.parametrize("protocol", [0, 262], ids=["TCP", "MPTCP"])
def test_activity_differs_after_data_has_moved_and_only_then(world: World, kernel: LinuxKernel, protocol: int) -> None:
    server = world.server(V4, socket.SOCK_STREAM)
    sock = world.client(V4, socket.SOCK_STREAM, protocol)
    sock.connect(server.getsockname())
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(20)
        quiet = kernel.activity(sock)
        assert quiet is not None
        assert kernel.activity(sock) == quiet
        sock.send(b"x")
        assert accepted.recv(1) == b"x"
        sent = kernel.activity(sock)
        assert sent != quiet
        accepted.send(b"y")
        assert sock.recv(1) == b"y"
        assert kernel.activity(sock) != sent


def test_activity_of_what_is_no_stream_is_unknown(world: World, kernel: LinuxKernel) -> None:
    assert kernel.activity(world.client(V4)) is None
    closed = world.client(V4, socket.SOCK_STREAM)
    closed.close()
    assert kernel.activity(closed) is None


@pytest.mark.parametrize(("size", "expected"), [(104, None), (192, (7, 9)), (216, (7, 9, 30))])
def test_the_short_tcp_info_of_an_old_kernel_is_read_as_far_as_it_goes(
    world: World, kernel: LinuxKernel, size: int, expected: object
) -> None:
    info = bytearray(216)
    struct.pack_into("=QQ", info, 120, 7, 9)
    struct.pack_into("=QQ", info, 200, 40, 10)

    class Answering(socket.socket):
        def getsockopt(self, *arguments: Any) -> Any:
            assert arguments[:2] == (socket.IPPROTO_TCP, 11)
            return bytes(info[:size])

    with Answering(V4, socket.SOCK_STREAM) as sock:
        assert kernel.activity(sock) == expected
