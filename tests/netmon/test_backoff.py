"""Delays between retries."""

from __future__ import annotations

from bindsock.netmon.backoff import Backoff, Retry
from tests.virtual_loop import VirtualLoop


def test_each_delay_is_longer_than_the_one_before_up_to_the_last() -> None:
    backoff = Backoff(0.1, 1.0, factor=3.0, jitter=0.0)
    assert [round(backoff.next(), 3) for _ in range(5)] == [0.1, 0.3, 0.9, 1.0, 1.0]


def test_after_a_reset_the_first_delay_comes_again() -> None:
    backoff = Backoff(1.0, 8.0, jitter=0.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 1.0


def test_chance_shortens_a_delay_by_no_more_than_the_jitter() -> None:
    chances = iter([0.0, 1.0, 0.5])
    backoff = Backoff(1.0, 1.0, jitter=0.5, random=lambda: next(chances))
    assert [backoff.next() for _ in range(3)] == [1.0, 0.5, 0.75]


def test_a_retry_calls_after_each_delay() -> None:
    loop = VirtualLoop()
    times: list[float] = []

    def attempt() -> None:
        times.append(loop.now - 1000.0)
        if len(times) < 3:
            retry.schedule()

    retry = Retry(loop.runtime, attempt, 1.0, 60.0)
    assert retry.schedule() == 1.0
    assert retry.scheduled
    loop.advance(100.0)
    assert times == [1.0, 3.0, 7.0]
    assert not retry.scheduled


def test_a_cancelled_retry_does_not_call_and_goes_on_with_the_next_delay() -> None:
    loop = VirtualLoop()
    times: list[float] = []
    retry = Retry(loop.runtime, lambda: times.append(loop.now - 1000.0), 1.0, 60.0)
    retry.schedule()
    retry.cancel()
    loop.advance(10.0)
    assert times == []
    retry.schedule()
    loop.advance(10.0)
    assert times == [12.0]


def test_a_retry_that_is_scheduled_again_calls_once() -> None:
    loop = VirtualLoop()
    times: list[float] = []
    retry = Retry(loop.runtime, lambda: times.append(loop.now), 1.0, 60.0)
    retry.schedule()
    retry.schedule()
    loop.advance(10.0)
    assert times == [1002.0]


def test_a_reset_retry_begins_anew() -> None:
    loop = VirtualLoop()
    retry = Retry(loop.runtime, lambda: None, 1.0, 60.0)
    retry.schedule()
    retry.schedule()
    retry.reset()
    assert not retry.scheduled
    assert retry.schedule() == 1.0
