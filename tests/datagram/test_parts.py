"""The parts of the datagram transport without sockets: a socket's interface, waiting datagrams, and drops by a device."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from bindsock.datagram import backlog
from bindsock.datagram.backlog import Backlog, Outcome, Waiting
from bindsock.datagram.drop_counter import DeviceDrops, DropCounter
from bindsock.datagram.held_sockets import HeldSockets
from bindsock.datagram.plan import GONE, NOWHERE, UNBOUND, Facts, Place, Placement, Requirement, Step, device_alive, plan
from bindsock.model.decision import path_of
from bindsock.model.network import Interface, IPAddress, Network
from bindsock.model.statistics import Statistics
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import interface, network
from tests.virtual_loop import VirtualLoop

HERE, THERE, ELSEWHERE = (ip_address(a) for a in ("192.0.2.1", "198.51.100.7", "203.0.113.1"))
WIFI = interface("2: wifi0 wifi 192.0.2.1/24")
WIFI_MORE = interface("2: wifi0 wifi 192.0.2.1/24 192.0.2.2/24")
WIFI_OTHER = interface("2: wifi0 wifi 203.0.113.1/24")
WIFI_DOWN = interface("2: wifi0 wifi 192.0.2.1/24 down")
WIFI_UNPLUGGED = interface("2: wifi0 wifi 192.0.2.1/24 no-carrier")
WIFI_BARE = interface("2: wifi0 wifi")
ETHERNET = interface("3: eth0 wifi 198.51.100.1/24")
DEFAULTS = ("default via 192.0.2.254 dev 2", "default via 198.51.100.254 dev 3 metric 9")


def place_on(used: Interface) -> Placement:
    decider = Decider(network(used, f"default via 10.0.0.1 dev {used}"), interface=used.name)
    return Placement(path_of(decider.decide(socket.AF_INET)))


ON_WIFI, ON_ETHERNET = place_on(WIFI), place_on(ETHERNET)

BOTH = network(WIFI, ETHERNET)


def facts(
    network: Network,
    wanted: Placement,
    *,
    placement: Placement = ON_WIFI,
    source: IPAddress | None = HERE,
    broken: bool = False,
    may_overlap: bool = True,
    held: frozenset[Place] = frozenset(),
    hop_silent: bool = False,
    unrouted: bool = False,
) -> Facts:
    return Facts(network, placement, wanted, source, broken, may_overlap, held, hop_silent, unrouted)


STEPS = {
    "its source is 0.0.0.0": (facts(BOTH, ON_WIFI, source=ip_address("0.0.0.0")), Step.IN_PLACE),
    "nothing has changed": (facts(network(WIFI), ON_WIFI), Step.STAY),
    "the address is still there": (facts(network(WIFI_MORE), place_on(WIFI_MORE)), Step.STAY),
    "renumbered": (facts(network(WIFI_OTHER), place_on(WIFI_OTHER)), Step.IN_PLACE),
    "renumbered, without a source of its own": (facts(network(WIFI_OTHER), place_on(WIFI_OTHER), source=None), Step.STAY),
    "a better path": (facts(BOTH, ON_ETHERNET), Step.OVERLAP),
    "a better path, without a source of its own": (facts(BOTH, ON_ETHERNET, source=None), Step.OVERLAP),
    "a better path for a socket of the program's own": (facts(BOTH, ON_ETHERNET, may_overlap=False), Step.IN_PLACE),
    "a better path on which a socket was left": (facts(BOTH, ON_ETHERNET, held=frozenset({Place(3, None)})), Step.TAKE_BACK),
    "a better path on which a socket with another source was left": (
        facts(BOTH, ON_ETHERNET, held=frozenset({Place(3, HERE)})),
        Step.OVERLAP,
    ),
    "a better path beside one on which a socket was left": (
        facts(BOTH, ON_ETHERNET, held=frozenset({Place(4, None)})),
        Step.OVERLAP,
    ),
    "the old one is down": (facts(network(WIFI_DOWN, ETHERNET), ON_ETHERNET), Step.IN_PLACE),
    "the old one is down, a socket was left on the new": (
        facts(network(WIFI_DOWN, ETHERNET), ON_ETHERNET, held=frozenset({Place(3, None)})),
        Step.TAKE_BACK,
    ),
    "the old one has no carrier": (facts(network(WIFI_UNPLUGGED, ETHERNET), ON_ETHERNET), Step.IN_PLACE),
    "the old one is gone": (facts(network(ETHERNET), ON_ETHERNET), Step.IN_PLACE),
    "the old one lost the address": (facts(network(WIFI_OTHER, ETHERNET), ON_ETHERNET), Step.IN_PLACE),
    "the old one lost all addresses": (facts(network(WIFI_BARE, ETHERNET), ON_ETHERNET, source=None), Step.IN_PLACE),
    "nothing is left": (facts(network(WIFI_DOWN), NOWHERE), Step.HOLD),
    "nothing is left for a broken one": (facts(network(WIFI_DOWN), NOWHERE, broken=True), Step.HOLD),
    "to be unbound": (facts(network(WIFI), UNBOUND), Step.UNBIND),
    "to be bound": (facts(network(WIFI), ON_WIFI, placement=UNBOUND, source=None), Step.IN_PLACE),
    "broken, and the same path": (facts(network(WIFI), ON_WIFI, broken=True), Step.IN_PLACE),
    "broken, and a better path": (facts(BOTH, ON_ETHERNET, broken=True), Step.IN_PLACE),
    "broken, and to be unbound": (facts(BOTH, UNBOUND, broken=True), Step.UNBIND),
    "broken, and unbound as it should be": (facts(BOTH, UNBOUND, placement=UNBOUND, broken=True), Step.UNBIND),
    "its own local address is gone": (facts(network(ETHERNET), GONE), Step.END),
}
SILENT = {
    "a better path waits": (facts(BOTH, ON_ETHERNET, hop_silent=True), Step.AWAIT, ON_WIFI, False),
    "so does one in place": (facts(BOTH, ON_ETHERNET, may_overlap=False, hop_silent=True), Step.AWAIT, ON_WIFI, False),
    "and one that is taken back": (
        facts(BOTH, ON_ETHERNET, held=frozenset({Place(3, None)}), hop_silent=True),
        Step.AWAIT,
        ON_WIFI,
        False,
    ),
    "from a dead path it does not": (
        facts(network(WIFI_DOWN, ETHERNET), ON_ETHERNET, hop_silent=True),
        Step.IN_PLACE,
        ON_ETHERNET,
        True,
    ),
    "nor if it is broken": (facts(BOTH, ON_ETHERNET, broken=True, hop_silent=True), Step.IN_PLACE, ON_ETHERNET, True),
    "nor if its route is gone": (facts(BOTH, ON_ETHERNET, hop_silent=True, unrouted=True), Step.OVERLAP, ON_ETHERNET, True),
    "nor from none": (facts(BOTH, ON_ETHERNET, placement=UNBOUND, hop_silent=True), Step.IN_PLACE, ON_ETHERNET, True),
    "nor on the same interface": (
        facts(network(WIFI_OTHER), place_on(WIFI_OTHER), hop_silent=True),
        Step.IN_PLACE,
        place_on(WIFI_OTHER),
        True,
    ),
    "a path that is back": (facts(network(WIFI), ON_WIFI, hop_silent=True), Step.STAY, ON_WIFI, True),
    "nowhere to go": (facts(network(WIFI_DOWN), NOWHERE, hop_silent=True), Step.HOLD, NOWHERE, False),
}


@pytest.mark.parametrize("what", SILENT)
def test_a_move_by_choice_waits_for_a_silent_first_hop_and_after_another_one_what_is_sent_does(what: str) -> None:
    known, step, placement, hold = SILENT[what]
    orders = plan(known)
    assert (orders.step, orders.placement, orders.hold) == (step, placement, hold)


@pytest.mark.parametrize("what", STEPS)
def test_the_step_from_one_placement_to_another(what: str) -> None:
    known, expected = STEPS[what]
    orders = plan(known)
    assert (orders.step, orders.placement) == (expected, known.wanted)


@pytest.mark.parametrize("known", [known for known, *_ in (*STEPS.values(), *SILENT.values())])
def test_from_a_dead_device_a_socket_moves_whatever_its_address(known: Facts) -> None:
    path = known.placement.path
    if path is not None and not device_alive(known.network, path):
        assert plan(known._replace(source=None)) == plan(known._replace(source=HERE))


def from_(placement: Placement, source: IPAddress) -> Placement:
    assert placement.path is not None
    return placement._replace(path=dataclasses.replace(placement.path, source=source))


@pytest.mark.parametrize(
    ("known", "step", "placement"),
    [
        (facts(network(WIFI), from_(ON_WIFI, HERE)), Step.STAY, ON_WIFI),
        (facts(network(WIFI_MORE), from_(place_on(WIFI_MORE), ip_address("192.0.2.2"))), Step.OVERLAP, None),
        (facts(network(WIFI), from_(ON_WIFI, HERE), broken=True), Step.IN_PLACE, None),
        (facts(network(WIFI), ON_WIFI, placement=from_(ON_WIFI, HERE)), Step.OVERLAP, None),
    ],
    ids=["that it has", "that it has not", "of a broken socket", "no more"],
)
def test_a_socket_is_not_bound_anew_to_the_source_that_it_has(known: Facts, step: Step, placement: Placement | None) -> None:
    orders = plan(known)
    assert (orders.step, orders.placement) == (step, placement or known.wanted)


@pytest.mark.parametrize(
    ("reading", "gap", "drops"),
    [
        (BOTH, False, False),
        (network(WIFI_OTHER, ETHERNET), True, False),
        (network(WIFI_UNPLUGGED, ETHERNET), True, True),
        (network(ETHERNET), True, True),
    ],
    ids=["alive", "without its address", "without carrier", "deleted"],
)
def test_what_is_sent_waits_for_a_step_if_the_old_path_is_dead_and_a_dead_device_is_asked_what_it_dropped(
    reading: Network, gap: bool, drops: bool
) -> None:
    orders = plan(facts(reading, ON_ETHERNET))
    assert (orders.gap, orders.count_drops) == (gap, drops)


def decider(*parts: Interface, preferences: Preferences | None = None) -> Decider:
    return Decider(network(*parts, *DEFAULTS), preferences or Preferences())


def test_a_requirement_is_met_by_its_first_target_that_has_an_interface() -> None:
    requirement = Requirement((socket.AF_INET6, socket.AF_INET))
    assert requirement.placement(decider(WIFI)).path == decider(WIFI).path(socket.AF_INET)
    assert requirement.placement(decider(WIFI_DOWN)) == NOWHERE
    assert requirement.placement(decider(WIFI_DOWN, preferences=Preferences(on_no_interface="unbound"))) == UNBOUND
    assert Requirement((HERE,)).placement(decider(WIFI)) == UNBOUND


def test_a_requirement_of_an_address_goes_wherever_the_address_is() -> None:
    requirement = Requirement((THERE,), HERE)
    assert requirement.placement(decider(WIFI, ETHERNET)).path is not None
    assert requirement.placement(decider(WIFI_UNPLUGGED, ETHERNET)) == NOWHERE
    assert requirement.placement(decider(WIFI_OTHER, ETHERNET)) == GONE


class Wire:
    """A fake socket that accepts datagrams, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refused: set[object] = set()
        self.pathless: set[object] = set()
        self.turns = 100
        self.room = 100

    def attempt(self, waiting: Waiting) -> Outcome:
        if waiting.address in self.pathless:
            return Outcome.NO_PATH
        if waiting.address in self.refused:
            return Outcome.REFUSED
        if len(self.sent) == self.turns:
            return Outcome.LATER
        if len(self.sent) == self.room:
            return Outcome.FULL
        self.sent.append(waiting.data)
        return Outcome.SENT


