"""The supervision of a child process, and the signals that it forwards."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from bindsock.run import supervising

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

SLEEPING = ["sleep", "5"]
FORWARDED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the signals of a terminal's keys are forwarded."""
    monkeypatch.setattr(supervising, "_in_foreground", lambda: False)


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """So that they are as in a program that a shell starts, even if the tests are started with signals ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in FORWARDED}
    gc.collect()  # of other tests
    descriptors = len(os.listdir("/dev/fd"))
    yield
    assert len(os.listdir("/dev/fd")) == descriptors
    for number, handler in before.items():
        assert signal.signal(number, handler) is signal.default_int_handler


def run(*command: str) -> int:
    return supervising.run_child(command, os.environ)


@pytest.mark.parametrize("number", FORWARDED)
def test_a_signal_that_arrives_while_the_child_is_started_reaches_it(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def slow(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = start(*arguments, **options)
        os.kill(os.getpid(), number)
        return child

    monkeypatch.setattr(subprocess, "Popen", slow)
    assert run(*SLEEPING) == -number


def test_a_signal_that_another_thread_receives_reaches_the_child(tmp_path: pathlib.Path) -> None:
    """The kernel may give a signal to any thread that does not block it."""
    started = tmp_path / "started"
    os.mkfifo(started)

    def interrupt() -> None:
        started.read_text()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        assert run("sh", "-c", f"echo > {shlex.quote(str(started))}; exec sleep 5") == -signal.SIGINT
    finally:
        other.join()


def test_a_signal_that_is_ignored_stays_so_in_the_child() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("sh", "-c", "kill -HUP $$; exit 7") == 7
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def test_the_status_is_known_even_if_the_end_of_children_is_ignored() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run("sh", "-c", "exit 7") == 7
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_signals_are_as_before_if_the_child_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        run("/bindsock-no-such-program")
