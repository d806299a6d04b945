"""Thousands of connections see a reading over several turns of the event loop."""

from __future__ import annotations

import pytest

from bindsock.model.change import Cause
from bindsock.netmon import turns
from bindsock.netmon.crowd import in_turns
from bindsock.routing.effective import Decider
from bindsock.testing import interface, network
from tests.scene import Scene
from tests.virtual_loop import VirtualLoop

WIFI = interface("2: wifi0 wifi 192.0.2.1/24")
ETHERNET = interface("3: eth0 wifi 198.51.100.1/24")
ON_WIFI = network(WIFI, ETHERNET, "default via 192.0.2.254 dev wifi0")
ON_ETHERNET = network(WIFI, ETHERNET, "default via 198.51.100.254 dev eth0")
NOWHERE = network(WIFI, ETHERNET)
MANY = 200


class Member:
    """A follower that records each reading that it sees."""

    def __init__(self, log: list[int], number: int) -> None:
        self.shown: list[Decider] = []
        self._log = log
        self._number = number

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        self.shown.append(decider)
        self._log.append(self._number)
        if self._number == 13:
            raise ZeroDivisionError


class CrowdScene(Scene):
    """A watcher with many followers, on a loop that only the test runs."""

    clock: VirtualLoop

    def __init__(self, count: int = MANY) -> None:
        super().__init__(ON_WIFI, VirtualLoop())
        self.log: list[int] = []
        self.crowd = in_turns(self.watcher)
        self.members = [Member(self.log, number) for number in range(count)]
        for member in self.members:
            self.crowd.follow(member)


@pytest.fixture
def _one_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BUDGET", 1e-9)


def test_a_few_see_a_reading_at_once_and_one_that_fails_stops_nobody() -> None:
    scene = CrowdScene(20)
    scene.change(ON_ETHERNET)
    assert scene.log[:4] == list(range(4))
    scene.clock.turn()
    assert scene.log == list(range(20))


@pytest.mark.usefixtures("_one_piece_a_turn")
def test_of_many_only_a_few_see_it_in_each_turn() -> None:
    scene = CrowdScene()
    scene.change(ON_ETHERNET)
    at_once = len(scene.log)
    assert 0 < at_once < MANY / 10
    scene.clock.turn()
    assert scene.log == list(range(MANY))
    assert all(member.shown == [scene.watcher.latest] for member in scene.members)


@pytest.mark.usefixtures("_one_piece_a_turn")
def test_after_a_second_change_in_the_middle_all_see_the_newest() -> None:
    scene = CrowdScene()
    scene.change(ON_ETHERNET)
    scene.change(NOWHERE)
    scene.clock.turn()
    newest = scene.watcher.latest
    assert newest.network is NOWHERE
    assert all(member.shown[-1] is newest for member in scene.members)
    assert {len(member.shown) for member in scene.members} == {1, 2}


@pytest.mark.usefixtures("_one_piece_a_turn")
def test_one_that_stops_to_follow_in_the_middle_sees_nothing_more() -> None:
    scene = CrowdScene()
    scene.change(ON_ETHERNET)
    scene.crowd.unfollow(scene.members[-1])
    assert not scene.crowd.follows(scene.members[-1])
    scene.clock.turn()
    assert scene.log == list(range(MANY - 1))


@pytest.mark.usefixtures("_one_piece_a_turn")
def test_those_who_do_not_wait_for_their_turn_come_first() -> None:
    scene = CrowdScene()
    dial = Member(scene.log, -1)
    scene.watcher.follow(dial)
    scene.change(ON_ETHERNET)
    assert scene.log[0] == -1


def test_each_member_counts_and_the_watcher_is_not_needed_after_the_last() -> None:
    scene = CrowdScene(3)
    assert scene.watcher.statistics.tracked == 3
    for member in scene.members:
        assert scene.crowd.follows(member)
        scene.crowd.unfollow(member)
        scene.crowd.unfollow(member)
    assert scene.watcher.statistics.tracked == 0
    assert not scene.watcher.running


@pytest.mark.usefixtures("_one_piece_a_turn")
def test_after_all_followers_were_forgotten_nobody_sees_the_rest() -> None:
    scene = CrowdScene()
    scene.change(ON_ETHERNET)
    at_once = len(scene.log)
    scene.watcher.forget_followers()
    scene.clock.turn()
    assert len(scene.log) == at_once
    scene.crowd.follow(scene.members[0])
    assert not scene.crowd.follows(scene.members[1])
    scene.change(ON_WIFI)
    scene.clock.turn()
    assert len(scene.log) == at_once + 1
