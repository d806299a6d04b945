"""Runs a program as a child process, so that the proxy and the report outlive it."""

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
"""Signals that the terminal sends to all processes in the foreground, so that they need not be forwarded."""


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
    """End this process as a child ended: by the same signal, if it was a signal.

    :param status: the result of :func:`run_child`
    :return: the exit status, if no signal ended the child
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
    # Ignored signals stay ignored, in the child, too (nohup).
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process is in the terminal's foreground, and so receives signals from its keys."""
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
