"""Work is spread over several turns of the loop."""

from __future__ import annotations

import asyncio

from bindsock.netmon.runtime import Runtime, runtime_of
from bindsock.netmon.turns import BUDGET, CallbackBudget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def running() -> Runtime:
    return runtime_of(asyncio.get_running_loop())


async def test_a_little_work_is_done_at_once() -> None:
    done: list[int] = []
    pacer = CallbackBudget(running(), clock=Clock())
    for number in range(10):
        pacer.do(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(10))


async def test_much_work_leaves_the_loop_its_turns() -> None:
    clock = Clock()
    turns: list[int] = []
    turn = 0
    pacer = CallbackBudget(running(), clock=clock)

    def work() -> None:
        clock.now += 2 * BUDGET
        turns.append(turn)

    for _ in range(20):
        pacer.do(work)
    while len(turns) < 20:
        turn += 1
        assert turn < 100
        await asyncio.sleep(0)
    assert turns == sorted(turns)
    assert max(turns.count(turn) for turn in turns) == 1


async def test_work_that_makes_work_is_done_in_order() -> None:
    done: list[str] = []
    pacer = CallbackBudget(running(), clock=Clock())

    def first() -> None:
        pacer.do(lambda: done.append("second"))
        done.append("first")

    pacer.do(first)
    await asyncio.sleep(0)
    assert done == ["first", "second"]
