"""Processes that read commands as lines of JSON, and answer each with a line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bindsock.testing.lab._child import Child

_ROOT = Path(__file__).parents[2]


class Process(Child):
    """A process that runs a module of this package, in the network namespace of the thread that starts it.

    :param module: its name
    :param errors: a file for its standard error
    """

    def __init__(self, module: str, *arguments: str, errors: int) -> None:
        command = [sys.executable, "-m", f"tests.chaos.{module}", *arguments]

        def start(commands: int, answers: int) -> tuple[int, int]:
            # In its own session the process gets no Ctrl-C from the terminal: the parent ends it.
            self._program = subprocess.Popen(
                command, stdin=commands, stdout=answers, stderr=errors, cwd=_ROOT, start_new_session=True
            )
            return self._program.pid, os.pidfd_open(self._program.pid)  # type: ignore[attr-defined, unused-ignore]  # Linux only

        super().__init__(module, start)

    def close(self) -> None:
        super().close()
        self._program.wait()

    def wait_until_ready(self) -> None:
        """Wait until the process accepts commands."""
        self._line()


async def obeying(obey: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Report that the process is ready, and carry out commands until standard input ends."""
    commands = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say({"ready": True})
    while line := await commands.readline():
        _say(await obey(json.loads(line)))
    transport.close()


def _say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")
