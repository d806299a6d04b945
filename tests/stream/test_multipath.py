"""The interfaces for the subflows of a multipath connection, and the commands that move them: on a scripted network."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from bindsock.dial.followed_socket import FollowedSocket
from bindsock.model.decision import Path
from bindsock.model.network import IPAddress, Network
from bindsock.model.subflows import Endpoints, Multipath, Subflow, Traffic
from bindsock.netmon.turns import CallbackBudget
from bindsock.options import BetterPath
from bindsock.routing.multipath import multipath_obstacle
from bindsock.stream import viability
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.multipath import continuity, departures, last_subflow
from bindsock.stream.multipath import manager as multipath
from bindsock.stream.multipath.plan import situation
from bindsock.stream.plan import Requirement
from bindsock.stream.viability import Location
from bindsock.testing import SimulatedPathManager, interface, network
from tests.scene import Scene
from tests.virtual_loop import VirtualLoop

PEER = ip_address("198.51.100.7")
HERE = ip_address("127.0.0.1")
THERE = ip_address("203.0.113.5")
ELSEWHERE = ip_address("203.0.114.5")

WIFI = interface("2: wifi0 wifi 127.0.0.1/8")
ETHERNET = interface("3: eth0 wired 203.0.113.5/24")
USB = interface("4: usb0 wired 203.0.114.5/24")
TUNNEL = interface("9: tun0 tunnel 10.66.0.2/24")
INSIDE = ip_address("10.66.0.2")

BY_WIFI = "default via 127.0.0.254 dev wifi0 metric 600"
BY_ETHERNET = "default via 203.0.113.1 dev eth0 metric 700"
BY_ETHERNET_FIRST = "default via 203.0.113.1 dev eth0 metric 100"
BY_USB = "default via 203.0.114.1 dev usb0 metric 800"

ON_WIFI = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET)
WIFI_LOST = network("2: wifi0 wifi down", ETHERNET, BY_ETHERNET)
ETHERNET_LOST = network(WIFI, "3: eth0 wifi down", BY_WIFI)
WIFI_UNPLUGGED = network("2: wifi0 wifi 127.0.0.1/8 no-carrier", ETHERNET, BY_WIFI, BY_ETHERNET)
ETHERNET_BETTER = network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST)
NOWHERE = network("2: wifi0 wifi down")
ON_WIFI_PATH = Path(socket.AF_INET, "wifi0", 2, frozenset([HERE]), None)
WIFI_REPLACED = network(ETHERNET, USB, BY_ETHERNET, BY_USB)
ONLY_USB = network("2: wifi0 wifi down", USB, BY_USB)


BUSY = Traffic(pending=True, silence=0.0, unanswered=0.0, round_trip=0.01)


class MultipathScene(Scene):
    """A scene with a socket that is treated as a multipath connection, and its follower."""

    def __init__(self) -> None:
        super().__init__(ON_WIFI, VirtualLoop())
        self.paths = self.kernel.multipath = SimulatedPathManager()
        self.sock = FollowedSocket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sock.connect(self.listener.getsockname())
        self.sock.setblocking(False)
        self.paths.connections[self.sock] = [Subflow(HERE, 40000, PEER, 443)]
        self.guard: StreamGuard

    def follow(self, better_path: BetterPath = "auto", *, pin: str | None = None, dead_after: float | None = None) -> StreamGuard:
        self.guard = follow_stream(self.watcher, self.sock, Requirement(PEER, pin, better_path, dead_after), ON_WIFI_PATH)
        return self.guard

    def systems(self, *addresses: str) -> None:
        """Simulate subflows from these addresses that the system has made by itself."""
        for address in map(ip_address, addresses):
            self.paths.systems.add(address)
            self.paths.establish(self.sock, address)

    @property
    def addresses(self) -> list[str]:
        return [str(subflow.local) for subflow in self.paths.connections[self.sock]]

    def change(self, network: Network) -> None:
        """Change the network, and give new subflows the time to join."""
        super().change(network)
        self.wait(0.02)

    def close(self) -> None:
        self.sock.close()
        self.listener.close()
        self.watcher.stop()


@pytest.fixture
def scene() -> Iterator[MultipathScene]:
    made = MultipathScene()
    yield made
    made.close()


@pytest.mark.parametrize(("change", "reason"), [(ON_WIFI, "left"), (ETHERNET_LOST, "lost")])
def test_an_order_that_is_not_wanted_any_more_is_undone_as_its_interface_is(
    scene: MultipathScene, change: Network, reason: str
) -> None:
    """Of an interface that works, subflows of other programs may be there, too."""
    scene.paths.joins = False
    scene.follow(better_path="abort")
    scene.change(ETHERNET_BETTER)
    scene.change(change)
    assert (scene.addresses, scene.paths.orders[-1]) == ([str(HERE)], ("remove", str(THERE)))
    assert scene.paths.reasons == [reason]


def test_a_lost_interface_is_left_once_the_new_subflow_has_joined(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(WIFI_LOST)
    assert scene.paths.orders == [("add", "eth0"), ("arrived", str(THERE)), ("remove", str(HERE))]
    assert scene.addresses == [str(THERE)]
    assert scene.guard.interface == "eth0"
    assert scene.guard.error is None
    assert scene.watcher.statistics.rebinds == 1


def test_a_lost_subflow_is_kept_until_the_peer_can_be_told(scene: MultipathScene) -> None:
    """The other interface may be lost, too, although no reading has shown it yet."""
    scene.paths.tells_peer = False
    scene.follow()
    scene.change(WIFI_LOST)
    assert (scene.addresses, scene.guard.interface) == ([str(HERE), str(THERE)], "eth0")
    scene.paths.tells_peer = True
    scene.wait(multipath.FIRST_RETRY + 0.1)
    assert scene.addresses == [str(THERE)]
    assert scene.guard.error is None


def test_after_a_forced_move_the_peer_is_prompted_twice(scene: MultipathScene) -> None:
    """What it has written while there was no subflow stays in its kernel until it gets a packet. One may be lost."""
    scene.follow()
    scene.change(WIFI_LOST)
    assert ("prompt", str(THERE)) not in scene.paths.orders
    scene.wait(continuity.DELAY)
    assert scene.paths.orders[-1] == ("prompt", str(THERE))
    count = len(scene.paths.orders)
    scene.wait(continuity.REPEATED_AFTER)
    assert scene.paths.orders[count:] == [("prompt", str(THERE))]
    scene.change(WIFI_REPLACED)
    scene.wait(10.0)
    assert len(scene.paths.orders) == count + 1


def test_a_peer_that_had_a_subflow_all_the_time_is_not_prompted(scene: MultipathScene) -> None:
    scene.follow()
    for change in (ETHERNET_BETTER, ON_WIFI, NOWHERE, ON_WIFI):
        scene.change(change)
        scene.wait(1.0)
    assert "prompt" not in [order for order, _ in scene.paths.orders]


def test_a_peer_is_prompted_by_another_subflow_of_the_same_address(scene: MultipathScene) -> None:
    """The old one was ended by a reset of the peer's."""
    scene.follow()
    old = scene.paths.connections[scene.sock][0]
    scene.paths.connections[scene.sock] = [replace(old, local_port=old.local_port + 1)]
    scene.change(ETHERNET_LOST)
    scene.wait(continuity.DELAY)
    scene.wait(10.0)
    assert scene.paths.orders == [("prompt", str(HERE))] * 2