def test_a_destination_that_is_refused_does_not_hold_up_the_others() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b"), (b"3", "a"), (b"4", "b")):
        waiting.add(Waiting(data, address, 0.0, held=True))
    wire.refused = {"a"}
    waiting.send(wire.attempt, 1.0)
    assert wire.sent == [b"2", b"4"]
    assert (waiting.waits_for("a"), waiting.waits_for("b")) == (True, False)
    wire.refused = set()
    waiting.send(wire.attempt, 2.0)
    assert wire.sent == [b"2", b"4", b"1", b"3"]
    assert (len(waiting), waiting.size) == (0, 0)


def test_a_full_socket_keeps_the_order() -> None:
    waiting, wire = Backlog(), Wire()
    for data in (b"1", b"22", b"333"):
        waiting.add(Waiting(data, None, 0.0, held=False))
    wire.room = 1
    waiting.send(wire.attempt, 1.0)
    assert (wire.sent, len(waiting), waiting.size) == ([b"1"], 2, 5)
    wire.room = 3
    waiting.send(wire.attempt, 1.0)
    assert wire.sent == [b"1", b"22", b"333"]


def test_a_destination_that_is_refused_and_a_full_socket_together_keep_the_order() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b"), (b"3", "b"), (b"4", "a")):
        waiting.add(Waiting(data, address, 0.0, held=True))
    wire.refused, wire.room = {"a"}, 1
    waiting.send(wire.attempt, 1.0)
    wire.refused, wire.room = set(), 9
    waiting.send(wire.attempt, 1.0)
    assert wire.sent == [b"2", b"1", b"3", b"4"]


