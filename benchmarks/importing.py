"""The cost of ``import bindsock``, compared with ``import asyncio``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from .figures import Row, compared
from .rounds import in_turn
from .setting import Size

_PROGRAM = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


def _seconds(statement: str) -> Callable[[], float]:
    command = [sys.executable, "-c", _PROGRAM.format(statement)]
    return lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size: Size) -> Iterator[Row]:
    sides = {
        "asyncio": _seconds("import asyncio"),
        "bindsock": _seconds("import bindsock"),
        "used": _seconds("import bindsock; bindsock.open_connection"),
    }
    costs = in_turn(sides, size.slow_rounds)
    yield compared("import bindsock", "ms", costs["bindsock"], "import asyncio", costs["asyncio"], scale=1e3, ratio_limit=1.6)
    yield compared(
        "import bindsock, and open_connection is used", "ms", costs["used"], "import asyncio", costs["asyncio"], scale=1e3
    )
