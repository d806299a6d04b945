"""Datagram sockets made by other code: bound once, and moved in place."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from bindsock import BindFailed, NoEffectiveInterface, NoRoute, Preferences, TransportFactory
from bindsock.datagram import first_hop
from bindsock.datagram.in_place import InPlace, follow_datagrams, watch_datagrams
from bindsock.datagram.plan import UNBOUND, Placement, Requirement
from bindsock.dial.binding import MakeshiftSource
from bindsock.factory import connector_of
from bindsock.model.decision import path_of, path_on
from bindsock.model.network import Interface, IPAddress
from bindsock.testing import SimulatedKernel, interface, network
from tests.scene import Scene
from tests.virtual_loop import VirtualLoop
from tests.waiting import until

LOOPBACK = interface("1: lo0 loopback 127.0.0.1/8 ::1/128")
WIFI = interface("2: en0 wifi 192.0.2.5/24 2001:db8:2::5/64")
WIRED = interface("3: en1 wired 198.51.100.5/24 2001:db8:3::5/64")
ON_WIFI = network(LOOPBACK, WIFI, WIRED, "default via 192.0.2.1 dev en0", "default via 2001:db8:2::1 dev en0")
ON_WIRED = network(LOOPBACK, WIFI, WIRED, "default via 198.51.100.1 dev en1", "default via 2001:db8:3::1 dev en1")
WIRED_BETTER = network(
    LOOPBACK,
    WIFI,
    WIRED,
    "default via 198.51.100.1 dev en1",
    "default via 2001:db8:3::1 dev en1",
    "default via 192.0.2.1 dev en0 metric 600",
    "default via 2001:db8:2::1 dev en0 metric 600",
)
MIXED = network(LOOPBACK, WIFI, WIRED, "default via 192.0.2.1 dev en0", "default via 2001:db8:3::1 dev en1")
NOWHERE = network(LOOPBACK, WIFI)


class PickyKernel(SimulatedKernel):
    """A kernel without a route by some interfaces."""

    routeless: frozenset[str] | set[str] = frozenset()

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        return interface.name not in self.routeless and super().has_route(interface, destination)


@pytest.fixture
def kernel() -> PickyKernel:
    return PickyKernel(ON_WIFI)


@pytest.fixture
async def factory(kernel: SimulatedKernel) -> AsyncIterator[TransportFactory]:
    async with TransportFactory(kernel=kernel) as factory:
        yield factory


def datagrams(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


async def test_a_tracked_socket_is_bound_and_moved(kernel: PickyKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        factory.track(sock)
        assert kernel.bound(sock) == 2
        kernel.change(ON_WIRED)
        await until(lambda: kernel.bound(sock) == 3)
        assert kernel.binds == [("rebind", "en0"), ("rebind", "en1")]
        assert factory.statistics().rebinds == 1


async def test_while_there_is_no_path_it_stays_where_it_is(kernel: SimulatedKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        factory.track(sock)
        readings = kernel.readings
        kernel.change(NOWHERE)
        await until(lambda: kernel.readings > readings)
        assert kernel.bound(sock) == 2
        kernel.change(ON_WIRED)
        await until(lambda: kernel.bound(sock) == 3)


async def test_a_socket_without_a_route_to_its_peer_is_not_moved(kernel: PickyKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        sock.connect(("127.0.0.1", 9))
        far = ip_address("203.0.113.9")
        decision = factory.explain(far)
        watch_datagrams(connector_of(factory).watcher, sock, far, path_of(decision))
        kernel.routeless = {"en1"}
        kernel.change(ON_WIRED)
        await until(lambda: factory.statistics().rebinds_failed >= 1)
        assert kernel.binds == []
        kernel.routeless = set()
        await until(lambda: kernel.bound(sock) == 3)


async def test_a_socket_whose_destination_becomes_a_split_tunnels_own_is_unbound_and_bound_again(kernel: SimulatedKernel) -> None:
    tunnel = interface("9: utun0 tunnel 10.8.0.2/24")
    inside = "203.0.113.0/24 dev utun0"
    defaults = ("default via 192.0.2.1 dev en0", "default via 2001:db8:2::1 dev en0")
    async with TransportFactory(Preferences(tunnels="split"), kernel=kernel) as factory:
        with datagrams() as sock:
            assert connector_of(factory).follow_datagrams(sock, ip_address("203.0.113.9"))
            assert kernel.bound(sock) == 2
            kernel.change(network(LOOPBACK, WIFI, WIRED, tunnel, inside, *defaults))
            await until(lambda: kernel.bound(sock) is None)
            kernel.change(ON_WIFI)
            await until(lambda: kernel.bound(sock) == 2)
            assert kernel.binds == [("rebind", "en0"), ("unbind", ""), ("rebind", "en0")]


async def test_a_better_path_is_taken_when_its_first_hop_answers(
    kernel: SimulatedKernel, factory: TransportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_hop, "_PROBE_INTERVAL", 3600.0)  # on a busy machine a second may pass at any time
    with datagrams() as sock:
        factory.track(sock)
        kernel.hops["en1"] = False
        readings = kernel.readings
        kernel.change(WIRED_BETTER)
        await until(lambda: kernel.readings > readings)
        assert (kernel.bound(sock), kernel.asked_hops) == (2, ["en1"])
        kernel.hops["en1"] = True
        await until(lambda: kernel.bound(sock) == 3)


async def test_a_path_whose_route_is_gone_is_left_before_the_first_hop_of_the_other_answers(
    kernel: SimulatedKernel, factory: TransportFactory
) -> None:
    with datagrams() as sock:
        factory.track(sock)
        kernel.hops["en1"] = False
        kernel.change(ON_WIRED)
        await until(lambda: kernel.bound(sock) == 3)


async def test_each_destination_that_is_sent_to_decides_where_the_socket_is(
    kernel: PickyKernel, factory: TransportFactory
) -> None:
    lan = interface("4: lan0 wifi 192.168.7.1/24")
    kernel.change(network(LOOPBACK, WIFI, WIRED, lan, "default via 192.0.2.1 dev en0", "192.168.7.0/24 dev lan0"))
    far, near, own = (ip_address(a) for a in ("203.0.113.9", "192.168.7.9", "127.0.0.1"))
    with datagrams() as sock:
        mover = connector_of(factory).follow_datagrams(sock, far)
        assert mover is not None
        for target, index in ((far, 2), (near, 4), (own, None), (near, 4), (far, 2), (far, 2)):
            mover.retarget(sock, target)
            assert kernel.bound(sock) == index
        assert factory.statistics().rebinds == 4
        kernel.change(network(LOOPBACK, lan, "192.168.7.0/24 dev lan0"))
        mover.retarget(sock, near)
        for _ in range(2):
            with pytest.raises(NoEffectiveInterface, match=r"203\.0\.113\.9"):
                mover.retarget(sock, far)
        assert kernel.bound(sock) == 4


@pytest.mark.parametrize("obstacle", ["the system refuses to bind", "there is no route"])
async def test_a_destination_that_the_socket_cannot_be_moved_for_is_refused_each_time_until_it_can(
    kernel: PickyKernel, factory: TransportFactory, obstacle: str
) -> None:
    lan = interface("4: lan0 wifi 192.168.7.1/24")
    kernel.change(network(LOOPBACK, WIFI, lan, "default via 192.0.2.1 dev en0", "192.168.7.0/24 dev lan0"))
    far, near = ip_address("203.0.113.9"), ip_address("192.168.7.9")
    with datagrams() as sock:
        mover = connector_of(factory).follow_datagrams(sock, far)
        assert mover is not None
        if obstacle == "there is no route":
            kernel.routeless = {"lan0"}
        else:
            kernel.refuse = {"lan0"}
        for _ in range(2):
            with pytest.raises(NoRoute if kernel.routeless else BindFailed):
                mover.retarget(sock, near)
        kernel.routeless, kernel.refuse = set(), set()
        mover.retarget(sock, near)
        assert kernel.bound(sock) == 4


async def test_a_socket_that_could_not_be_moved_is_bound_anew_before_it_sends_to_the_last_destination(
    kernel: PickyKernel, factory: TransportFactory
) -> None:
    lan = interface("4: lan0 wifi 192.168.7.1/24")
    kernel.change(network(LOOPBACK, WIFI, lan, "default via 192.0.2.1 dev en0", "192.168.7.0/24 dev lan0"))
    far, near = ip_address("203.0.113.9"), ip_address("192.168.7.9")
    with datagrams() as sock:
        mover = connector_of(factory).follow_datagrams(sock, far)
        assert mover is not None
        kernel.refuse = {"en0", "lan0"}
        for target in (near, far, far):
            with pytest.raises(BindFailed):
                mover.retarget(sock, target)
        kernel.refuse = set()
        kernel.binds.clear()
        for _ in range(2):
            mover.retarget(sock, far)
        assert kernel.binds == [("rebind", "en0")]


async def test_the_socket_follows_the_path_to_the_last_destination(kernel: PickyKernel, factory: TransportFactory) -> None:
    lan = interface("4: lan0 wifi 192.168.7.1/24")
    to_lan = "192.168.7.0/24 dev lan0"
    kernel.change(network(LOOPBACK, WIFI, WIRED, lan, to_lan, "default via 192.0.2.1 dev en0"))
    with datagrams() as sock:
        mover = connector_of(factory).follow_datagrams(sock, ip_address("203.0.113.9"))
        assert mover is not None
        mover.retarget(sock, ip_address("192.168.7.9"))
        readings = kernel.readings
        kernel.change(network(LOOPBACK, WIFI, WIRED, lan, to_lan, "default via 198.51.100.1 dev en1"))
        await until(lambda: kernel.readings > readings)
        assert kernel.bound(sock) == 4


@pytest.mark.parametrize("chosen", [False, True])
async def test_only_a_source_address_that_the_program_has_not_chosen_is_doubted(factory: TransportFactory, chosen: bool) -> None:
    """The address may be another interface's, if the program has pinned the socket."""
    own = ip_address("::1")
    made = network(WIFI, "3: en1 wired ::1/128 2001:db8:3::5/64")
    requirement = Requirement((ip_address("2001:db8:9::9"),), own if chosen else None)
    in_place = InPlace(connector_of(factory).watcher, requirement, UNBOUND)
    with datagrams(socket.AF_INET6) as sock, contextlib.nullcontext() if chosen else pytest.raises(MakeshiftSource):
        sock.connect(("::1", 9))
        in_place.check_source(sock, sock.getpeername(), Placement(path_on(made.interfaces[2], socket.AF_INET6)), made)