def expired(waiting: Backlog, held_before: float, refused_before: float) -> tuple[list[bytes], list[bytes]]:
    old, refused = waiting.expire(held_before, refused_before)
    return [w.data for w in old], [w.data for w in refused]


def test_what_is_held_expires_and_what_only_lacks_room_does_not() -> None:
    waiting, wire = Backlog(), Wire()
    waiting.add(Waiting(b"old", None, 1.0, held=True))
    waiting.add(Waiting(b"buffered", None, 1.0, held=False))
    waiting.add(Waiting(b"young", None, 3.0, held=True))
    assert expired(waiting, 2.0, 2.0) == ([b"old"], [])
    wire.pathless = {None}
    waiting.send(wire.attempt, 4.0)
    assert waiting.holds
    assert expired(waiting, 3.0, 3.0) == ([b"young"], []), "what lacked room is held only since it was refused"
    assert waiting.clear() == 1


def test_what_is_refused_expires_sooner_unless_the_path_goes_meanwhile() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b")):
        waiting.add(Waiting(data, address, 1.0, held=True))
    wire.refused = {"a", "b"}
    waiting.send(wire.attempt, 1.0)
    wire.refused, wire.pathless = {"a"}, {"b"}
    waiting.send(wire.attempt, 2.0)
    assert expired(waiting, 0.0, 1.5) == ([], [b"1"])
    assert expired(waiting, 1.0, 1.5) == ([b"2"], [])


