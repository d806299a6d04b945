"""One runtime for each event loop: its clock, its timers, and its shared objects."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from collections.abc import Callable

import pytest

from bindsock.netmon.runtime import Runtime, runtime_of
from bindsock.reconnect.connecting import MAX_CONCURRENT_REDIALS, RedialSlots
from tests.virtual_loop import VirtualLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Counter:
    """A shared object of a loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime


def test_a_loop_has_one_runtime_and_another_loop_another(loop_factory: LoopFactory) -> None:
    first, second = loop_factory(), loop_factory()
    try:
        assert runtime_of(first) is runtime_of(first)
        assert runtime_of(first) is not runtime_of(second)
    finally:
        first.close()
        second.close()


def test_what_is_shared_on_a_loop_is_made_once(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    try:
        runtime = runtime_of(loop)
        assert runtime.shared(Counter) is runtime.shared(Counter)
        assert runtime.shared(Counter).runtime is runtime
    finally:
        loop.close()


def test_a_runtime_does_not_keep_its_loop_alive(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    runtime = runtime_of(loop)
    runtime.shared(Counter)
    gone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    assert runtime.closed


def test_what_is_asked_of_a_closed_loop_does_nothing(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    runtime = runtime_of(loop)
    assert not runtime.closed
    loop.close()
    assert runtime.closed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        runtime.call_soon(pytest.fail)
        runtime.call_later(0.0, pytest.fail).cancel()
        runtime.call_at(runtime.time(), pytest.fail).cancel()
        runtime.call_after_reading(0.0, pytest.fail).cancel()
        runtime.add_reader(sock, pytest.fail)
        runtime.remove_reader(sock)
        runtime.add_writer(sock, pytest.fail)
        runtime.remove_writer(sock)
        runtime.call_exception_handler({"message": "nobody hears this"})
        with pytest.raises(RuntimeError, match="closed"):
            runtime.create_future()


async def test_a_closed_socket_can_be_unregistered() -> None:
    runtime = runtime_of(asyncio.get_running_loop())
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.close()
    runtime.remove_reader(sock)
    runtime.remove_writer(sock)


async def test_the_clock_is_the_monotonic_one_to_the_microsecond() -> None:
    clock = runtime_of(asyncio.get_running_loop()).time
    before = time.monotonic()
    now = clock()
    assert before <= now <= time.monotonic()


async def test_calls_come_at_their_time() -> None:
    runtime = runtime_of(asyncio.get_running_loop())
    called = asyncio.get_running_loop().create_future()
    due = runtime.time() + 0.02
    runtime.call_at(due, lambda: called.set_result(runtime.time()))
    assert await called >= due - 0.002  # libuv counts milliseconds


async def test_what_arrived_while_the_loop_was_busy_is_read_before_a_deadline_that_allows_it() -> None:
    runtime = runtime_of(asyncio.get_running_loop())
    called: list[str] = []
    over = asyncio.get_running_loop().create_future()

    def busy() -> None:
        runtime.remove_reader(wakes)
        theirs.send(b"x")
        time.sleep(0.05)

    def read() -> None:
        called.append("read")
        ours.recv(1)

    ours, theirs = socket.socketpair()
    wakes, wake = socket.socketpair()
    with ours, theirs, wakes, wake:
        runtime.add_reader(ours, read)
        runtime.add_reader(wakes, busy)
        wake.send(b"x")
        runtime.call_after_reading(0.02, called.append, "cancelled").cancel()
        runtime.call_after_reading(0.02, called.append, "deadline")
        runtime.call_after_reading(0.02, over.set_result, None)
        await over
        runtime.remove_reader(ours)
    assert called == ["read", "deadline"]


def test_a_loop_with_a_clock_of_its_own_is_asked_for_the_time() -> None:
    class Slow(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return 5.0

    loop = Slow()
    try:
        assert runtime_of(loop).time() == 5.0
    finally:
        loop.close()


@pytest.mark.parametrize("clock", [time.monotonic, lambda: 5.0])
def test_a_loop_whose_clock_was_replaced_by_a_function_is_asked_too(clock: Callable[[], float]) -> None:
    loop = asyncio.SelectorEventLoop()
    loop.time = clock  # type: ignore[method-assign]
    try:
        before = clock()
        assert before <= runtime_of(loop).time() <= clock()
    finally:
        loop.close()


def test_a_virtual_loop_calls_each_timer_at_its_time() -> None:
    loop = VirtualLoop()
    called: list[float] = []
    loop.runtime.call_later(2.0, lambda: called.append(loop.now))
    loop.runtime.call_at(1001.0, lambda: called.append(loop.now))
    loop.runtime.call_later(1.5, pytest.fail).cancel()
    loop.advance(3.0)
    assert called == [1001.0, 1002.0]


class Ending:
    """Counts how often it was told that the loop is closed."""

    def __init__(self) -> None:
        self.ended = 0

    def end(self) -> None:
        self.ended += 1


def test_the_end_of_a_loop_is_told_before_it_is_closed(loop_factory: LoopFactory) -> None:
    ending = Ending()

    async def main() -> None:
        runtime_of(asyncio.get_running_loop()).at_end(ending.end)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
        assert ending.ended == 0
    assert ending.ended == 1


def test_the_end_of_a_loop_that_is_closed_by_hand_is_told_when_it_is_freed(loop_factory: LoopFactory) -> None:
    ending = Ending()

    async def main() -> None:
        runtime_of(asyncio.get_running_loop()).at_end(ending.end)

    loop = loop_factory()
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()
    assert ending.ended == 1


def test_waiting_for_the_end_of_a_loop_takes_no_task(loop_factory: LoopFactory) -> None:
    ending = Ending()

    async def main() -> set[asyncio.Task[object]]:
        runtime_of(asyncio.get_running_loop()).at_end(ending.end)
        return asyncio.all_tasks() - {asyncio.current_task()}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == set()


def test_a_timer_that_is_kept_does_not_keep_its_loop_alive(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    timer = runtime_of(loop).call_later(60.0, pytest.fail)
    gone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    timer.cancel()


def test_the_slots_for_redials_are_given_in_order_and_do_not_keep_their_loop_alive(loop_factory: LoopFactory) -> None:
    begun: list[int] = []
    at_once: list[int] = []

    async def hold(slots: RedialSlots, number: int) -> None:
        async with slots:
            begun.append(number)
            at_once.append(len(begun) - len(ended))
            await asyncio.sleep(0)
            ended.append(number)

    async def main() -> None:
        slots = runtime_of(asyncio.get_running_loop()).shared(RedialSlots)
        await asyncio.gather(*(hold(slots, number) for number in range(3 * MAX_CONCURRENT_REDIALS)))

    ended: list[int] = []

    loop = loop_factory()
    gone = weakref.ref(loop)
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    assert begun == list(range(3 * MAX_CONCURRENT_REDIALS))
    assert max(at_once) == MAX_CONCURRENT_REDIALS


async def test_a_slot_is_not_lost_with_a_redial_that_is_cancelled_while_it_waits() -> None:
    slots = runtime_of(asyncio.get_running_loop()).shared(RedialSlots)

    async def hold() -> None:
        async with slots:
            await asyncio.sleep(0)

    for _ in range(3):
        tasks = [asyncio.create_task(hold(), name="redial") for _ in range(3 * MAX_CONCURRENT_REDIALS)]
        await asyncio.sleep(0)
        for task in tasks[MAX_CONCURRENT_REDIALS::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(task.cancelled() for task in tasks) == MAX_CONCURRENT_REDIALS
    async with asyncio.timeout(20):
        await asyncio.gather(*(hold() for _ in range(2 * MAX_CONCURRENT_REDIALS)))
