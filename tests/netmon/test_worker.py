"""Calls that wait for the system are made in a thread, while the event loop goes on."""

from __future__ import annotations

import _thread
import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.worker import Worker
from tests.waiting import until


def worker() -> Worker:
    return runtime_of(asyncio.get_running_loop()).shared(Worker)


async def test_the_loop_turns_while_a_call_waits() -> None:
    release = threading.Event()
    results: list[bool] = []
    worker().submit(release.wait, results.append)
    for _ in range(5):
        await asyncio.sleep(0)
    assert results == []
    assert worker().busy
    release.set()
    await until(lambda: results == [True])
    await until(lambda: not worker().busy)


async def test_calls_are_made_in_order_and_results_come_to_the_loops_thread() -> None:
    made: list[int] = []
    handed_over: list[tuple[int, int]] = []

    def call(number: int) -> int:
        made.append(number)
        return number

    for number in range(20):
        worker().submit(functools.partial(call, number), lambda result: handed_over.append((result, threading.get_ident())))
    await until(lambda: len(handed_over) == 20)
    assert made == list(range(20))
    assert handed_over == [(number, threading.get_ident()) for number in range(20)]


async def test_an_exception_is_handed_over() -> None:
    def call() -> None:
        raise PermissionError("no")

    results: list[object] = []
    worker().submit(call, results.append)
    await until(lambda: results)
    assert isinstance(results[0], PermissionError)


async def test_the_thread_ends_with_the_last_call() -> None:
    threads: list[int] = []
    release = threading.Event()

    def call() -> None:
        threads.append(threading.get_ident())
        release.wait()

    worker().submit(call, lambda _: None)
    await until(lambda: threads)
    assert threads[0] in sys._current_frames()
    release.set()
    await until(lambda: threads[0] not in sys._current_frames())
    assert not worker().busy


async def test_the_loop_does_not_wait_until_the_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a new thread gets a processor only after milliseconds."""
    begin = _thread.start_new_thread
    release = threading.Event()
    released: list[bool] = []

    def begin_late(function: Callable[..., object], args: tuple[Any, ...]) -> int:
        def run() -> None:
            released.append(release.wait(10))
            function(*args)

        return begin(run, ())

    monkeypatch.setattr(_thread, "start_new_thread", begin_late)
    monkeypatch.setattr(threading, "_start_new_thread", begin_late, raising=False)
    results: list[bool] = []
    worker().submit(lambda: True, results.append)
    release.set()
    await until(lambda: results)
    assert released == [True]


async def test_without_threads_the_call_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", start)
    results: list[int] = []
    worker().submit(threading.get_ident, results.append)
    await until(lambda: results)
    assert results == [threading.get_ident()]


def test_once_the_loop_is_closed_the_call_is_made_at_once() -> None:
    begun, release = threading.Event(), threading.Event()
    made: list[int] = []

    def call(number: int) -> int:
        begun.set()
        assert release.wait(20)
        made.append(number)
        return number

    async def begin() -> Worker:
        worker().submit(functools.partial(call, 1), lambda _: pytest.fail("the loop is closed"))
        return worker()

    loop = asyncio.new_event_loop()
    ours = loop.run_until_complete(begin())
    loop.close()
    assert begun.wait(20)
    threading.Timer(0.01, release.set).start()
    results: list[int] = []
    ours.submit(functools.partial(call, 2), results.append)
    assert made == [1, 2], "the earlier call was waited for"
    assert results == [2]


def test_a_process_that_exits_does_not_wait() -> None:
    program = """
import asyncio, threading
from bindsock.netmon.runtime import runtime_of
from bindsock.netmon.worker import Worker
async def main():
    runtime_of(asyncio.get_running_loop()).shared(Worker).submit(threading.Event().wait, print)
asyncio.run(main())
print("over")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("over\n", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside a thread
async def test_the_child_of_a_fork_has_no_thread_and_its_parent_goes_on() -> None:
    release = threading.Event()
    results: list[bool] = []
    worker().submit(release.wait, results.append)
    child = os.fork()
    if not child:
        os._exit(threading.active_count())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    release.set()
    await until(lambda: results == [True])
