"""Calls of the system that may take long."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from bindsock.dial.waiting import interruptible


@pytest.fixture
def _ctrl_c_is_not_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_result_or_the_error_of_the_call() -> None:
    assert interruptible(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        interruptible(divmod, 7, 0)


@pytest.mark.usefixtures("_ctrl_c_is_not_ignored")
def test_a_signal_that_does_not_reach_the_waiting_thread_is_seen() -> None:
    """So it is if it arrives just before the thread waits."""
    ended, returned = threading.Event(), []

    def call() -> None:
        time.sleep(0.3)  # until the other thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        ended.wait(30)
        returned.append(True)

    with pytest.raises(KeyboardInterrupt):
        interruptible(call)
    assert returned == []
    ended.set()
