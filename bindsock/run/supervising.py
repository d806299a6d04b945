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
_AT_ONCE = 512
"""How many signals to take from the pipe at once."""


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command until it ends, and forward signals to it. Call it in the main thread.

    Signals that arrive before the command has been started are forwarded afterwards.

    :return: its exit status; negative if a signal ended it
    :raises OSError: it could not be started
    """
    with _signals() as reader:
        child = subprocess.Popen(command, env=dict(environment))
        while child.poll() is None:
            for number in os.read(reader, _AT_ONCE):
                if _is_forwarded(number):
                    child.send_signal(number)
        return child.returncode


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
def _signals() -> Iterator[int]:
    """Receive signals as bytes in a pipe, of which this is the end to read from.

    The pipe keeps a signal for the main thread whatever it does when the signal arrives, and whichever thread the kernel gives
    it to. A handler would run too late if another thread got the signal while the main thread waits for the child, or if it
    arrived just before the main thread begins to wait.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Ignored signals stay ignored, in the child, too (nohup).
    numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    waking = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _leave_it_to_the_pipe) for number in [*handled, signal.SIGCHLD]}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waking)
        os.close(reader)
        os.close(writer)


def _leave_it_to_the_pipe(number: int, frame: Any) -> None:
    """A signal without a handler in Python would not be written into the pipe."""


def _is_forwarded(number: int) -> bool:
    name = signal.Signals(number).name
    return name in _FORWARDED and not (name in _FROM_THE_TERMINAL and _in_foreground())


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
