"""The watcher: when it reads the network, which followers it calls, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Self

import pytest

from bindsock.errors import KernelError
from bindsock.model.change import Cause, Change
from bindsock.model.network import Network, taken_down
from bindsock.model.tables import TableAnswers
from bindsock.netmon.announcing import GRACE
from bindsock.netmon.coalescing import QUIET, RECONCILE
from bindsock.netmon.listening import ChangeListener
from bindsock.netmon.prefetch import PrefetchedDecisions
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.watcher import LINGER, Watcher
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, network
from tests.scene import Scene
from tests.virtual_loop import VirtualLoop
from tests.waiting import settle, until

WIFI = network("2: wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0")
ETHERNET = network("3: eth0 wifi 203.0.113.5/24", "default via 203.0.113.1 dev eth0")
WIFI_AND_CONTAINER = network("2: wifi0 wifi 192.0.2.5/24", "9: veth7 wifi", "default via 192.0.2.1 dev wifi0")


class RecordingFollower:
    """A follower that records the IPv4 interface of each network."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, Cause]] = []

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        chosen = decider.decide(socket.AF_INET).interface
        self.seen.append((chosen.name if chosen else None, cause))


class WatcherScene(Scene):
    """A watcher with one follower, on a loop that only the test runs."""

    clock: VirtualLoop

    def __init__(self, interface: str | None = None) -> None:
        super().__init__(WIFI, VirtualLoop(), interface)
        self.follower = RecordingFollower()

    def __enter__(self) -> Self:
        self.watcher.follow(self.follower)
        self.clock.turn()
        return self

    def __exit__(self, *exc: object) -> None:
        self.watcher.stop()


def test_a_change_moves_the_followers_at_once() -> None:
    with WatcherScene() as scene:
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert scene.follower.seen == [("eth0", Cause.EVENTS)]


def test_events_that_change_nothing_that_matters_move_nobody() -> None:
    with WatcherScene() as scene:
        scene.kernel.change(WIFI_AND_CONTAINER)
        scene.watcher.refresh()
        scene.wait(10.0)
        assert scene.follower.seen == []
        assert scene.watcher.statistics.events == 1
        assert scene.watcher.statistics.changes == 0


def test_what_is_not_urgent_waits_for_a_complete_reading() -> None:
    with WatcherScene() as scene:
        (source,) = scene.kernel.sources
        source.urgent = False
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert scene.follower.seen == []
        scene.wait(QUIET)
        assert scene.follower.seen == [("eth0", Cause.EVENTS)]


BOTH = network(
    "2: wifi0 wifi 192.0.2.5/24",
    "3: eth0 wifi 203.0.113.5/24 2001:db8::5/64",
    "default via 192.0.2.1 dev wifi0",
    "default via 203.0.113.1 dev eth0 metric 100",
    "198.51.100.0/24 dev eth0",
)


@pytest.mark.parametrize("pin", [None, "eth0"])
@pytest.mark.parametrize("index", [2, 3])
def test_what_is_decided_ahead_is_what_would_be_decided(index: int, pin: str | None) -> None:
    targets = [socket.AF_INET, ip_address("198.51.100.7"), ip_address("8.8.8.8"), ip_address("203.0.113.5")]
    with WatcherScene(pin) as scene:
        scene.kernel.change(BOTH)
        scene.watcher.refresh()
        for target in targets:
            scene.watcher.refresh().decide(target)
        scene.wait(QUIET)
        gone = taken_down(BOTH, frozenset({index}))
        scene.kernel.change(gone)
        scene.watcher.refresh()
        decider = scene.watcher.refresh()
        assert set(targets) <= set(decider.targets())
        for target in targets:
            assert decider.decide(target) == Decider(gone, Preferences(), interface=pin).decide(target)
        assert decider.pin == pin


def test_for_a_destination_that_is_new_it_is_decided_ahead_a_moment_later() -> None:
    first, later = ip_address("8.8.8.8"), ip_address("198.51.100.7")
    gone = taken_down(BOTH, frozenset({3}))
    with WatcherScene() as scene:
        scene.change(BOTH)
        scene.watcher.refresh().decide(first)
        scene.wait(QUIET)
        scene.watcher.refresh().decide(later)
        scene.watcher.follow(RecordingFollower())
        scene.wait(QUIET)
        scene.change(gone)
        assert {first, later} <= set(scene.watcher.latest.targets())