async def test_a_source_address_is_not_doubted_if_its_interface_is_gone(factory: TransportFactory) -> None:
    """It was deleted after the socket was bound: the move that follows deals with it."""
    in_place = InPlace(connector_of(factory).watcher, Requirement((ip_address("2001:db8:9::9"),), None), UNBOUND)
    with datagrams(socket.AF_INET6) as sock:
        sock.connect(("::1", 9))
        in_place.check_source(sock, sock.getpeername(), Placement(path_on(WIFI, socket.AF_INET6)), network(WIRED))


async def test_what_the_program_says_that_it_has_sent_is_counted(kernel: PickyKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        mover = connector_of(factory).follow_datagrams(sock)
        assert mover is not None
        mover.sent(sock)
        kernel.change(ON_WIRED)
        await until(lambda: kernel.bound(sock) == 3)
        mover.sent(sock)
        assert factory.statistics().sent == {"unbound": 0, "en0": 1, "en1": 1}


async def test_a_move_that_fails_is_tried_again_until_it_succeeds(kernel: SimulatedKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        factory.track(sock)
        kernel.refuse = {"en1"}
        kernel.change(ON_WIRED)
        await until(lambda: factory.statistics().rebinds_failed >= 3)
        assert kernel.bound(sock) == 2
        kernel.refuse = set()
        await until(lambda: kernel.bound(sock) == 3)


def test_a_retry_that_has_been_overtaken_does_nothing() -> None:
    scene = Scene(ON_WIFI, VirtualLoop())
    kernel, far = scene.kernel, ip_address("203.0.113.9")
    with datagrams() as sock:
        kernel.bind(sock, WIFI)
        watch_datagrams(scene.watcher, sock, far, path_of(scene.watcher.refresh().decide(far)))
        kernel.refuse = {"en1"}
        scene.change(ON_WIRED)
        scene.wait(10.0)
        assert scene.watcher.statistics.rebinds_failed >= 2, "it was tried again"
        scene.change(ON_WIFI)
        kernel.binds.clear()
        kernel.refuse = set()
        scene.wait(60.0)
        assert kernel.bound(sock) == 2
        assert kernel.binds == []


@pytest.mark.parametrize("how", ["closed", "forgotten", "detached"])
async def test_following_ends_with_the_socket(kernel: SimulatedKernel, how: str) -> None:
    factory = TransportFactory(kernel=kernel)
    sock = datagrams()
    factory.track(sock)
    assert factory.statistics().tracked == 1
    if how == "closed":
        sock.close()
        kernel.change(ON_WIRED)
    elif how == "detached":
        other = socket.socket(fileno=sock.detach())
        kernel.change(ON_WIRED)
    else:
        sock.close()
        del sock
        gc.collect()
    await until(lambda: factory.statistics().tracked == 0)
    if how == "detached":
        other.close()


async def test_a_socket_that_is_bound_already_is_left_alone(kernel: SimulatedKernel, factory: TransportFactory) -> None:
    with datagrams() as by_interface, datagrams() as by_address, datagrams() as to_this_host:
        kernel.bind(by_interface, WIRED)
        by_address.bind(("127.0.0.1", 0))
        to_this_host.connect(("127.0.0.1", 9))
        kernel.binds.clear()
        for sock in (by_interface, by_address, to_this_host):
            factory.track(sock)
        assert kernel.binds == []
        assert factory.statistics().tracked == 0


async def test_a_socket_for_both_families_follows_ipv6_or_else_ipv4(kernel: SimulatedKernel, factory: TransportFactory) -> None:
    def both() -> socket.socket:
        sock = datagrams(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return sock

    with both() as sock, both() as late:
        factory.track(sock)
        assert kernel.bound(sock) == 2
        kernel.change(MIXED)
        await until(lambda: kernel.bound(sock) == 3)
        with pytest.raises(ValueError, match="give family="):
            factory.track(late)
        kernel.change(network(LOOPBACK, WIFI, "default via 192.0.2.1 dev en0"))
        await until(lambda: kernel.bound(sock) == 2)


async def test_without_an_interface_the_socket_is_closed_unless_that_is_preferred_otherwise(kernel: SimulatedKernel) -> None:
    kernel.change(NOWHERE)
    async with TransportFactory(kernel=kernel) as factory:
        sock = datagrams()
        with pytest.raises(NoEffectiveInterface, match="the datagram socket"):
            factory.track(sock)
        assert sock.fileno() == -1
    async with TransportFactory(Preferences(on_no_interface="unbound"), kernel=kernel) as factory:
        with datagrams() as sock:
            factory.track(sock)
            assert kernel.bound(sock) is None


async def test_another_address_of_the_same_interface_is_no_reason_to_move(
    kernel: SimulatedKernel, factory: TransportFactory
) -> None:
    with datagrams() as sock:
        factory.track(sock)
        kernel.binds.clear()
        readings = kernel.readings
        more = interface("2: en0 wifi 192.0.2.5/24 192.0.2.6/24")
        kernel.change(network(LOOPBACK, more, "default via 192.0.2.1 dev en0"))
        await until(lambda: kernel.readings > readings)
        assert kernel.binds == []


async def test_a_pin_of_its_own_counts(kernel: SimulatedKernel, factory: TransportFactory) -> None:
    with datagrams() as sock:
        guard = follow_datagrams(connector_of(factory).watcher, sock, interface="en1")
        assert guard is not None
        assert guard.interface == "en1"
        assert kernel.bound(sock) == 3
        guard.close()