def test_once_nothing_can_be_sent_nothing_more_is_tried() -> None:
    waiting, wire = Backlog(), Wire()
    tried: list[bytes] = []

    def attempt(one: Waiting) -> Outcome:
        tried.append(one.data)
        return wire.attempt(one)

    for number in range(100):
        waiting.add(Waiting(b"%d" % number, number % 2, 1.0, held=number % 3 == 0))
    wire.pathless = {0, 1}
    waiting.send(attempt, 2.0)
    assert tried == [b"0", b"1"]
    assert waiting.holds
    assert len(expired(waiting, 1.0, 0.0)[0]) == 34
    assert len(expired(waiting, 2.0, 0.0)[0]) == 66, "what lacked room is held since then"
    assert not waiting.holds


def test_what_has_to_wait_for_its_turn_keeps_the_order() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b"), (b"3", "a")):
        waiting.add(Waiting(data, address, 1.0, held=True))
    wire.pathless, wire.turns = {"a"}, 0
    assert waiting.send(wire.attempt, 2.0) is Outcome.LATER
    wire.pathless, wire.turns = set(), 9
    assert waiting.send(wire.attempt, 2.0) is Outcome.SENT
    assert wire.sent == [b"1", b"2", b"3"]


def test_only_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_HELD_BYTES", 10)
    waiting = Backlog()
    assert sum(waiting.add(Waiting(b"12345", None, 0.0, held=False)) for _ in range(3)) == 0
    assert waiting.add(Waiting(b"12345", None, 0.0, held=True)) == 2
    assert waiting.add(Waiting(b"more than all of it", None, 0.0, held=True)) == 2
    assert (len(waiting), waiting.size) == (1, 19)