def test_the_network_is_not_read_and_decided_ahead_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    with WatcherScene() as scene:
        scene.change(BOTH)
        read, prepare = scene.kernel.network, PrefetchedDecisions.prepare

        def reading(*, partial: bool = False) -> Network:
            log.append("read")
            scene.clock.call_soon(log.append, "the program")
            return read(partial=partial)

        def deciding(prefetched: PrefetchedDecisions, decider: Decider) -> None:
            log.append("decided ahead")
            prepare(prefetched, decider)

        monkeypatch.setattr(scene.kernel, "network", reading)
        monkeypatch.setattr(PrefetchedDecisions, "prepare", deciding)
        scene.wait(QUIET)
    assert log == ["read", "the program", "decided ahead"]


def test_nothing_is_decided_ahead_anew_without_a_new_destination() -> None:
    with WatcherScene() as scene:
        scene.change(BOTH)
        scene.watcher.refresh().decide(ip_address("8.8.8.8"))
        scene.wait(QUIET)
        timers = scene.clock.timers
        scene.watcher.follow(RecordingFollower())
        assert scene.clock.timers == timers


def test_it_is_decided_ahead_for_a_limited_number_of_destinations() -> None:
    ahead, present = PrefetchedDecisions(), Decider(BOTH, Preferences())
    for number in range(40):
        present.decide(ip_address(f"198.51.100.{number}"))
    ahead.prepare(present)
    assert not ahead.lacks_targets(present)
    for number in range(40, 80):
        present.decide(ip_address(f"198.51.100.{number}"))
    assert ahead.lacks_targets(present)
    ahead.prepare(present)
    found = ahead.find(taken_down(BOTH, frozenset({3})), present)
    assert found is not None
    assert found.targets() == present.targets()[:64]
    present.decide(ip_address("8.8.8.8"))
    assert not ahead.lacks_targets(present)


def test_what_was_decided_ahead_for_another_network_is_not_used() -> None:
    with WatcherScene() as scene:
        scene.kernel.change(BOTH)
        scene.watcher.refresh()
        scene.wait(QUIET)
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert scene.watcher.refresh().network is ETHERNET


def test_what_was_decided_ahead_is_found_by_equality() -> None:
    ahead, present = PrefetchedDecisions(), Decider(BOTH, Preferences())
    ahead.prepare(present)
    assert ahead.networks == (taken_down(BOTH, frozenset({2})), taken_down(BOTH, frozenset({3})))
    found = ahead.find(taken_down(BOTH, frozenset({3})), present)
    assert found is not None
    assert found.network == taken_down(BOTH, frozenset({3}))
    assert ahead.find(WIFI, present) is None
    ahead.clear()
    assert ahead.find(taken_down(BOTH, frozenset({3})), present) is None


def test_what_was_decided_ahead_is_not_used_after_an_answer_has_changed() -> None:
    """A route to a single network came or went, which the reading itself does not show."""
    ahead, present = PrefetchedDecisions(), Decider(BOTH, Preferences())
    ahead.prepare(present)
    gone = taken_down(BOTH, frozenset({3}))
    assert ahead.find(gone, Decider(BOTH, Preferences())) is not None
    assert ahead.find(gone, Decider(BOTH, Preferences(), lookups=TableAnswers(WIFI))) is None


def test_an_interface_goes_down_with_its_routes_and_ipv6_addresses() -> None:
    gone = taken_down(BOTH, frozenset({3}))
    assert gone.interfaces[2] is BOTH.interfaces[2]
    eth0 = gone.interfaces[3]
    assert (eth0.up, eth0.running, [str(a.address) for a in eth0.addresses]) == (False, False, ["203.0.113.5"])
    assert gone.routes == BOTH.routes[:1]
    assert gone.reachable == frozenset({(2, socket.AF_INET)})
    assert taken_down(gone, frozenset({2})).routes == ()


def test_an_interface_that_is_down_already_takes_nothing_along() -> None:
    gone = taken_down(BOTH, frozenset({3}))
    assert taken_down(gone, frozenset({3})) is gone
    assert taken_down(BOTH, frozenset({99})) is BOTH


class Poking(RecordingFollower):
    """A follower that changes the network while it moves."""

    def __init__(self, scene: WatcherScene, then: Network) -> None:
        super().__init__()
        self.scene = scene
        self.then = then

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        super().network_changed(decider, cause)
        if len(self.seen) == 1:
            self.scene.kernel.change(self.then)
            self.scene.watcher.recheck()


