"""Runs a program as a child process, for what must still be there when it has ended: the proxy, and the report."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGWINCH")
_FROM_THE_TERMINAL = ("SIGINT", "SIGQUIT", "SIGWINCH")
"""What the terminal sends to every process in the foreground, so that the program has it already."""


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command until it ends, and forward signals to it.

    :return: its exit status; negative if a signal ended it
    :raises OSError: it could not be started
    """
    with _forwarding() as children:
        child = subprocess.Popen(command, env=dict(environment))
        children.append(child)
        return child.wait()


def end_like(status: int) -> int:
    """End as a child process has ended: by the same signal, if it was one.

    :param status: as :func:`run_child` returns it
    :return: the exit status, where no signal ended the child
    """
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        return 128 - status  # the signal is blocked
    return status


@contextlib.contextmanager
def _forwarding() -> Iterator[list[subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: Any) -> None:
        if signal.Signals(number).name in _FROM_THE_TERMINAL and _in_foreground():
            return
        for child in children:
            child.send_signal(number)

    numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    # What is ignored stays so, for the child as well (nohup).
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether the terminal's keys send their signals to this process."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
