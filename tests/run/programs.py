"""Runs programs under ``bindsock run`` in the laboratory's host, reads their lines, and ends them with the block."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 90.0
RUN = (sys.executable, "-m", "bindsock", "run")
PYTHON = sys.executable
ROOT = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    """The environment without the proxies of this machine."""
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**plain, "PYTHONUNBUFFERED": "1", **variables}


def importing(directory: Path) -> str:
    """The value of ``PYTHONPATH`` with a directory in front."""
    return os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))


def script(directory: Path, text: str, name: str = "program") -> str:
    """Write a program to a file."""
    path = directory / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def run(*arguments: str, options: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program and wait for its end."""
    return subprocess.run(
        [*RUN, *options, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **{"env": environment(), **more},
    )


def report_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The report that ``--quiet --report --json`` printed."""
    connections: list[dict[str, Any]] = json.loads(done.stderr)["connections"]
    return connections


class Program:
    """A running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self.errors()}"
        return line.rstrip("\n")

    def until(self, text: str) -> str:
        """The next line of its output that contains the text."""
        while text not in (line := self.line()):
            pass
        return line

    def errors(self) -> str:
        """Wait for its end. Returns its standard error."""
        self.process.wait(PATIENCE)
        self.read_all()
        return "".join(self._errors)

    def read_all(self) -> None:
        """Wait for the end of its standard error."""
        self._reader.join(PATIENCE)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send it a signal, and wait for its end. Returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors += self.process.stderr


@contextlib.contextmanager
def running(*arguments: str, options: Sequence[str] = ("--quiet",), prefix: Sequence[str] = (), **more: Any) -> Iterator[Program]:
    """Run a program, and what it starts, for the duration of a block.

    :param prefix: a command that executes ``bindsock run``, without the arguments
    """
    command = [*prefix, *RUN, *options, "--", *arguments]
    keywords = {"env": environment(), "process_group": 0, **more}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords) as process:
        program = Program(process)
        try:
            yield program
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
            # A worker that outlives its server would keep the pipe open, and its reader waiting.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            program.read_all()
