"""The laboratory's processes: started in a namespace, told what to do by lines of JSON, ended by the end of their input.

That end comes by itself when the process that holds the laboratory dies, however it dies. A parent-death signal would do it too,
but it is sent when the *thread* that started the child ends (``prctl(2)``), and a laboratory may be made in a worker thread.
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
"""Seconds to wait for a child's answer: far more than it takes on a busy machine."""


class Child:
    """A process in a namespace.

    :param namespace: a descriptor that holds the namespace
    :param script: the file beside this one to run; it is run by itself, without the package, since that starts four times faster
    :param descriptors: what it inherits
    """

    def __init__(self, namespace: int, script: str, *arguments: str, descriptors: Sequence[int] = ()) -> None:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name(script)), *arguments]
        with inside(namespace):
            # A session of its own keeps a terminal's Ctrl-C from it: it is for the laboratory's holder, who ends this orderly.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=descriptors, start_new_session=True
            )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **command: Any) -> None:
        """Give a command that has no answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"the laboratory's {self._process.args!r} has ended with status {self._process.wait()}") from None

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
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
        """End it without a chance to say goodbye, and reap it."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it and reap it. Closing twice is harmless."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
