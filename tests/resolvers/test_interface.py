"""The resolver that asks by the effective interface: its questions, and the answers that it caches, and for how long."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from bindsock import NoEffectiveInterface, Preferences, TransportFactory
from bindsock.factory import connector_of
from bindsock.netmon.watcher import Watcher
from bindsock.resolvers import Answer, InterfaceResolver, Lookup, NoResolver
from bindsock.resolvers.answers import no_such_name
from bindsock.resolvers.interface import BoundResolver
from bindsock.testing import SimulatedKernel, network

from .conftest import NOWHERE, ON_WIRED, WIFI, WIRED

ADDRESSES = {socket.AF_INET: "203.0.113.9", socket.AF_INET6: "2001:db8:9::9"}


class Names:
    """A lookup with scripted answers, which records the questions."""

    def __init__(self, ttl: float = 60.0) -> None:
        self.ttl = ttl
        self.asked: list[tuple[str, socket.AddressFamily, int]] = []
        self.hold: dict[int, asyncio.Event] = {}
        self.without: set[socket.AddressFamily] = set()
        self.error: OSError | None = None

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        self.asked.append((name, family, index))
        if index in self.hold:
            await self.hold[index].wait()
        if self.error is not None:
            raise self.error
        return Answer(() if family in self.without else (ip_address(ADDRESSES[family]),), self.ttl)


@pytest.fixture
def names() -> Names:
    return Names()


def resolver(watcher: Watcher, *lookups: Lookup) -> BoundResolver:
    return InterfaceResolver(lookups=lookups).on(watcher)


async def hosts(resolve: BoundResolver, name: str = "example.com", **options: int) -> Sequence[str]:
    return [info[4][0] for info in await resolve(name, 443, type=socket.SOCK_STREAM, **options)]


async def test_each_family_is_asked_for_by_its_own_interface(kernel: SimulatedKernel, watcher: Watcher, names: Names) -> None:
    kernel.change(network(WIFI, WIRED, "default via 192.0.2.1 dev en0", "default via 2001:db8:3::1 dev en1"))
    assert await hosts(resolver(watcher, names)) == ["2001:db8:9::9", "203.0.113.9"]
    assert sorted(names.asked) == [("example.com", socket.AF_INET, 2), ("example.com", socket.AF_INET6, 3)]


async def test_a_family_without_an_interface_is_not_asked_for(kernel: SimulatedKernel, watcher: Watcher, names: Names) -> None:
    kernel.change(network(WIFI, "default via 192.0.2.1 dev en0"))
    assert await hosts(resolver(watcher, names)) == ["203.0.113.9"]
    assert names.asked == [("example.com", socket.AF_INET, 2)]


async def test_the_answer_has_the_shape_of_getaddrinfos(watcher: Watcher, names: Names) -> None:
    resolve = resolver(watcher, names)
    assert await resolve("Example.COM.", "https", family=socket.AF_INET, type=socket.SOCK_STREAM) == [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("203.0.113.9", 443))
    ]
    assert await resolve("example.com", None, family=socket.AF_INET6, proto=socket.IPPROTO_UDP) == [
        (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP, "", ("2001:db8:9::9", 0, 0, 0)),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP, "", ("2001:db8:9::9", 0, 0, 0)),
    ]
    with pytest.raises(socket.gaierror, match="unknown service"):
        await resolve("example.com", "no-such-service-here")


async def test_numbers_and_localhost_are_nobodys_business(watcher: Watcher, names: Names) -> None:
    resolve = resolver(watcher, names)
    assert await hosts(resolve, "192.0.2.77") == ["192.0.2.77"]
    assert await hosts(resolve, "2001:db8::1") == ["2001:db8::1"]
    assert sorted(await hosts(resolve, "localhost")) == ["127.0.0.1", "::1"]
    assert await hosts(resolve, "app.LocalHost.", family=socket.AF_INET) == ["127.0.0.1"]
    assert names.asked == []


async def test_answers_are_kept_as_long_as_they_say(watcher: Watcher, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    now = watcher.runtime.time()
    resolve = resolver(watcher, names)
    monkeypatch.setattr(watcher.runtime, "time", lambda: now)
    await hosts(resolve)
    await hosts(resolve)
    assert len(names.asked) == 2
    now += 59.9
    await hosts(resolve)
    assert len(names.asked) == 2
    now += 0.2
    await hosts(resolve)
    assert len(names.asked) == 4


async def test_answers_that_somebody_else_keeps_are_not_kept(watcher: Watcher, names: Names) -> None:
    names.ttl = 0.0
    resolve = resolver(watcher, names)
    await hosts(resolve)
    await hosts(resolve)
    assert len(names.asked) == 4


async def test_what_was_learnt_on_another_path_is_forgotten(kernel: SimulatedKernel, watcher: Watcher, names: Names) -> None:
    resolve = resolver(watcher, names)
    await hosts(resolve, family=socket.AF_INET)
    kernel.change(ON_WIRED)
    await hosts(resolve, family=socket.AF_INET)
    assert [index for _, _, index in names.asked] == [2, 3]


async def test_a_question_that_is_under_way_is_asked_again_when_its_path_goes(
    kernel: SimulatedKernel, watcher: Watcher, names: Names
) -> None:
    names.hold[2] = asyncio.Event()
    asking = asyncio.ensure_future(hosts(resolver(watcher, names), family=socket.AF_INET))
    while not names.asked:
        await asyncio.sleep(0)
    kernel.change(ON_WIRED)
    async with asyncio.timeout(20):
        assert await asking == ["203.0.113.9"]
    assert [index for _, _, index in names.asked] == [2, 3]


async def test_cancelling_cancels_the_question(watcher: Watcher, names: Names) -> None:
    names.hold[2] = asyncio.Event()
    asking = asyncio.ensure_future(hosts(resolver(watcher, names)))
    while len(names.asked) < 2:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_question_that_fails_as_its_task_is_cancelled_is_not_reported(watcher: Watcher) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    tasks: list[asyncio.Future[Any]] = []

    async def fails_as_it_is_cancelled(name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        tasks[0].cancel()
        raise no_such_name(name)

    resolve = resolver(watcher, fails_as_it_is_cancelled)
    tasks.append(asyncio.ensure_future(resolve("example.com", 443, family=socket.AF_INET)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    tasks.clear()
    await asyncio.sleep(0)
    gc.collect()
    assert reported == []


async def test_one_family_is_enough(watcher: Watcher, names: Names) -> None:
    names.without = {socket.AF_INET6}
    assert await hosts(resolver(watcher, names)) == ["203.0.113.9"]
    names.without = {socket.AF_INET, socket.AF_INET6}
    with pytest.raises(socket.gaierror) as error:
        await hosts(resolver(watcher, names), "other.example")
    assert error.value.errno == socket.EAI_NONAME


async def test_the_next_way_is_tried_only_where_one_does_not_exist(watcher: Watcher, names: Names) -> None:
    absent = Names()
    absent.error = NoResolver(errno.ENOENT, "not here")
    assert await hosts(resolver(watcher, absent, names), family=socket.AF_INET) == ["203.0.113.9"]
    unknowing = Names()
    unknowing.error = no_such_name("example.com")
    with pytest.raises(socket.gaierror):
        await hosts(resolver(watcher, unknowing, names), family=socket.AF_INET)
    assert len(names.asked) == 1
    with pytest.raises(NoResolver, match=r"\(not here\); give InterfaceResolver\(servers="):
        await hosts(resolver(watcher, absent), family=socket.AF_INET)


async def test_without_an_interface_it_says_so_and_never_asks_by_another_way(names: Names) -> None:
    async with TransportFactory(kernel=SimulatedKernel(NOWHERE), resolver=InterfaceResolver(lookups=[names])) as factory:
        with pytest.raises(NoEffectiveInterface, match=r"example\.com"):
            await factory.resolve("example.com", 443, type=socket.SOCK_STREAM)
    assert names.asked == []


async def test_without_an_interface_it_waits_if_that_is_preferred(names: Names) -> None:
    kernel = SimulatedKernel(NOWHERE)
    preferences = Preferences(on_no_interface="wait")
    async with TransportFactory(preferences, kernel=kernel, resolver=InterfaceResolver(lookups=[names])) as factory:
        asking = asyncio.ensure_future(factory.resolve("example.com", 443, type=socket.SOCK_STREAM))
        await asyncio.sleep(0)
        assert not asking.done()
        kernel.change(ON_WIRED)
        async with asyncio.timeout(20):
            assert len(await asking) == 2


async def test_a_factory_takes_it_by_name(kernel: SimulatedKernel) -> None:
    async with TransportFactory(kernel=kernel, resolver="interface") as factory:
        assert connector_of(factory).has_own_resolver
        assert await factory.resolve("localhost", 1, family=socket.AF_INET, type=socket.SOCK_STREAM) == [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 1))
        ]