def test_a_peer_is_prompted_when_it_has_confirmed_the_subflow(scene: MultipathScene) -> None:
    scene.paths.confirms = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.wait(2.0)
    assert scene.paths.orders[-1] == ("remove", str(HERE))
    scene.paths.confirms = True
    scene.wait(0.1)
    assert scene.paths.orders[-1] == ("prompt", str(THERE))


def test_a_peer_that_does_not_confirm_the_subflow_is_prompted_after_a_later_reading(scene: MultipathScene) -> None:
    scene.paths.confirms = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.wait(continuity.CONFIRMED_WITHIN + 1.0)
    scene.paths.confirms = True
    scene.wait(10.0)
    assert scene.paths.orders[-1] == ("remove", str(HERE))
    scene.change(WIFI_REPLACED)
    scene.wait(1.0)
    assert scene.paths.orders[-1] == ("prompt", str(THERE))


@pytest.mark.parametrize("prompts", [0, 1])
def test_a_closed_connection_prompts_nobody(scene: MultipathScene, prompts: int) -> None:
    scene.follow()
    scene.change(WIFI_LOST)
    scene.wait(prompts * continuity.DELAY)
    scene.sock.close()
    scene.wait(10.0)
    assert [order for order, _ in scene.paths.orders].count("prompt") == prompts


