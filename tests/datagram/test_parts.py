"""The pure parts of the datagram transport: where a socket belongs, what waits, what a device took to its grave."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from bindsock.datagram import backlog
from bindsock.datagram.backlog import Backlog, Outcome, Waiting
from bindsock.datagram.drop_counter import DeviceDrops, DropCounter
from bindsock.datagram.plan import NOWHERE, UNBOUND, LocalAddressGone, Placement, Requirement, Step, step
from bindsock.model.decision import path_of
from bindsock.model.network import Interface
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import interface, network, route

HERE, THERE, ELSEWHERE = (ip_address(a) for a in ("192.0.2.1", "198.51.100.7", "203.0.113.1"))
WIFI = interface("wifi0", 2, "192.0.2.1/24")
WIFI_MORE = interface("wifi0", 2, "192.0.2.1/24", "192.0.2.2/24")
WIFI_OTHER = interface("wifi0", 2, "203.0.113.1/24")
WIFI_DOWN = interface("wifi0", 2, "192.0.2.1/24", up=False)
WIFI_UNPLUGGED = interface("wifi0", 2, "192.0.2.1/24", running=False)
WIFI_BARE = interface("wifi0", 2)
ETHERNET = interface("eth0", 3, "198.51.100.1/24")
DEFAULTS = (route("0.0.0.0/0", 2, "192.0.2.254"), route("0.0.0.0/0", 3, "198.51.100.254", metric=9))


def place_on(used: Interface) -> Placement:
    decider = Decider(network(used, route("0.0.0.0/0", used.index, "10.0.0.1")), interface=used.name)
    return Placement(path_of(decider.decide(socket.AF_INET)))


ON_WIFI, ON_ETHERNET = place_on(WIFI), place_on(ETHERNET)

STEPS = {
    "nothing has changed": (ON_WIFI, ON_WIFI, HERE, network(WIFI), Step.STAY),
    "the address is still there": (ON_WIFI, place_on(WIFI_MORE), HERE, network(WIFI_MORE), Step.STAY),
    "renumbered": (ON_WIFI, place_on(WIFI_OTHER), HERE, network(WIFI_OTHER), Step.IN_PLACE),
    "renumbered, without a source of its own": (ON_WIFI, place_on(WIFI_OTHER), None, network(WIFI_OTHER), Step.STAY),
    "a better path": (ON_WIFI, ON_ETHERNET, HERE, network(WIFI, ETHERNET), Step.OVERLAP),
    "a better path, without a source of its own": (ON_WIFI, ON_ETHERNET, None, network(WIFI, ETHERNET), Step.OVERLAP),
    "the old one is down": (ON_WIFI, ON_ETHERNET, HERE, network(WIFI_DOWN, ETHERNET), Step.IN_PLACE),
    "the old one has no carrier": (ON_WIFI, ON_ETHERNET, HERE, network(WIFI_UNPLUGGED, ETHERNET), Step.IN_PLACE),
    "the old one is gone": (ON_WIFI, ON_ETHERNET, HERE, network(ETHERNET), Step.IN_PLACE),
    "the old one lost the address": (ON_WIFI, ON_ETHERNET, HERE, network(WIFI_OTHER, ETHERNET), Step.IN_PLACE),
    "the old one lost all addresses": (ON_WIFI, ON_ETHERNET, None, network(WIFI_BARE, ETHERNET), Step.IN_PLACE),
    "nothing is left": (ON_WIFI, NOWHERE, HERE, network(WIFI_DOWN), Step.WAIT),
    "to be unbound": (ON_WIFI, UNBOUND, HERE, network(WIFI), Step.UNBIND),
    "to be bound": (UNBOUND, ON_WIFI, None, network(WIFI), Step.IN_PLACE),
}


@pytest.mark.parametrize("what", STEPS)
def test_the_step_from_one_place_to_another(what: str) -> None:
    old, new, source, reading, expected = STEPS[what]
    assert step(old, new, source, reading) is expected


def decider(*parts: Interface, preferences: Preferences | None = None) -> Decider:
    return Decider(network(*parts, *DEFAULTS), preferences or Preferences())


def test_a_wish_is_granted_by_its_first_target_that_has_an_interface() -> None:
    wish = Requirement((socket.AF_INET6, socket.AF_INET))
    assert wish.place(decider(WIFI)).path == decider(WIFI).path(socket.AF_INET)
    assert wish.place(decider(WIFI_DOWN)) == NOWHERE
    assert wish.place(decider(WIFI_DOWN, preferences=Preferences(on_no_interface="unbound"))) == UNBOUND
    assert Requirement((HERE,)).place(decider(WIFI)) == UNBOUND


def test_a_wish_for_an_address_goes_wherever_the_address_is() -> None:
    wish = Requirement((THERE,), HERE)
    assert wish.place(decider(WIFI, ETHERNET)).path is not None
    assert wish.place(decider(WIFI_UNPLUGGED, ETHERNET)) == NOWHERE
    with pytest.raises(LocalAddressGone):
        wish.place(decider(WIFI_OTHER, ETHERNET))


class Wire:
    """Takes datagrams, or does not."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refused: set[object] = set()
        self.room = 100

    def attempt(self, waiting: Waiting) -> Outcome:
        if waiting.address in self.refused:
            return Outcome.REFUSED
        if len(self.sent) == self.room:
            return Outcome.FULL
        self.sent.append(waiting.data)
        return Outcome.SENT


