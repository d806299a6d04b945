"""Imports modules in a thread. A first import of many modules in the event loop's thread would block the loop."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from bindsock.netmon.worker import Worker

if TYPE_CHECKING:
    from bindsock.netmon.runtime import Runtime


class Imports:
    """Imports modules for one event loop, and remembers which.

    An ``import`` statement that follows only looks the module up. A module that another thread is still importing would block it,
    so ``sys.modules`` does not tell whether a module is ready.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._worker = Worker(runtime)
        """Not the shared one, which may wait for the system."""
        self._ready: set[str] = set()

    async def ready(self, *modules: str) -> None:
        """Import modules, unless that was done before.

        :raises ImportError: one of them is missing
        """
        if self._ready.issuperset(modules):
            return
        imported = self._runtime.create_future()
        outcomes: list[Any] = []

        def hand_over(outcome: Any) -> None:
            outcomes.append(outcome)
            if not imported.done():
                imported.set_result(None)

        self._worker.submit(functools.partial(_import, modules), hand_over)
        await imported
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        self._ready.update(modules)


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)