def test_carrier_that_is_lost_is_not_waited_for(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(WIFI_UNPLUGGED)
    assert scene.addresses == [str(THERE)]


def test_a_better_path_is_followed(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(ETHERNET_BETTER)
    assert scene.addresses == [str(THERE)]
    assert scene.guard.interface == "eth0"


def test_a_subflow_that_is_left_is_ended_once_nothing_is_under_way_by_it(scene: MultipathScene) -> None:
    """Otherwise the system would answer what arrives for it, by the tunnel, and the peer might not accept its end."""
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    told = [("add", "eth0"), ("arrived", str(THERE)), ("backup", str(HERE))]
    scene.wait(departures.AGAIN - 0.1)
    assert (scene.guard.interface, scene.addresses, scene.paths.orders) == ("eth0", [str(HERE), str(THERE)], told)
    scene.paths.traffics.clear()
    scene.wait(2 * departures._LATEST)
    assert (scene.addresses, scene.paths.reasons) == ([str(THERE)], ["left"])
    assert scene.paths.orders[3:] == [("remove", str(HERE)), ("sweep", "")]


@pytest.mark.parametrize(("silence", "times"), [(0.0, 3), (10.0, 1)])
def test_a_peer_that_still_sends_by_a_backup_is_told_again(scene: MultipathScene, silence: float, times: int) -> None:
    """It may not have heard of it."""
    scene.paths.traffics[HERE] = replace(BUSY, silence=silence)
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.wait(2 * departures.AGAIN + 4 * departures._LATEST)
    assert scene.paths.orders.count(("backup", str(HERE))) == times


def test_a_subflow_is_ended_when_the_peer_has_sent_nothing_by_it_for_a_while(scene: MultipathScene) -> None:
    """What was lost at the end is repeated later."""
    scene.paths.traffics[HERE] = replace(BUSY, pending=False, silence=departures.QUIET, round_trip=0.1)
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.wait(1.0)
    assert str(HERE) in scene.addresses
    scene.paths.traffics[HERE] = replace(BUSY, pending=False, silence=departures.QUIET + 0.21, round_trip=0.1)
    scene.wait(2 * departures._LATEST)
    assert scene.addresses == [str(THERE)]


def test_a_subflow_by_which_something_is_always_under_way_is_ended_in_the_end(scene: MultipathScene) -> None:
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.wait(departures.LEFT_WITHIN - 0.1)
    assert scene.paths.reasons == []
    scene.wait(0.2)
    assert (scene.addresses, scene.paths.reasons) == ([str(THERE)], ["left"])


def test_a_subflow_by_which_the_peer_acknowledges_nothing_is_ended_soon(scene: MultipathScene) -> None:
    """Its interface seems to work, but the data that wait there must go by the other one."""
    scene.paths.traffics[HERE] = replace(BUSY, silence=10.0, unanswered=10.0)
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.wait(departures.ANSWERED_WITHIN - 0.1)
    assert str(HERE) in scene.addresses, "what has just been sent may still be acknowledged"
    scene.wait(0.2)
    assert (scene.addresses, scene.paths.reasons) == ([str(THERE)], ["left"])


def test_back_where_a_subflow_is_just_being_left_it_is_used_again(scene: MultipathScene) -> None:
    scene.paths.traffics.update({HERE: BUSY, THERE: BUSY})
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.change(ON_WIFI)
    assert (scene.guard.interface, scene.addresses) == ("wifi0", [str(HERE), str(THERE)])
    changed = [order for order in scene.paths.orders if "backup" in order[0]]
    assert changed == [("backup", str(HERE)), ("no backup", str(HERE)), ("backup", str(THERE))]
    scene.paths.traffics.clear()
    scene.wait(2 * departures._LATEST)
    assert (scene.addresses, scene.paths.reasons) == ([str(HERE)], ["left"])


@pytest.mark.parametrize("answer", [False, OSError(errno.EINVAL, "an old kernel")])
def test_a_subflow_that_cannot_become_a_backup_is_ended_at_once(
    scene: MultipathScene, monkeypatch: pytest.MonkeyPatch, answer: bool | OSError
) -> None:
    """Both sides would go on sending by it."""

    def set_backup(sock: socket.socket, address: IPAddress, done: Callable[[bool | OSError], object], *, backup: bool) -> None:
        done(answer)

    monkeypatch.setattr(scene.paths, "set_backup", set_backup)
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    assert (scene.addresses, scene.paths.reasons) == ([str(THERE)], ["left"])


def test_a_subflow_that_is_lost_while_it_is_being_left_is_ended_at_once(scene: MultipathScene) -> None:
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.change(WIFI_LOST)
    assert (scene.addresses, scene.paths.reasons) == ([str(THERE)], ["lost"])
    scene.wait(departures.LEFT_WITHIN + 1)
    assert scene.paths.reasons == ["lost"]


def test_it_goes_on_by_the_subflow_that_is_being_left_if_the_other_is_lost(scene: MultipathScene) -> None:
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.change(ETHERNET_LOST)
    assert (scene.guard.interface, scene.addresses, scene.paths.reasons) == ("wifi0", [str(HERE)], ["lost"])
    assert ("no backup", str(HERE)) in scene.paths.orders


def test_a_closed_connection_leaves_nothing(scene: MultipathScene) -> None:
    scene.paths.traffics[HERE] = BUSY
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.sock.close()
    before = list(scene.paths.orders)
    scene.wait(departures.LEFT_WITHIN + 1)
    assert [order for order in scene.paths.orders[len(before) :] if order[0] != "sweep"] == []


def test_keep_stays_on_what_works(scene: MultipathScene) -> None:
    scene.follow("keep")
    scene.change(ETHERNET_BETTER)
    assert scene.paths.orders == []
    scene.change(WIFI_LOST)
    assert scene.guard.interface == "eth0"


def test_what_is_in_the_middle_of_moving_is_not_ended(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.change(WIFI_LOST)
    assert scene.paths.orders == [("add", "eth0")]
    assert scene.guard.error is None
    scene.paths.establish(scene.sock, THERE)
    scene.wait(0.1)
    assert scene.guard.interface == "eth0"


def test_a_move_whose_turn_never_came_begins_when_there_is_a_way_again(
    scene: MultipathScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_later(budget: CallbackBudget, work: Callable[[], object]) -> None:
        """Do no work in the turn that requests it."""
        scene.clock.runtime.call_later(1.0, work)

    monkeypatch.setattr(CallbackBudget, "do", do_later)
    scene.follow()
    for reading in (WIFI_LOST, NOWHERE, WIFI_LOST):
        scene.kernel.change(reading)
        assert scene.guard.is_viable()
    scene.wait(2.2)  # for the order, and for the check
    assert scene.guard.interface == "eth0"
    assert scene.paths.orders.count(("add", "eth0")) == 1


@contextlib.contextmanager
def held_turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """Keep what asks for a turn, instead of doing it."""
    waiting: list[Callable[[], object]] = []
    with monkeypatch.context() as patch:
        patch.setattr(CallbackBudget, "do", lambda budget, work: waiting.append(work))
        yield waiting


def test_a_check_for_the_new_subflow_waits_for_its_turn(scene: MultipathScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections that move together check at the same time."""
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    with held_turns(monkeypatch) as waiting:
        scene.paths.establish(scene.sock, THERE)
        scene.wait(0.5)
    assert scene.guard.interface == "wifi0"
    (check,) = waiting
    check()
    assert scene.guard.interface == "eth0"


def test_a_check_is_not_made_if_all_interfaces_are_lost_while_it_waits(
    scene: MultipathScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    with held_turns(monkeypatch) as waiting:
        scene.wait(0.1)
    scene.change(NOWHERE)
    orders = list(scene.paths.orders)
    (check,) = waiting
    check()
    scene.wait(0.5)
    assert scene.paths.orders == orders


def test_a_move_that_is_not_wanted_any_more_is_taken_back(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.change(ON_WIFI)
    assert scene.paths.orders == [("add", "eth0"), ("remove", str(THERE))]
    assert scene.guard.interface == "wifi0"


def test_a_change_in_the_middle_of_a_move_begins_another(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.paths.joins = True
    scene.change(ONLY_USB)
    assert [order for order in scene.paths.orders if order[0] == "add"] == [("add", "eth0"), ("add", "usb0")]
    assert ("remove", str(THERE)) in scene.paths.orders, "the peer is told once there is a way to it"
    assert scene.guard.interface == "usb0"


def test_what_was_ordered_is_not_taken_back_while_nobody_can_be_told(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.change(NOWHERE)
    assert scene.paths.orders == [("add", "eth0")]
    scene.change(ON_WIFI)
    assert scene.paths.orders == [("add", "eth0"), ("remove", str(THERE))]
    assert scene.guard.interface == "wifi0"


def test_it_is_ended_if_the_new_subflow_does_not_join(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.wait(multipath.JOINING + 0.1)
    assert scene.guard.error is None, "the next reading may tell why"
    scene.wait(viability.STALL_GRACE)
    assert scene.guard.error is not None
    assert scene.guard.error.new_interface == "eth0"


@pytest.mark.parametrize("change", [ETHERNET_LOST, ETHERNET_BETTER], ids=["here", "elsewhere"])
def test_it_is_ended_if_the_peer_has_ended_the_last_subflow_and_refuses_another(scene: MultipathScene, change: Network) -> None:
    scene.follow()
    scene.paths.connections[scene.sock] = []
    scene.paths.joins = False
    scene.change(change)
    scene.wait(multipath.JOINING + viability.STALL_GRACE + 0.2)
    assert scene.guard.error is not None
    assert "the peer has ended its last subflow" in str(scene.guard.error)


def test_it_is_ended_if_only_a_lost_subflow_is_left_where_it_was_before(scene: MultipathScene) -> None:
    """Its place works, but the peer has ended the subflow there."""
    scene.paths.tells_peer = False
    scene.follow()
    scene.change(WIFI_LOST)
    assert (scene.addresses, scene.guard.interface) == ([str(HERE), str(THERE)], "eth0")
    scene.paths.connections[scene.sock] = scene.paths.connections[scene.sock][:1]
    scene.paths.joins = False
    scene.change(network("2: wifi0 wifi down", ETHERNET, BY_ETHERNET_FIRST))
    scene.wait(multipath.JOINING + viability.STALL_GRACE + 0.2)
    assert scene.guard.error is not None


def test_a_move_that_goes_on_after_a_while_is_ordered_again(scene: MultipathScene) -> None:
    """The kernel may have given up the first order meanwhile."""
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.wait(4.0)
    scene.change(NOWHERE)
    scene.paths.joins = True
    scene.change(WIFI_LOST)
    scene.wait(0.2)
    assert (scene.guard.interface, scene.guard.error) == ("eth0", None)


def test_a_better_path_that_refuses_is_tried_again(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(ETHERNET_BETTER)
    scene.wait(multipath.JOINING)
    assert scene.guard.interface == "wifi0"
    scene.paths.joins = True
    scene.wait(multipath.FIRST_RETRY + 0.1)
    assert scene.guard.interface == "eth0"


def test_it_is_kept_while_there_is_nothing_and_moves_when_there_is(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(NOWHERE)
    assert (scene.guard.error, scene.paths.orders) == (None, [])
    scene.change(WIFI_LOST)
    assert scene.guard.interface == "eth0"


def test_back_on_an_interface_whose_subflow_was_ended_another_is_made(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(WIFI_LOST)
    scene.change(ETHERNET_LOST)
    assert [order for order in scene.paths.orders if order[0] == "add"] == [("add", "eth0"), ("add", "wifi0")]
    assert scene.addresses == [str(HERE)]


def test_without_privilege_it_is_ended_as_plain_tcp_is(scene: MultipathScene) -> None:
    scene.paths.privileged = False
    scene.follow()
    scene.change(WIFI_LOST)
    assert scene.guard.error is not None
    assert "wifi0 is down" in str(scene.guard.error)


def test_without_privilege_the_systems_subflows_serve(scene: MultipathScene) -> None:
    scene.paths.privileged = False
    scene.systems(str(THERE))
    scene.follow()
    scene.change(WIFI_LOST)
    assert scene.guard.error is None
    assert scene.guard.interface == "eth0"


def test_without_privilege_and_carrier_there_is_the_usual_patience(scene: MultipathScene) -> None:
    scene.paths.privileged = False
    scene.follow()
    scene.change(WIFI_UNPLUGGED)
    assert scene.guard.error is None
    scene.wait(viability.STALL_GRACE)
    assert scene.guard.error is not None


def test_the_systems_subflows_that_work_are_left_to_it(scene: MultipathScene) -> None:
    scene.systems(str(HERE), str(THERE))
    scene.follow()
    scene.change(ETHERNET_BETTER)
    assert scene.guard.interface == "eth0"
    assert ("remove", str(HERE)) not in scene.paths.orders
    assert str(HERE) in scene.addresses


def test_a_subflow_that_the_system_adds_in_a_tunnel_is_ended(scene: MultipathScene) -> None:
    scene.follow()
    scene.systems(str(INSIDE))
    scene.change(network(WIFI, TUNNEL, BY_WIFI))
    assert scene.addresses == [str(HERE)]
    assert scene.guard.error is None


def test_a_subflow_in_a_tunnel_that_cannot_be_ended_ends_the_connection(scene: MultipathScene) -> None:
    scene.paths.privileged = False
    scene.follow()
    scene.systems(str(INSIDE))
    scene.change(network(WIFI, TUNNEL, BY_WIFI))
    assert scene.guard.error is not None
    assert "tun0" in str(scene.guard.error)


def test_a_pinned_connection_is_nowhere_else(scene: MultipathScene) -> None:
    scene.follow(pin="wifi0")
    scene.systems(str(THERE))
    scene.change(network(WIFI, ETHERNET, BY_WIFI, BY_ETHERNET_FIRST))
    assert scene.addresses == [str(HERE)]
    scene.change(WIFI_LOST)
    assert scene.guard.error is None, "there is nothing else for it"
    assert ("add", "eth0") not in scene.paths.orders


def test_one_that_falls_back_to_tcp_is_followed_as_tcp(scene: MultipathScene) -> None:
    scene.follow()
    del scene.paths.connections[scene.sock]
    scene.change(WIFI_LOST)
    assert scene.guard.error is not None


def test_a_closed_socket_is_released_and_ordered_nothing(scene: MultipathScene) -> None:
    scene.paths.joins = False
    scene.follow()
    scene.change(WIFI_LOST)
    scene.sock.close()
    scene.wait(0.02)
    assert scene.paths.orders == [("add", "eth0"), ("release", "")]


def test_what_is_left_of_many_connections_is_swept_up_together(scene: MultipathScene) -> None:
    scene.paths.needed = True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(10):
            sock = FollowedSocket(socket.AF_INET, socket.SOCK_STREAM)
            sock.connect(listener.getsockname())
            scene.paths.connections[sock] = [Subflow(HERE, 40000, PEER, 443)]
            follow_stream(scene.watcher, sock, Requirement(PEER), ON_WIFI_PATH)
            sock.close()
    scene.wait(0.05)
    assert scene.paths.orders.count(("release", "")) == 10
    assert scene.paths.orders.count(("sweep", "")) == 1
    scene.paths.needed = False
    scene.wait(0.1)
    assert scene.paths.orders.count(("sweep", "")) == 2
    scene.wait(60.0)
    assert scene.paths.orders.count(("sweep", "")) == 2


def test_the_end_of_the_following_leaves_it_as_it_is(scene: MultipathScene) -> None:
    scene.follow()
    scene.change(WIFI_LOST)
    scene.guard.close()
    assert scene.addresses == [str(THERE)]
    assert ("release", "") not in scene.paths.orders


def test_a_peer_that_keeps_it_waiting_is_dead(scene: MultipathScene) -> None:
    scene.follow(dead_after=8.0)
    scene.wait(12.0)
    scene.paths.silences[scene.sock] = 3600.0  # the last answer is old, but the unanswered data is new
    scene.wait(6.0)
    assert scene.guard.error is None
    scene.wait(3.0)
    assert scene.guard.error is not None
    assert "8 seconds" in str(scene.guard.error)


def test_a_peer_that_answers_is_not_dead(scene: MultipathScene) -> None:
    scene.follow(dead_after=8.0)
    scene.paths.silences[scene.sock] = 1.0
    scene.wait(60.0)
    assert scene.guard.error is None


def end_last_subflow(scene: MultipathScene) -> Subflow:
    """Let the peer end the last subflow, and new ones not join.

    :return: one that could join from the same address
    """
    old = scene.paths.connections[scene.sock].pop()
    scene.paths.joins = False
    return replace(old, local_port=old.local_port + 1)


@pytest.mark.parametrize("dead_after", [None, 16.0])
def test_the_end_of_the_last_subflow_is_noticed_without_a_reading(scene: MultipathScene, dead_after: float | None) -> None:
    scene.follow(dead_after=dead_after)
    scene.wait(5.0)
    assert scene.paths.orders == []
    new = end_last_subflow(scene)
    scene.wait(last_subflow.PERIOD)
    assert set(scene.paths.orders) == {("add", "wifi0")}
    scene.paths.orders.clear()
    scene.paths.connections[scene.sock].append(new)
    scene.wait(60.0)
    assert (scene.paths.orders, scene.guard.error) == ([("prompt", str(HERE))] * 2, None)


def test_the_end_of_the_new_subflow_is_noticed_even_if_no_check_has_seen_it(scene: MultipathScene) -> None:
    scene.follow()
    new = end_last_subflow(scene)
    scene.wait(last_subflow.PERIOD)
    scene.paths.connections[scene.sock].append(new)
    scene.wait(0.1)
    assert end_last_subflow(scene) == replace(new, local_port=new.local_port + 1)
    scene.paths.orders.clear()
    scene.wait(last_subflow.PERIOD)
    assert ("add", "wifi0") in scene.paths.orders


@pytest.mark.parametrize("dead_after", [None, 4.0])
def test_while_all_interfaces_are_lost_the_end_of_the_last_subflow_orders_nothing(
    scene: MultipathScene, dead_after: float | None
) -> None:
    scene.follow(dead_after=dead_after)
    scene.change(NOWHERE)
    end_last_subflow(scene)
    scene.wait(60.0)
    assert (scene.paths.orders, scene.guard.error) == ([], None)


def test_it_is_ended_soon_if_the_peer_refuses_another_subflow(scene: MultipathScene) -> None:
    scene.follow()
    end_last_subflow(scene)
    scene.wait(last_subflow.PERIOD + multipath.JOINING + viability.STALL_GRACE + 0.2)
    assert "the peer has ended its last subflow" in str(scene.guard.error)


def count_listings(scene: MultipathScene, monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets whose subflows are listed from now on."""
    listed: list[socket.socket] = []

    def subflows(sock: socket.socket) -> list[Subflow] | None:
        listed.append(sock)
        return scene.paths.connections.get(sock)

    monkeypatch.setattr(scene.paths, "subflows", subflows)
    return listed


def test_without_privilege_no_further_loss_is_looked_for(scene: MultipathScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.paths.privileged = False
    scene.follow()
    end_last_subflow(scene)
    listed = count_listings(scene, monkeypatch)
    scene.wait(last_subflow.PERIOD)
    assert listed
    listed.clear()
    scene.wait(30.0)
    assert (listed, scene.guard.error) == ([], None)


def test_one_that_has_fallen_back_to_tcp_is_not_checked_any_more(scene: MultipathScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.follow(dead_after=16.0)
    del scene.paths.connections[scene.sock]
    listed = count_listings(scene, monkeypatch)
    scene.wait(last_subflow.PERIOD)
    assert scene.kernel.binds[-1] == ("set_user_timeout", "16.0")
    listed.clear()
    scene.wait(30.0)
    assert (listed, scene.guard.error) == ([], None)


@pytest.mark.parametrize("ended", ["closed", "no longer followed"])
def test_a_connection_that_has_ended_is_not_checked_any_more(
    scene: MultipathScene, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    scene.follow()
    listed = count_listings(scene, monkeypatch)
    scene.wait(last_subflow.PERIOD)
    assert listed == [scene.sock]
    if ended == "closed":
        scene.sock.close()
    else:
        scene.guard.close()
    scene.wait(30.0)
    assert (listed, scene.clock.timers) == ([scene.sock], [])


def unbound(_: Subflow) -> int:
    return 0


def test_where_the_subflows_are() -> None:
    subflows = [Subflow(local, 1, PEER, 2) for local in (HERE, THERE, INSIDE, ELSEWHERE)]
    seen = network(replace(WIFI, running=False), ETHERNET, TUNNEL)
    found = situation(seen, subflows, ETHERNET, None, unbound)
    assert found.working == (Location("eth0", 3, THERE, 3),)
    assert found.lost == (HERE, ELSEWHERE)
    assert found.forbidden == ((INSIDE, "tun0"),)
    assert found.carriers == {subflows[1]}
    assert situation(network(WIFI, ETHERNET), subflows[:2], WIFI, "wifi0", unbound).forbidden == ((THERE, "eth0"),)
    assert situation(network(TUNNEL), subflows[2:3], TUNNEL, "tun0", unbound).working == (Location("tun0", 9, INSIDE, 9),)


def test_without_a_chosen_interface_a_tunnel_is_none_and_a_pin_is_a_pin() -> None:
    subflows = [Subflow(local, 1, PEER, 2) for local in (THERE, INSIDE)]
    seen = network(ETHERNET, TUNNEL)
    assert situation(seen, subflows, None, None, unbound).forbidden == ((INSIDE, "tun0"),)
    assert situation(seen, subflows, None, "wifi0", unbound).forbidden == ((THERE, "eth0"), (INSIDE, "tun0"))


def test_a_subflow_is_where_it_is_bound_and_lost_with_the_index_of_that_interface() -> None:
    subflows = [Subflow(HERE, 1, PEER, 2), Subflow(THERE, 3, PEER, 2)]
    seen = network(WIFI, ETHERNET)
    deleted, ended, elsewhere = ({subflows[0]: index, subflows[1]: 3}.get for index in (7, None, 3))
    assert situation(seen, subflows, ETHERNET, None, deleted).lost == (HERE,)
    assert situation(seen, subflows, ETHERNET, None, deleted).working == (Location("eth0", 3, THERE, 3),)
    assert situation(seen, subflows, ETHERNET, None, ended).lost == (HERE,)
    assert situation(seen, subflows[:1], ETHERNET, None, elsewhere).working == (Location("eth0", 3, HERE, 2),)
    again = [*subflows, Subflow(HERE, 4, PEER, 2)]
    assert situation(seen, again, ETHERNET, None, {again[0]: 7, again[1]: 3, again[2]: 2}.get).lost == ()


WIFI_MADE_AGAIN = network("8: wifi0 wifi 127.0.0.1/8", ETHERNET, "default via 127.0.0.254 dev wifi0 metric 600")


def test_an_interface_that_is_made_again_gets_a_new_subflow(scene: MultipathScene) -> None:
    scene.paths.joins = False
    old = scene.paths.connections[scene.sock][0]
    scene.paths.indexes[old] = 2
    scene.follow()
    scene.change(WIFI_MADE_AGAIN)
    assert scene.paths.orders == [("add", "wifi0")]
    assert scene.guard.error is None
    new = replace(old, local_port=40001)
    scene.paths.indexes[new] = 8
    scene.paths.connections[scene.sock] = [new]
    scene.wait(0.1)
    assert ("arrived", str(HERE)) in scene.paths.orders
    assert scene.guard.interface == "wifi0"


ALL = network(WIFI, ETHERNET, TUNNEL)
NO_TUNNEL = network(WIFI, ETHERNET)


@pytest.mark.parametrize(
    ("endpoints", "seen", "pinned", "culprit"),
    [
        (Endpoints(), ALL, False, None),
        (Endpoints((THERE,)), ALL, False, None),
        (Endpoints((HERE,)), ALL, True, None),
        (Endpoints((THERE,)), ALL, True, "eth0"),
        (Endpoints((THERE, INSIDE)), ALL, False, "tun0"),
        (Endpoints((ip_address("2001:db8::1"),)), ALL, True, None),
        (Endpoints((ELSEWHERE,)), ALL, True, None),
        (Endpoints((THERE,), unbound=(THERE,)), NO_TUNNEL, False, "without an interface"),
        (Endpoints(unbound=(ip_address("2001:db8::1"),)), ALL, False, None),
        (Endpoints(follows_peer=True), NO_TUNNEL, False, "announces"),
        (Endpoints(follows_peer=True), ALL, False, "announces"),
        (Endpoints(follows_peer=True), NO_TUNNEL, True, "announces"),
    ],
)
def test_what_speaks_against_multipath(endpoints: Endpoints, seen: Network, pinned: bool, culprit: str | None) -> None:
    found = multipath_obstacle(endpoints, seen, WIFI, 4, "wifi0" if pinned else None)
    assert found is None if culprit is None else culprit in (found or "")


def test_the_other_familys_endpoints_do_no_harm() -> None:
    six = network(WIFI, "9: tun0 tunnel 2001:db8::1/64")
    endpoints = Endpoints((ip_address("2001:db8::1"),))
    assert multipath_obstacle(endpoints, six, WIFI, 4, None) is None
    assert multipath_obstacle(endpoints, six, WIFI, 6, None) is not None


def test_multipath_is_true_if_it_is_real() -> None:
    assert Multipath(True)
    assert not Multipath(False)