def test_a_destination_that_is_refused_does_not_hold_up_the_others() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b"), (b"3", "a"), (b"4", "b")):
        waiting.add(data, address, 0.0, held=True)
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
        waiting.add(data, None, 0.0, held=False)
    wire.room = 1
    waiting.send(wire.attempt, 1.0)
    assert (wire.sent, len(waiting), waiting.size) == ([b"1"], 2, 5)
    wire.room = 3
    waiting.send(wire.attempt, 1.0)
    assert wire.sent == [b"1", b"22", b"333"]


def test_a_destination_that_is_refused_and_a_full_socket_together_keep_the_order() -> None:
    waiting, wire = Backlog(), Wire()
    for data, address in ((b"1", "a"), (b"2", "b"), (b"3", "b"), (b"4", "a")):
        waiting.add(data, address, 0.0, held=True)
    wire.refused, wire.room = {"a"}, 1
    waiting.send(wire.attempt, 1.0)
    wire.refused, wire.room = set(), 9
    waiting.send(wire.attempt, 1.0)
    assert wire.sent == [b"2", b"1", b"3", b"4"]


def test_what_is_held_expires_and_what_only_lacks_room_does_not() -> None:
    waiting, wire = Backlog(), Wire()
    waiting.add(b"old", None, 1.0, held=True)
    waiting.add(b"buffered", None, 1.0, held=False)
    waiting.add(b"young", None, 3.0, held=True)
    assert [w.data for w in waiting.expire(2.0)] == [b"old"]
    wire.refused = {None}
    waiting.send(wire.attempt, 4.0)
    assert waiting.holds
    assert [w.data for w in waiting.expire(3.0)] == [b"young"], "it is held only since it was refused"
    assert waiting.clear() == 1


def test_only_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_HELD_BYTES", 10)
    waiting = Backlog()
    assert sum(waiting.add(b"12345", None, 0.0, held=False) for _ in range(3)) == 0
    assert waiting.add(b"12345", None, 0.0, held=True) == 2
    assert waiting.add(b"more than all of it", None, 0.0, held=True) == 2
    assert (len(waiting), waiting.size) == (1, 19)


SOCK = socket.socket.__new__(socket.socket)


class Counting:
    """A kernel that only counts, and the time."""

    def __init__(self) -> None:
        self.count: int | None = 0
        self.asked = 0
        self.now = 100.0
        self.queued = 0

    def unsent(self, sock: socket.socket) -> int:
        return self.queued

    def dropped(self, interface: Interface) -> int | None:
        self.asked += 1
        return self.count

    def clock(self) -> float:
        return self.now


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def devices(counting: Counting) -> DeviceDrops:
    return DeviceDrops(counting, counting.clock)  # type: ignore[arg-type]


def send(record: DropCounter, counting: Counting, times: int) -> None:
    for _ in range(times):
        if counting.now >= record.due:
            record.look(counting.now)
        record.sent()


def test_only_drops_of_the_last_seconds_count(counting: Counting, devices: DeviceDrops) -> None:
    record = DropCounter(devices)
    record.start(WIFI, SOCK)
    assert counting.count is not None
    for _ in range(10):
        counting.now += 1.0
        counting.count += 1
        send(record, counting, 1)
    counting.count += 5
    send(record, counting, 9)
    # The ten that were sent since two seconds ago are at most seven: the two drops in that time, and the five at the end.
    assert record.lost() == 7


def test_a_drop_is_accounted_for_once(counting: Counting, devices: DeviceDrops) -> None:
    records = [DropCounter(devices) for _ in range(3)]
    for record in records:
        record.start(WIFI, SOCK)
        send(record, counting, 4)
    counting.now += 0.4
    counting.count = 6
    assert [record.lost() for record in records] == [4, 2, 0]
    assert [record.lost() for record in records] == [0, 0, 0]


def test_the_device_is_asked_twice_a_second_for_all_sockets_together(counting: Counting, devices: DeviceDrops) -> None:
    records = [DropCounter(devices) for _ in range(50)]
    for record in records:
        record.start(WIFI, SOCK)
    assert counting.asked == 1
    for _ in range(100):
        counting.now += 0.01
        for record in records:
            send(record, counting, 1)
    assert counting.asked <= 3


def test_what_waited_for_the_gateway_is_lost_with_the_device_uncounted_by_it(counting: Counting, devices: DeviceDrops) -> None:
    record = DropCounter(devices)
    record.start(WIFI, SOCK)
    send(record, counting, 5)
    counting.queued = 3
    counting.now += 0.03
    send(record, counting, 4)
    counting.queued = 0
    assert record.lost() == 3 + 4


def test_what_left_in_time_is_not_lost(counting: Counting, devices: DeviceDrops) -> None:
    record = DropCounter(devices)
    record.start(WIFI, SOCK)
    counting.queued = 3
    counting.now += 0.03
    send(record, counting, 5)
    counting.queued = 0
    counting.now += 0.03
    send(record, counting, 1)
    counting.queued = 1
    assert record.lost() == 1


def test_where_the_system_does_not_tell_nothing_is_counted(counting: Counting, devices: DeviceDrops) -> None:
    counting.count = None
    record = DropCounter(devices)
    record.start(WIFI, SOCK)
    send(record, counting, 3)
    assert record.lost() == 0
