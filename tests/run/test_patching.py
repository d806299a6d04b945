"""Replaced attributes can be restored, and modules are patched when they are imported."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bindsock.run.patching import AfterImport, replace

NAME = "bindsock_test_module"


class Owner:
    inherited = "class"


class Heir(Owner):
    own = "own"


def test_what_is_replaced_is_put_back() -> None:
    with contextlib.ExitStack() as undo:
        replace(undo, Heir, "own", "changed")
        replace(undo, Heir, "inherited", "changed")
        assert (Heir.own, Heir.inherited) == ("changed", "changed")
    assert (Heir.own, Heir.inherited) == ("own", "class")
    assert "inherited" not in vars(Heir)


def test_what_somebody_else_has_replaced_since_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as undo:
        replace(undo, Heir, "own", "changed")
        monkeypatch.setattr(Heir, "own", "theirs")
    assert Heir.own == "theirs"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported."""
    path = tmp_path / f"{NAME}.py"
    path.write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(NAME, None)


def test_a_module_is_patched_once_after_its_import(module: Path) -> None:
    called: list[ModuleType] = []
    with contextlib.ExitStack() as undo:
        imports = AfterImport()
        imports.install(undo)
        imports.call(NAME, called.append)
        assert called == []
        imported = importlib.import_module(NAME)
        assert called == [imported]
        assert imported.value == 1
        importlib.reload(imported)
        assert called == [imported]
    assert imports not in sys.meta_path


def test_a_module_that_is_there_is_patched_at_once(module: Path) -> None:
    called: list[ModuleType] = []
    imported = importlib.import_module(NAME)
    AfterImport().call(NAME, called.append)
    assert called == [imported]


def test_the_modules_loader_stays_what_it_is(module: Path) -> None:
    with contextlib.ExitStack() as undo:
        imports = AfterImport()
        imports.install(undo)
        imports.call(NAME, lambda module: None)
        spec = importlib.import_module(NAME).__spec__
    assert spec is not None
    assert type(spec.loader) is importlib.machinery.SourceFileLoader
    assert "exec_module" not in vars(spec.loader)


def test_a_module_that_fails_is_patched_when_it_succeeds(module: Path) -> None:
    called: list[ModuleType] = []
    module.write_text("raise ValueError\n")
    with contextlib.ExitStack() as undo:
        imports = AfterImport()
        imports.install(undo)
        imports.call(NAME, called.append)
        with pytest.raises(ValueError):  # noqa: PT011
            importlib.import_module(NAME)
        assert called == []
        module.write_text("value = 22\n")
        importlib.invalidate_caches()
        assert importlib.import_module(NAME).value == 22
        assert len(called) == 1


def test_a_module_that_is_missing_is_missing() -> None:
    with contextlib.ExitStack() as undo:
        imports = AfterImport()
        imports.install(undo)
        imports.call("bindsock_no_such_module", lambda module: None)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("bindsock_no_such_module")
