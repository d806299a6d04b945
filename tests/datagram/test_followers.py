"""Thousands of datagram sockets are moved over several turns of the event loop, the most recently used ones first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from bindsock.datagram.followers import DatagramFollowers, followers_of
from bindsock.model.change import Cause
from bindsock.netmon import turns
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.watcher import Watcher
from bindsock.routing.effective import Decider, Preferences
from bindsock.testing import SimulatedKernel, interface, network

WIFI = interface("2: wifi0 wifi 192.0.2.1/24")
ETHERNET = interface("3: eth0 wifi 198.51.100.1/24")
ON_WIFI = network(WIFI, ETHERNET, "default via 192.0.2.254 dev wifi0")
ON_ETHERNET = network(WIFI, ETHERNET, "default via 198.51.100.254 dev eth0")
NOWHERE = network(WIFI, ETHERNET)
PATIENCE = 60.0


class Member:
    """A follower that records each network that it is shown."""

    def __init__(self, number: int, log: list[int]) -> None:
        self.seen = 0
        self.number = number
        self.shown: list[Decider] = []
        self._log = log

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        self.shown.append(decider)
        self._log.append(self.number)
        if self.number == 13:
            raise ZeroDivisionError


class Crowd:
    """A watcher on a scripted network, and many followers."""

    def __init__(self) -> None:
        self.kernel = SimulatedKernel(ON_WIFI)
        self.watcher = Watcher(self.kernel, Preferences(), runtime=runtime_of(asyncio.get_running_loop()))
        self.log: list[int] = []
        self.followers: DatagramFollowers = followers_of(self.watcher)

    def members(self, count: int) -> list[Member]:
        found = [Member(number, self.log) for number in range(count)]
        for member in found:
            self.followers.follow(member)
        return found

    def pending(self, members: list[Member]) -> bool:
        return any(member.seen != self.followers.reading for member in members)

    async def until(self, condition: Callable[[], object]) -> None:
        """Check the condition in every turn of the loop: the tests look at single turns."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.watcher.forget_followers()
    crowd.watcher.stop()


@pytest.fixture
def _one_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BUDGET", 1e-9)


async def test_a_few_are_moved_at_once_and_one_that_fails_stops_nobody(crowd: Crowd) -> None:
    crowd.members(14)
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    assert crowd.log == [13, 12]
    await crowd.until(lambda: len(crowd.log) == 14)


async def test_one_that_is_used_is_the_first_to_move_before_the_program_runs_again(crowd: Crowd) -> None:
    members = crowd.members(200)
    crowd.followers.used(members[50])
    crowd.followers.used(members[20])
    crowd.followers.unfollow(members[50])
    crowd.followers.used(members[50])  # it is still not called
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    assert crowd.log[:2] == [20, 199]
    await crowd.until(lambda: not crowd.pending([member for member in members if member is not members[50]]))
    assert sorted(crowd.log) == [number for number in range(200) if number != 50]


@pytest.mark.usefixtures("_one_piece_a_turn")
async def test_of_many_those_used_last_are_moved_first_and_the_program_runs_in_between(crowd: Crowd) -> None:
    members = crowd.members(200)
    between: list[int] = []
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    at_once = len(crowd.log)
    assert 0 < at_once < 50
    while len(crowd.log) < 200:
        before = len(crowd.log)
        await asyncio.sleep(0)
        between.append(len(crowd.log) - before)
    assert crowd.log == list(range(199, -1, -1))
    assert max(between) <= 8
    assert not crowd.pending(members)


async def test_a_program_that_sends_runs_as_soon_as_those_used_last_have_moved(crowd: Crowd) -> None:
    members = crowd.members(200)
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    assert 0 < len(crowd.log) < 50  # although there is time for more in this turn
    assert members[-1].shown
    await crowd.until(lambda: len(crowd.log) == 200)


@pytest.mark.usefixtures("_one_piece_a_turn")
async def test_a_second_change_in_the_middle_starts_over_and_nobody_is_forgotten(crowd: Crowd) -> None:
    members = crowd.members(200)
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    await crowd.until(lambda: len(crowd.log) > 100)
    crowd.kernel.change(NOWHERE)
    crowd.watcher.refresh()
    newest = crowd.watcher.latest
    await crowd.until(lambda: not crowd.pending(members))
    assert all(member.shown[-1] is newest for member in members)
    assert {len(member.shown) for member in members} == {1, 2}


@pytest.mark.usefixtures("_one_piece_a_turn")
async def test_one_that_is_used_meanwhile_is_moved_at_once_and_only_once(crowd: Crowd) -> None:
    members = crowd.members(200)
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    first = members[0]
    assert crowd.pending([first])
    crowd.followers.catch_up(first)
    assert first.shown == [crowd.watcher.latest]
    await crowd.until(lambda: len(crowd.log) == 200)
    assert len(first.shown) == 1


@pytest.mark.usefixtures("_one_piece_a_turn")
async def test_one_that_has_gone_meanwhile_is_not_moved(crowd: Crowd) -> None:
    members = crowd.members(200)
    crowd.kernel.change(ON_ETHERNET)
    crowd.watcher.refresh()
    crowd.followers.unfollow(members[0])
    await crowd.until(lambda: not crowd.pending(members[1:]))
    assert members[0].shown == []


@pytest.mark.usefixtures("_one_piece_a_turn")
async def test_those_who_wait_for_the_same_are_moved_in_turns_too(crowd: Crowd) -> None:
    members = crowd.members(200)
    for member in members:
        crowd.followers.recheck(member)
    assert len(crowd.log) < 50
    await crowd.until(lambda: len(crowd.log) == 200)


async def test_each_of_them_is_counted(crowd: Crowd) -> None:
    members = crowd.members(3)
    assert crowd.watcher.statistics.tracked == 3
    crowd.followers.unfollow(members[0])
    crowd.followers.unfollow(members[0])
    assert crowd.watcher.statistics.tracked == 2
    assert [crowd.followers.follows(member) for member in members] == [False, True, True]
    crowd.watcher.forget_followers()
    assert crowd.watcher.statistics.tracked == 0
    assert not any(crowd.followers.follows(member) for member in members)
    crowd.followers.follow(members[0])
    assert crowd.watcher.statistics.tracked == 1
    crowd.followers.unfollow(members[0])
    assert (crowd.watcher.statistics.tracked, crowd.watcher.running) == (0, False)
