"""The laboratory's processes. They run in a namespace, get commands as lines of JSON, and end at the end of their input.

The input ends when the process that holds the laboratory ends, even in a crash. A parent-death signal would not do: it is sent
when the *thread* that started the child ends (``prctl(2)``), and a laboratory may be made in a worker thread.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._namespaces import inside

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE = 20.0
"""How long to wait for a child's answer, in seconds: far longer than it takes on a busy machine."""


class Child:
    """A process in a namespace.

    :param namespace: a descriptor that refers to the namespace
    :param script: the file in this folder to run; it runs without importing the package, which starts four times faster
    :param descriptors: the descriptors that it inherits
    """

    def __init__(self, namespace: int, script: str, *arguments: str, descriptors: Sequence[int] = ()) -> None:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name(script)), *arguments]
        with inside(namespace):
            # A session of its own, so that Ctrl-C in the terminal does not end it: the laboratory's process ends it orderly.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=descriptors, start_new_session=True
            )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **command: Any) -> None:
        """Send a command that has no answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"the laboratory's {self._process.args!r} has ended with status {self._process.wait()}") from None

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(**command)
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _PATIENCE
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(f"no answer from the laboratory's {self._process.args!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """Kill the process, and reap it."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End the process, and reap it. Closing twice is harmless."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