SOCK = socket.socket.__new__(socket.socket)


class Counting:
    """A fake of the kernel's drop counters, and of the clock and the loop."""

    def __init__(self) -> None:
        self.count: int | None = 0
        self.soon: list[Callable[[], object]] = []
        self.asked = 0
        self.now = 100.0
        self.queued = 0

    def unsent(self, sock: socket.socket) -> int:
        return self.queued

    def dropped(self, interface: Interface) -> int | None:
        self.asked += 1
        return self.count

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def devices(counting: Counting) -> DeviceDrops:
    return DeviceDrops(counting)  # type: ignore[arg-type]


def counter(counting: Counting, devices: DeviceDrops) -> DropCounter:
    return DropCounter(counting, devices, {})  # type: ignore[arg-type]


def send(drops: DropCounter, counting: Counting, times: int) -> None:
    for _ in range(times):
        if counting.now >= drops.due:
            drops.sample(counting.now, SOCK)
        drops.sent()


def test_only_drops_of_the_last_seconds_count(counting: Counting, devices: DeviceDrops) -> None:
    drops = counter(counting, devices)
    drops.start(WIFI)
    assert counting.count is not None
    for _ in range(10):
        counting.now += 1.0
        counting.count += 1
        send(drops, counting, 1)
    counting.count += 5
    send(drops, counting, 9)
    # Of the ten datagrams of the last two seconds, at most seven were dropped: two in that time, and five at the end.
    assert drops.lost_on_dead_device(SOCK) == 7


def test_a_drop_is_accounted_for_once(counting: Counting, devices: DeviceDrops) -> None:
    several = [counter(counting, devices) for _ in range(3)]
    for drops in several:
        drops.start(WIFI)
        send(drops, counting, 4)
    counting.now += 0.4
    counting.count = 6
    assert [drops.lost_on_dead_device(SOCK) for drops in several] == [4, 2, 0]
    assert [drops.lost_on_dead_device(SOCK) for drops in several] == [0, 0, 0]


def test_what_is_counted_later_is_asked_once_for_all_sockets(counting: Counting, devices: DeviceDrops) -> None:
    several, statistics = [counter(counting, devices) for _ in range(3)], Statistics()
    for drops in several:
        drops.start(WIFI)
        send(drops, counting, 4)
    counting.now += 0.4
    counting.count, counting.asked = 6, 0
    for drops in several:
        drops.count_lost_later(SOCK, statistics)
        drops.start(ETHERNET)
    assert (counting.asked, statistics.lost_on_device) == (0, 0)
    (count,) = counting.soon
    count()
    assert (counting.asked, statistics.lost_on_device) == (1, 6)
    assert [drops.lost_on_dead_device(SOCK) for drops in several] == [0, 0, 0]


def test_what_is_counted_later_is_counted_before_a_socket_returns_to_the_device(counting: Counting, devices: DeviceDrops) -> None:
    drops, statistics = counter(counting, devices), Statistics()
    drops.start(WIFI)
    send(drops, counting, 4)
    counting.count = 3
    drops.count_lost_later(SOCK, statistics)
    drops.start(WIFI)
    send(drops, counting, 4)
    assert statistics.lost_on_device == 3
    counting.count = 5
    for count in counting.soon:
        count()
    assert statistics.lost_on_device == 3
    assert drops.lost_on_dead_device(SOCK) == 2