def test_nobody_is_shown_an_older_reading_after_a_newer_one() -> None:
    with WatcherScene() as scene:
        scene.watcher.unfollow(scene.follower)
        first, second = Poking(scene, WIFI), RecordingFollower()
        scene.watcher.follow(first)
        scene.watcher.follow(second)
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert [name for name, _ in first.seen] == ["eth0", "wifi0"]
        assert [name for name, _ in second.seen] == ["wifi0"]


def test_a_reading_that_a_follower_causes_keeps_no_change_from_the_others_if_it_changes_nothing_that_matters() -> None:
    with WatcherScene() as scene:
        scene.watcher.unfollow(scene.follower)
        first, second = Poking(scene, WIFI_AND_CONTAINER), RecordingFollower()
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        scene.watcher.follow(first)
        scene.watcher.follow(second)
        scene.kernel.change(WIFI)
        scene.watcher.refresh()
        assert [name for name, _ in first.seen] == ["wifi0"]
        assert [name for name, _ in second.seen] == ["wifi0"]


def test_a_reading_after_which_nobody_follows_any_more_is_the_newest_all_the_same() -> None:
    scene = WatcherScene()

    class Leaving(RecordingFollower):
        def network_changed(self, decider: Decider, cause: Cause) -> None:
            scene.watcher.unfollow(self)

    scene.watcher.follow(Leaving())
    scene.kernel.change(ETHERNET)
    decision = scene.watcher.refresh().decide(socket.AF_INET)
    assert decision.interface is not None
    assert decision.interface.name == "eth0"
    assert not scene.watcher.running


def test_a_change_counts_when_nobody_listens_and_is_told_to_nobody_who_comes_later() -> None:
    with WatcherScene() as scene:
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        late = ChangeListener(lambda: None)
        scene.watcher.listen(late)
        scene.wait(10.0)
        assert late.take() is None
        assert scene.watcher.statistics.changes == 1
        scene.kernel.change(WIFI)
        scene.watcher.refresh()
        scene.clock.turn()
        assert late.take() is not None


def test_a_silent_change_is_found_by_the_reconcile() -> None:
    with WatcherScene() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.wait(RECONCILE - 1.0)
        assert scene.follower.seen == []
        scene.wait(2.0)
        assert scene.follower.seen == [("eth0", Cause.RECONCILE)]


def test_a_wake_is_seen_from_the_two_clocks() -> None:
    with WatcherScene() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.kernel.sleep(3600.0)
        scene.kernel.signal()
        scene.watcher.refresh()
        assert scene.follower.seen == [("eth0", Cause.WAKE)]


def test_a_refused_send_makes_it_look() -> None:
    with WatcherScene() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.watcher.recheck()
        assert scene.follower.seen == [("eth0", Cause.SEND_ERROR)]


def test_refused_sends_without_end_cause_few_readings() -> None:
    with WatcherScene() as scene:
        before = scene.kernel.readings
        for _ in range(10_000):
            scene.watcher.recheck()
        assert scene.kernel.readings - before < 10


def test_lost_events_are_counted_and_read_over() -> None:
    with WatcherScene() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        (source,) = scene.kernel.sources
        source.overruns += 1
        before = source.overruns
        scene.kernel.overrun()
        scene.watcher.refresh()
        assert source.overruns == before + 1
        assert scene.follower.seen == [("eth0", Cause.EVENTS)]


def test_the_network_being_gone_is_announced_after_the_grace_only() -> None:
    with WatcherScene() as scene:
        listener = ChangeListener(lambda: None)
        scene.watcher.listen(listener)
        scene.kernel.change(network())
        scene.watcher.refresh()
        scene.wait(GRACE - 0.1)
        assert listener.take() is None
        scene.wait(0.2)
        change = listener.take()
        assert change is not None
        assert change.ipv4.new_path is None


def test_a_reading_that_fails_leaves_the_last_one_standing_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with WatcherScene() as scene:
        real = scene.kernel.network
        monkeypatch.setattr(scene.kernel, "network", _raise)
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert scene.follower.seen == []
        monkeypatch.setattr(scene.kernel, "network", real)
        scene.wait(QUIET * 2)
        assert [name for name, _ in scene.follower.seen] == ["eth0"]


def _raise(*, partial: bool = False) -> None:
    raise KernelError("the kernel answers in riddles")


