"""Measures memory: the growth of the resident set of a fresh process."""

from __future__ import annotations

import gc
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path


def resident() -> int:
    """The resident set of this process, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_a_fork(measure: Callable[[], float]) -> float:
    """Call a function in a child process, in which no freed memory of other benchmarks is left.

    :return: the function's result
    :raises RuntimeError: it failed; its exception is on standard error
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(measure()).encode())
            status = 0
        finally:
            if status:
                import traceback

                traceback.print_exc()
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = file.read()
    os.waitpid(process, 0)
    if not answer:
        raise RuntimeError("the process in which memory was measured has failed")
    return float(json.loads(answer))