def test_the_device_is_asked_twice_a_second_for_all_sockets_together(counting: Counting, devices: DeviceDrops) -> None:
    several = [counter(counting, devices) for _ in range(50)]
    for drops in several:
        drops.start(WIFI)
    assert counting.asked == 0
    for _ in range(100):
        counting.now += 0.01
        for drops in several:
            send(drops, counting, 1)
    assert counting.asked <= 3


def test_what_waited_for_the_gateway_is_lost_with_the_device_uncounted_by_it(counting: Counting, devices: DeviceDrops) -> None:
    drops = counter(counting, devices)
    drops.start(WIFI)
    send(drops, counting, 5)
    counting.queued = 3
    counting.now += 0.03
    send(drops, counting, 4)
    counting.queued = 0
    assert drops.lost_on_dead_device(SOCK) == 3 + 4


def test_what_left_in_time_is_not_lost(counting: Counting, devices: DeviceDrops) -> None:
    drops = counter(counting, devices)
    drops.start(WIFI)
    counting.queued = 3
    counting.now += 0.03
    send(drops, counting, 5)
    counting.queued = 0
    counting.now += 0.03
    send(drops, counting, 1)
    counting.queued = 1
    assert drops.lost_on_dead_device(SOCK) == 1


@pytest.mark.parametrize(
    ("queued", "lost"), [((3, 5), 3 + 4 + 2), ((3, 0), 3 + 4 + 2), ((0, 5), 5 + 2), ((0, 0), 0), ((90, 90), 5 + 4 + 2)]
)
def test_of_a_working_device_what_waits_or_has_waited_lately_is_lost(
    counting: Counting, devices: DeviceDrops, queued: tuple[int, int], lost: int
) -> None:
    """Two samples found so many: four datagrams were sent after the first one, and two after the second. Never more than all."""
    drops = counter(counting, devices)
    drops.start(WIFI)
    send(drops, counting, 5)
    counting.queued = queued[0]
    counting.now += 0.03
    send(drops, counting, 4)
    counting.queued = queued[1]
    counting.now += 0.03
    send(drops, counting, 2)
    assert drops.stuck(SOCK) == lost
    assert [drops.lost_while_stuck(SOCK) for _ in range(2)] == [lost, 0]


def test_of_a_device_that_is_gone_what_was_sent_in_the_last_moment_is_lost(counting: Counting, devices: DeviceDrops) -> None:
    drops = counter(counting, devices)
    drops.start(WIFI)
    for _ in range(5):
        counting.now += 0.03
        send(drops, counting, 10)
    counting.count = None
    assert drops.lost_on_dead_device(SOCK) == 20


def test_where_the_system_does_not_tell_nothing_is_counted(counting: Counting, devices: DeviceDrops) -> None:
    counting.count = None
    drops = counter(counting, devices)
    drops.start(WIFI)
    send(drops, counting, 3)
    assert drops.lost_on_dead_device(SOCK) == 0


@pytest.mark.parametrize(
    "end", [lambda held: held.end_at(2), lambda held: held.end_dead(Decider(network(ETHERNET), Preferences()))]
)
def test_an_endpoint_that_is_closed_while_old_sockets_are_read_out_is_no_fault(end: Callable[[HeldSockets], None]) -> None:
    """The program gets the remaining datagrams of each, and may close the endpoint."""
    discarded: list[socket.socket] = []

    def discard(sock: socket.socket, drain: bool) -> None:
        discarded.append(sock)
        sock.close()
        if drain:
            held.end_all()

    held = HeldSockets(VirtualLoop().runtime, 60.0, discard, lambda _: None)
    socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
    assert ON_WIFI.path is not None
    for sock in socks:
        held.keep(sock, ON_WIFI.path, None)
    end(held)
    assert discarded == socks
    assert held.sockets == []