def test_a_follower_that_fails_does_not_keep_the_others_from_moving() -> None:
    class Failing:
        def network_changed(self, decider: Decider, cause: Cause) -> None:
            raise RuntimeError("no")

    with WatcherScene() as scene:
        failing, other = Failing(), RecordingFollower()
        scene.watcher.follow(failing)
        scene.watcher.follow(other)
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert [name for name, _ in other.seen] == ["eth0"]


def test_it_runs_only_while_somebody_needs_it() -> None:
    scene = WatcherScene()
    assert scene.kernel.open_sources == 0
    scene.watcher.follow(scene.follower)
    with scene.watcher.hold():
        assert len(scene.clock.readers) == 0, "whoever dials does not wait for that"
        scene.clock.turn()
        assert len(scene.clock.readers) == 1
        scene.watcher.unfollow(scene.follower)
        assert scene.watcher.running
    assert not scene.watcher.running


def test_a_watcher_that_rests_keeps_its_event_source_and_costs_the_loop_nothing() -> None:
    with rested() as scene:
        assert scene.watcher.resting
        assert scene.kernel.open_sources == 1
        assert scene.clock.readers == {}
        assert scene.clock.timers == []
        assert scene.kernel.readings == 1


def test_a_dial_takes_the_last_reading_of_a_watcher_that_rests_if_nothing_has_happened() -> None:
    with rested() as scene:
        scene.wait(RECONCILE - LINGER - 0.1)
        assert scene.watcher.refresh().network is WIFI
        assert scene.kernel.readings == 1


def test_what_happened_while_a_watcher_rested_is_read_at_the_next_dial() -> None:
    with rested() as scene:
        scene.kernel.change(ETHERNET)
        assert scene.watcher.refresh().network is ETHERNET
        assert scene.kernel.readings == 2
        assert scene.watcher.resting


def test_events_that_were_lost_while_a_watcher_rested_make_it_read() -> None:
    with rested() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.kernel.overrun()
        assert scene.watcher.refresh().network is ETHERNET


@pytest.mark.parametrize("slept", [0.0, 3600.0])
def test_a_silent_change_while_a_watcher_rested_is_found_after_a_minute_or_a_sleep(slept: float) -> None:
    with rested() as scene:
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.kernel.sleep(slept)
        scene.wait(1.0 if slept else RECONCILE)
        assert scene.watcher.refresh().network is ETHERNET


def test_what_was_still_to_be_read_again_when_a_watcher_began_to_rest_is_read_at_the_next_dial() -> None:
    scene = WatcherScene()
    with scene:
        scene.kernel.signal()
        scene.watcher.refresh()
        scene.kernel.silent = True
        scene.kernel.change(ETHERNET)
        scene.watcher.unfollow(scene.follower)
        scene.wait(LINGER)
        assert scene.clock.readers == {}
        assert scene.watcher.refresh().network is ETHERNET


def test_a_follower_that_comes_to_a_watcher_that_rests_is_shown_what_happened_meanwhile() -> None:
    with rested() as scene:
        scene.kernel.change(ETHERNET)
        scene.watcher.follow(scene.follower)
        scene.clock.turn()
        for call in list(scene.clock.readers.values()):
            call()
        assert scene.follower.seen == [("eth0", Cause.EVENTS)]


def test_a_watcher_without_event_sources_reads_at_each_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = WatcherScene()
    monkeypatch.setattr(scene.kernel, "events", list)
    with scene:
        scene.watcher.unfollow(scene.follower)
        scene.wait(LINGER)
        scene.kernel.change(ETHERNET)
        assert scene.watcher.refresh().network is ETHERNET


def test_a_watcher_that_is_needed_again_within_a_second_was_never_unregistered() -> None:
    with WatcherScene() as scene:
        (reader,) = scene.clock.readers.values()
        for _ in range(3):
            scene.watcher.unfollow(scene.follower)
            scene.wait(LINGER / 4)
            scene.watcher.follow(scene.follower)
        scene.wait(LINGER)
        assert list(scene.clock.readers.values()) == [reader]
        scene.kernel.change(ETHERNET)
        reader()
        assert scene.follower.seen == [("eth0", Cause.EVENTS)]
        assert scene.kernel.readings == 2


def test_a_watcher_that_is_forgotten_closes_its_event_source() -> None:
    scene = WatcherScene()
    kernel = scene.kernel
    scene.watcher.refresh()
    assert kernel.open_sources == 1
    del scene
    gc.collect()
    assert kernel.open_sources == 0


