"""The laboratory's processes. They run in a namespace, get commands as lines of JSON, and end at the end of their input.

The input ends when the process that holds the laboratory ends, even in a crash. A parent-death signal would not do: it is sent
when the *thread* that started the child ends (``prctl(2)``), and a laboratory may be made in a worker thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PATIENCE = 20.0
"""How long to wait for a child's answer, in seconds: far longer than it takes on a busy machine."""


class Helper:
    """A process that forks for each child, since a fork takes a tenth of the time that an interpreter takes to start."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        # Isolated, and without importing the package, it starts four times faster.
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("_helper.py")), str(other.fileno())]
        with other:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,  # as its children, which Ctrl-C does not end either
            )

    def child(self, namespace: int, script: str, *arguments: str, descriptors: Sequence[int] = ()) -> Child:
        """Start a process in a namespace.

        :param namespace: a descriptor that refers to the namespace
        :param script: the module in this folder whose ``run`` it calls
        :param descriptors: the descriptors that it inherits
        """
        return Child(script, lambda *standard: self._start(script, arguments, [namespace, *standard, *descriptors]))

    def _start(self, script: str, arguments: Sequence[str], descriptors: Sequence[int]) -> tuple[int, int]:
        """Start a script.

        :param descriptors: those of the namespace, of standard input and output, and of what the script inherits
        :return: the process's number, and a descriptor that refers to it
        :raises RuntimeError: the helper has ended
        """
        with self._lock:
            try:
                request = json.dumps({"script": script, "arguments": arguments}).encode()
                socket.send_fds(self._socket, [request], list(descriptors))
                ready, _, _ = select.select([self._socket], [], [], _PATIENCE)
                answer, received, _, _ = socket.recv_fds(self._socket, 1 << 12, 1) if ready else (b"", [], 0, None)
            except ConnectionError:
                answer, received = b"", []
            if not answer:
                raise RuntimeError("the helper of the laboratory's processes has ended")
            os.set_inheritable(received[0], False)
            return json.loads(answer), received[0]

    def close(self) -> None:
        """End the helper, and reap it."""
        self._socket.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_shared: list[Helper] = []


@contextlib.contextmanager
def helper() -> Iterator[Helper]:
    """The helper that this process's laboratories share, or a new one if they share none."""
    if _shared:
        yield _shared[-1]
        return
    with contextlib.closing(Helper()) as own:
        yield own


@contextlib.contextmanager
def shared_helper() -> Iterator[None]:
    """Let all laboratories of this process share a helper, which makes the second and later ones a third faster."""
    with contextlib.closing(Helper()) as own:
        _shared.append(own)
        try:
            yield
        finally:
            _shared.remove(own)


class Child:
    """A process that gets commands and answers them.

    :param name: what errors call it
    :param start: starts it with the given standard input and output, and returns its number and a descriptor that refers to it
    """

    def __init__(self, name: str, start: Callable[[int, int], tuple[int, int]]) -> None:
        self._name = name
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self.pid, self._process = start(commands, answers)
        except BaseException:
            os.close(self._commands)
            os.close(self._answers)
            raise
        finally:
            os.close(commands)
            os.close(answers)
        self._unread = b""
        self._closed = False

    def tell(self, **command: Any) -> None:
        """Send a command that has no answer."""
        try:
            os.write(self._commands, json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"the process {self._name} has ended") from None

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(**command)
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _line(self) -> bytes:
        deadline = time.monotonic() + _PATIENCE
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(f"no answer from the process {self._name}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self._kill()
        self.close()

    def close(self) -> None:
        """End the process, and wait for its end. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        os.close(self._commands)
        if not self._ended(_PATIENCE):
            self._kill()
            self._ended(_PATIENCE)
        os.close(self._answers)
        os.close(self._process)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)  # type: ignore[attr-defined, unused-ignore]  # Linux only

    def _ended(self, seconds: float) -> bool:
        """Whether the process ends within the time."""
        return bool(select.select([self._process], [], [], seconds)[0])
