"""Happy eyeballs on a virtual clock: when each attempt begins, which one wins, and that the others are closed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from bindsock.dial.attempt import Attempt, Destination
from bindsock.dial.dialer import Dialer
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.race import Race, interleaved
from bindsock.dial.resolving import numeric, resolve
from bindsock.errors import InterfaceChanged
from bindsock.model.change import Cause
from bindsock.netmon.watcher import Watcher
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, network
from tests.virtual_loop import VirtualLoop, VirtualTask

WIFI = network("2: wifi0 wifi 192.0.2.5/24", "3: eth0 wifi 203.0.113.5/24", "default via 192.0.2.1 dev wifi0")
ETHERNET = network("2: wifi0 wifi 192.0.2.5/24", "3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0")
CONTAINER = network(*WIFI.interfaces.values(), "9: veth7 wifi 10.7.0.1/24", "default via 192.0.2.1 dev wifi0")

AT_ONCE, LATER, NEVER = "at once", "later", "never"


class Scripted(Attempt):
    """An attempt whose result the test sets.

    :param begins: whether it connects at once, has begun, or fails
    """

    __slots__ = ("begins", "begun", "ends", "scene")

    def __init__(self, scene: RaceScene, destination: Destination, begins: str) -> None:
        super().__init__(scene.dialer, destination, None)
        self.scene = scene
        self.begins = begins
        self.begun: float | None = None
        self.ends: OSError | None = None

    def begin(self) -> bool:
        self.begun = self.scene.now
        if self.begins == NEVER:
            raise refused(self.destination)
        self.sock = FollowedSocket(socket.AF_INET, socket.SOCK_STREAM)
        return self.begins == AT_ONCE

    def finish(self) -> None:
        if self.ends is not None:
            self.close()
            raise self.ends

    def end(self, error: OSError | None = None) -> None:
        """The socket becomes writable."""
        assert self.sock is not None
        self.ends = error
        self.scene.loop.writers[self.sock.fileno()]()

    @property
    def open(self) -> bool:
        return self.sock is not None and self.sock.fileno() != -1


class RaceScene:
    """A race on a loop that only the test runs."""

    def __init__(self, *begins: str, delay: float | None = 0.25) -> None:
        self.loop = VirtualLoop()
        self.kernel = SimulatedKernel(WIFI)
        self.watcher = Watcher(self.kernel, Preferences(), runtime=self.loop.runtime)
        self.dialer = Dialer(self.watcher, resolve, "server.test", 80)
        decider = self.watcher.refresh()
        hosts = [f"198.51.100.{number}" for number in range(1, len(begins) + 1)]
        destinations = [destination(decider, host) for host in hosts]
        self.attempts = [Scripted(self, *pair) for pair in zip(destinations, begins, strict=True)]
        self.race = Race(self.watcher, self.attempts, delay)
        self.task: VirtualTask[Attempt | None]

    @property
    def now(self) -> float:
        return self.loop.now - 1000.0

    def start(self, *, interruptible: bool = True) -> None:
        self.task = self.loop.create_task(self.race.run(interruptible=interruptible))

    def winner(self) -> int | None:
        """The number of the attempt that won."""
        self.loop.turn()
        won = self.task.result()
        return self.attempts.index(won) if won is not None else None  # type: ignore[arg-type]

    def begun(self) -> list[float | None]:
        """The time at which each attempt began."""
        return [attempt.begun for attempt in self.attempts]

    def open(self) -> list[int]:
        """The numbers of the attempts whose sockets are open."""
        return [number for number, attempt in enumerate(self.attempts) if attempt.open]

    def change(self, new: object) -> None:
        self.kernel.change(new)  # type: ignore[arg-type]
        for call in list(self.loop.readers.values()):
            call()
        self.loop.turn()


def address(host: str) -> tuple[int, int, int, str, tuple[str | int, ...]]:
    info = numeric(host, 80, 0, socket.SOCK_STREAM, 0)
    assert info is not None
    return info


def destination(decider: Decider, host: str) -> Destination:
    target = ip_address(host)
    return Destination(address(host), target, decider.decide(target), decider.path(target), decider)


def refused(destination: Destination) -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, f"refused by {destination.address}")


@contextmanager
def racing(*begins: str, delay: float | None = 0.25) -> Iterator[RaceScene]:
    scene = RaceScene(*begins, delay=delay)
    scene.start()
    yield scene
    assert scene.loop.writers == {}, "a socket is still watched"
    assert not scene.watcher.running, "somebody still follows"
    for attempt in scene.attempts:
        attempt.close()
    scene.watcher.stop()


def test_an_address_that_connects_at_once_takes_no_timer_and_registers_nothing() -> None:
    with racing(AT_ONCE, LATER) as scene:
        assert scene.task.done
        assert scene.winner() == 0
        assert scene.begun() == [0.0, None]
        assert scene.loop.timers == []


def test_the_next_address_is_tried_after_the_delay() -> None:
    with racing(LATER, LATER, LATER) as scene:
        scene.loop.advance(0.6)
        assert scene.begun() == [0.0, 0.25, 0.5]
        scene.attempts[1].end()
        assert scene.winner() == 1
        assert scene.open() == [1]


def test_the_next_address_is_tried_as_soon_as_the_one_before_has_failed() -> None:
    with racing(LATER, NEVER, LATER, LATER) as scene:
        scene.loop.advance(0.125)
        scene.attempts[0].end(refused(scene.attempts[0].destination))
        assert scene.begun() == [0.0, 0.125, 0.125, None]
        scene.loop.advance(0.125)
        assert scene.begun()[3] is None  # its delay starts with the previous attempt
        scene.loop.advance(0.125)
        assert scene.begun()[3] == 0.375
        scene.attempts[2].end()
        assert scene.winner() == 2


def test_without_a_delay_the_addresses_are_tried_one_by_one() -> None:
    with racing(LATER, LATER, delay=None) as scene:
        scene.loop.advance(3600.0)
        assert scene.begun() == [0.0, None]
        scene.attempts[0].end(refused(scene.attempts[0].destination))
        assert scene.begun() == [0.0, 3600.0]
        scene.attempts[1].end()
        assert scene.winner() == 1


def test_if_all_fail_there_is_no_winner_and_each_error_is_kept_in_order() -> None:
    with racing(NEVER, LATER, NEVER) as scene:
        scene.attempts[1].end(refused(scene.attempts[1].destination))
        assert scene.winner() is None
        assert not scene.race.interrupted
        assert [error.strerror for error in scene.race.errors] == [f"refused by 198.51.100.{n}" for n in (1, 2, 3)]


def test_the_last_attempt_is_waited_for_however_long_it_takes() -> None:
    with racing(NEVER, LATER) as scene:
        scene.loop.advance(3600.0)
        assert not scene.task.done
        scene.attempts[1].end()
        assert scene.winner() == 1


def test_a_late_winner_beats_the_attempts_that_came_after_it() -> None:
    with racing(LATER, LATER) as scene:
        scene.loop.advance(0.3)
        assert scene.open() == [0, 1]
        scene.attempts[0].end()
        assert scene.winner() == 0
        assert scene.open() == [0]


def test_a_race_whose_path_changes_ends_without_a_winner() -> None:
    with racing(LATER, LATER) as scene:
        scene.loop.advance(0.3)
        scene.change(ETHERNET)
        assert scene.winner() is None
        assert scene.race.interrupted
        assert scene.open() == []


def test_a_change_that_was_read_while_the_first_attempt_began_ends_the_race() -> None:
    scene = RaceScene(NEVER, LATER)
    scene.kernel.change(ETHERNET)
    scene.watcher.refresh()
    scene.start()
    assert scene.winner() is None
    assert scene.race.interrupted
    assert scene.open() == []
    scene.watcher.stop()


def test_a_change_that_concerns_another_path_does_not_end_a_race() -> None:
    with racing(LATER) as scene:
        scene.change(CONTAINER)
        assert not scene.task.done
        scene.attempts[0].end()
        assert scene.winner() == 0


def test_a_race_that_is_not_to_be_interrupted_is_not() -> None:
    scene = RaceScene(LATER)
    scene.start(interruptible=False)
    scene.change(ETHERNET)
    assert not scene.task.done
    scene.attempts[0].end()
    assert scene.winner() == 0
    scene.attempts[0].close()
    scene.watcher.stop()


@pytest.mark.parametrize("change", ["deleted", "down", "without carrier", "another address"])
def test_a_race_that_is_not_to_be_interrupted_is_if_its_path_is_gone(change: str) -> None:
    wifi0 = {
        "deleted": [],
        "down": ["2: wifi0 wifi 192.0.2.5/24 down"],
        "without carrier": ["2: wifi0 wifi 192.0.2.5/24 no-carrier"],
        "another address": ["2: wifi0 wifi 192.0.2.6/24"],
    }[change]
    scene = RaceScene(LATER)
    scene.start(interruptible=False)
    scene.change(network(*wifi0))
    assert not scene.task.done, "it may come back, and there is no other"
    scene.change(network(*wifi0, "3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0"))
    assert scene.winner() is None
    assert scene.race.interrupted
    assert scene.open() == []
    scene.watcher.stop()


def test_a_last_race_goes_on_while_one_of_its_paths_works() -> None:
    scene = RaceScene(LATER, LATER)
    here = scene.attempts[1].destination._replace(path=None)
    scene.attempts[1].destination = here
    scene.start(interruptible=False)
    scene.loop.advance(0.3)
    scene.change(network("3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0"))
    assert not scene.task.done
    scene.attempts[1].end()
    assert scene.winner() == 1
    scene.attempts[1].close()
    scene.watcher.stop()


def test_a_dial_whose_path_is_gone_once_more_after_the_last_redial_fails() -> None:
    scene = RaceScene(LATER)
    task = scene.loop.create_task(scene.dialer._winner(list(scene.attempts), interruptible=False))
    scene.loop.advance(0.1)
    scene.change(network("3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0"))
    scene.loop.turn()
    with pytest.raises(InterfaceChanged, match=r"the path to server\.test changed 6 times") as failed:
        task.result()
    assert failed.value.interface == "wifi0"
    scene.watcher.stop()


def test_cancelling_closes_every_socket() -> None:
    with racing(LATER, LATER) as scene:
        scene.task.cancel()
        assert scene.open() == []
        scene.loop.advance(10.0)
        assert scene.begun() == [0.0, None]


def test_cancelling_in_the_moment_of_success_closes_the_winner_too() -> None:
    with racing(LATER) as scene:
        scene.attempts[0].end()
        scene.task.cancel()
        assert scene.open() == []


def destinations(*hosts: str) -> list[Destination]:
    decider = Watcher(SimulatedKernel(WIFI), Preferences(), runtime=VirtualLoop().runtime).refresh()
    return [destination(decider, host) for host in hosts]


@pytest.mark.parametrize(
    ("first", "order"),
    [
        (1, ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]),
        (2, ["2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::3", "192.0.2.2"]),
        (9, ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"]),
    ],
)
def test_the_families_take_turns(first: int, order: list[str]) -> None:
    given = destinations("2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2")
    assert [str(d.address) for d in interleaved(given, first)] == order


def test_a_single_family_stays_in_its_order() -> None:
    given = destinations("192.0.2.1", "192.0.2.2")
    assert interleaved(given) == given


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_path_that_is_back_before_the_race_has_ended_still_interrupts_it(interruptible: bool) -> None:
    scene = RaceScene(LATER)
    scene.start(interruptible=interruptible)
    scene.loop.turn()
    down = network("2: wifi0 wifi 192.0.2.5/24 down", *list(ETHERNET.interfaces.values())[1:], "default via 203.0.113.1 dev eth0")
    for new in (down, WIFI):
        scene.race.network_changed(Decider(new, Preferences()), Cause.EVENTS)
    assert scene.winner() is None
    assert scene.race.interrupted
    scene.watcher.stop()