@contextlib.contextmanager
def rested() -> Iterator[WatcherScene]:
    """A watcher without followers, which had one before."""
    with WatcherScene() as scene:
        scene.watcher.unfollow(scene.follower)
        scene.wait(LINGER)
        yield scene


def test_a_kernel_without_event_sources_is_reconciled_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = WatcherScene()

    def denied() -> list[object]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(scene.kernel, "events", denied)
    with scene:
        scene.kernel.change(ETHERNET)
        scene.wait(RECONCILE)
        assert scene.follower.seen == [("eth0", Cause.RECONCILE)]


def test_a_source_that_breaks_is_closed_and_the_rest_goes_on() -> None:
    with WatcherScene() as scene:
        (source,) = scene.kernel.sources
        source.drain = _broken  # type: ignore[method-assign]
        scene.kernel.change(ETHERNET)
        scene.watcher.refresh()
        assert scene.clock.readers == {}
        assert scene.kernel.open_sources == 0
        assert [name for name, _ in scene.follower.seen] == ["eth0"]


def _broken() -> bool:
    raise OSError(9, "Bad file descriptor")


def test_a_pin_replaces_the_watchers_own() -> None:
    with WatcherScene() as scene:
        import socket

        assert scene.watcher.refresh().with_pin("eth9").decide(socket.AF_INET).interface is None
        assert scene.watcher.refresh().decide(socket.AF_INET).interface is not None


async def test_the_event_loop_delivers() -> None:
    kernel = SimulatedKernel(WIFI)
    watcher = Watcher(kernel, Preferences(), runtime=runtime_of(asyncio.get_running_loop()))
    follower = RecordingFollower()
    tasks = asyncio.all_tasks()
    gc.collect()  # of other tests
    descriptors = len(os.listdir("/dev/fd"))
    watcher.follow(follower)
    kernel.change(ETHERNET)
    await until(lambda: bool(follower.seen))
    assert follower.seen == [("eth0", Cause.EVENTS)]
    assert asyncio.all_tasks() == tasks
    watcher.stop()
    assert kernel.open_sources == 0
    assert len(os.listdir("/dev/fd")) == descriptors


def test_asyncio_run_ends_the_watcher(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    kernel = SimulatedKernel(WIFI)
    ended: list[bool] = []

    async def main() -> Watcher:
        watcher = Watcher(kernel, Preferences(), runtime=runtime_of(asyncio.get_running_loop()))
        watcher.follow(RecordingFollower())
        listener = ChangeListener(lambda: ended.append(True))
        watcher.listen(listener)
        return watcher

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        watcher = runner.run(main())
        assert watcher.running
    assert not watcher.running
    assert ended == [True]
    assert kernel.open_sources == 0


def test_the_end_of_the_loop_closes_a_watcher_that_rests(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    kernel = SimulatedKernel(WIFI)

    async def main() -> Watcher:
        watcher = Watcher(kernel, Preferences(), runtime=runtime_of(asyncio.get_running_loop()))
        watcher.refresh()
        return watcher

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        watcher = runner.run(main())
        assert watcher.resting
    assert not watcher.resting
    assert kernel.open_sources == 0


def test_a_loop_that_is_closed_by_hand_leaves_no_descriptor(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    kernel = SimulatedKernel(WIFI)
    watchers: list[Watcher] = []

    async def main() -> None:
        runtime = runtime_of(asyncio.get_running_loop())
        watchers.extend(Watcher(kernel, Preferences(), runtime=runtime) for _ in range(2))
        watchers[0].follow(RecordingFollower())
        watchers[1].refresh()

    loop = loop_factory()
    loop.run_until_complete(main())
    assert kernel.open_sources == 2
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        gc.collect()
    assert kernel.open_sources == 0


async def test_changes_are_merged_for_a_slow_reader() -> None:
    kernel = SimulatedKernel(WIFI)
    watcher = Watcher(kernel, Preferences(), runtime=runtime_of(asyncio.get_running_loop()))
    listener = ChangeListener(lambda: None)
    watcher.listen(listener)
    try:
        for reading in (ETHERNET, WIFI, ETHERNET):
            kernel.change(reading)
            watcher.refresh()
        await settle()
        change: Change | None = listener.take()
        assert change is not None
        assert change.number == 3
        assert change.ipv4.old_path is not None
        assert change.ipv4.new_path is not None
        assert (change.ipv4.old_path.interface, change.ipv4.new_path.interface) == ("wifi0", "eth0")
        assert listener.take() is None
    finally:
        watcher.unlisten(listener)
        watcher.stop()
