"""Runs each benchmark in a process of its own, so that it does not inherit memory, sockets or threads of another one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bindsock.testing.lab import LabUnavailable, enter_user_namespace

from .figures import Row, skipped
from .setting import Size, Unavailable
from .suite import BENCHMARKS, Benchmark

_GOODBYE = 10.0
"""How long an interrupted process may take to end orderly, in seconds."""
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


class Failed(Exception):
    """A benchmark's process failed or was ended."""


def run(
    benchmark: Benchmark, size: Size, *, timeout: float, bindsock: Path | None = None, urgent: bool = False
) -> Generator[Row, None, None]:
    """Run a benchmark; yield its rows as they come.

    :param timeout: the time limit, in seconds
    :param bindsock: measure the bindsock of this checkout instead
    :param urgent: give it priority over all other processes
    :raises Failed: it ended with an error, which is on standard error, or reached the time limit
    """
    order = json.dumps({"benchmark": benchmark.name, "size": dataclasses.asdict(size), "urgent": urgent})
    here = Path(__file__).parent.parent
    path = [str(p) for p in (bindsock, here) if p is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])}
    # The other checkout may have benchmarks, too: import these before its folder is added to the path.
    program = (
        f"import sys; sys.path.insert(0, {str(here)!r}); import benchmarks; sys.path.pop(0); from benchmarks import isolated"
    )
    command = [sys.executable, "-P", "-c", f"{program}; isolated.carry_out(sys.argv[1])", order]
    process = timer = None
    try:
        with _held_back():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=urgent)
            timer = threading.Timer(timeout, process.terminate)
            timer.daemon = True
            timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            yield Row.from_json(json.loads(line))
        status = process.wait()
        if status != 0:
            late = f"it took more than {timeout:g} s" if not timer.is_alive() else f"it ended with status {status}"
            raise Failed(f"{benchmark.name}: {late}")
    finally:
        if timer is not None:
            timer.cancel()
        if process is not None:
            _end(process)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Interrupt at the end of the block, not within: if ``Popen()`` was interrupted, its process would be nobody's and live on.

    A process that is started within begins with the signals held back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def go_first() -> None:
    """Give this process and its children the highest priority below real-time processes."""
    os.nice(-40)
    # If the kernel groups processes by session, the priority only counts within the session (sched(7), autogroup).
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text("-20", encoding="ascii")


def _end(process: subprocess.Popen[str]) -> None:
    """End a process, unless it has ended by itself: Ctrl-C in a terminal reaches it, too."""
    process.terminate()
    try:
        process.wait(_GOODBYE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        assert process.stdout is not None
        process.stdout.close()


def interrupt(number: int, frame: FrameType | None) -> None:
    """End orderly, with all processes that were started."""
    raise KeyboardInterrupt


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """End orderly, and let nothing interrupt that: Ctrl-C in a terminal is followed by the SIGTERM of the process above."""
    for interruption in _INTERRUPTIONS:
        signal.signal(interruption, lambda number, frame: None)
    raise KeyboardInterrupt


def _measure(order: str) -> int:
    document = json.loads(order)
    benchmark = next(b for b in BENCHMARKS if b.name == document["benchmark"])
    # The rows get a descriptor of their own; other output of libraries goes to standard error.
    with open(os.dup(1), "w", encoding="utf-8") as rows:
        os.dup2(2, 1)

        def say(row: Row) -> None:
            print(json.dumps(row.to_json()), file=rows, flush=True)

        try:
            if document["urgent"]:
                go_first()
            enter_user_namespace()
            for row in benchmark.measure(Size(**document["size"])):
                say(row)
        except (Unavailable, LabUnavailable) as exc:
            say(skipped(benchmark.title, str(exc)))
    return 0


def carry_out(order: str) -> NoReturn:
    """Run the benchmark that :func:`run` names, in the process that it starts."""
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for interruption in _INTERRUPTIONS:
            signal.signal(interruption, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTIONS)
        sys.exit(_measure(order))
    sys.exit(130)
