"""Replaces attributes and restores them, and patches modules as soon as they are imported."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_MISSING = object()


def replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a module or a class until the stack is closed.

    If other code has replaced it meanwhile, it is not restored.
    """
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)

    def put_back() -> None:
        if vars(owner).get(name) is not value:
            return
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    undo.callback(put_back)


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls functions with modules as soon as they have been imported; at once if they already are."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[ModuleType], None]] = {}

    def install(self, undo: contextlib.ExitStack) -> None:
        """Watch imports until the stack is closed."""
        sys.meta_path.insert(0, self)
        undo.callback(sys.meta_path.remove, self)

    def call(self, name: str, function: Callable[[ModuleType], None]) -> None:
        """Call the function once, with the module of that name."""
        module = sys.modules.get(name)
        if module is not None:
            function(module)
        else:
            self._waiting[name] = function

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Let the other finders find the module, and call the function when it has been executed."""
        function = self._waiting.get(fullname)
        if function is None:
            return None
        spec = next((spec for spec in (_found(f, fullname, path, target) for f in sys.meta_path if f is not self) if spec), None)
        if spec is None or spec.loader is None:
            return spec
        # Only the loader's method is replaced, since importlib.resources and others inspect the loader. It serves one module.
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self._waiting.pop(fullname, None) is not None:
                function(module)

        loader.exec_module = exec_module
        return spec


def _found(finder: Any, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    find = getattr(finder, "find_spec", None)
    spec: ModuleSpec | None = find(fullname, path, target) if find is not None else None
    return spec
