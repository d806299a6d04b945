"""``Popen`` in a covered program."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bindsock
from bindsock.run.environment import VARIABLE
from bindsock.run.programs import POSITIONAL

ISOLATED = [sys.executable, "-I", "-c", ""]
PRINT = [sys.executable, "-c", f"import os; print({VARIABLE!r} in os.environ)"]
PARAMETERS = tuple(inspect.signature(subprocess.Popen.__init__).parameters)


@pytest.fixture
def covered() -> Iterator[None]:
    with bindsock.install():
        yield


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script of an isolated interpreter, in a directory beneath the current one."""
    tool = tmp_path / "beneath" / "tool"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable} -I\n")
    tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tool


def test_the_positional_arguments_are_those_of_popen() -> None:
    assert PARAMETERS[1 : len(POSITIONAL) + 1] == POSITIONAL


@pytest.mark.parametrize(
    ("positional", "options"),
    [
        ((["./tool"],), {"cwd": "beneath"}),
        ((["./tool"],), {"cwd": b"beneath"}),
        ((["./tool"],), {"cwd": Path("beneath")}),
        (("./tool",), {"cwd": "beneath"}),
        ((Path("beneath/tool"),), {"cwd": None}),
        ((["./tool"], -1, None, None, None, None, None, True, False, "beneath"), {}),
        ((["tool"],), {"cwd": "beneath", "env": {"PATH": "."}}),
        ((["tool"],), {"cwd": "beneath", "env": {b"PATH": b""}}),
        ((["x"], -1, "beneath/tool"), {}),
        ((["x", *ISOLATED[1:]], -1, sys.executable), {}),
        ((["x", *ISOLATED[1:]],), {"executable": os.fsencode(sys.executable)}),
        ((iter(ISOLATED),), {}),
        ((), {"args": map(str, ISOLATED)}),
        ((tuple(ISOLATED), -1, None, None, None, None, None, True, False, None, {}), {}),
    ],
)
@pytest.mark.usefixtures("covered", "tool")
def test_an_isolated_interpreter_is_not_started_however_it_is_named(positional: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(bindsock.BindFailed, match="not started: python -I does not load bindsock"):
        subprocess.run(*positional, check=True, **options)


@pytest.mark.parametrize(
    ("positional", "options"),
    [
        ((PRINT,), {}),
        ((iter(PRINT),), {}),
        ((), {"args": iter(PRINT), "env": {}}),
        ((PRINT, -1, None, None, subprocess.PIPE, None, None, True, False, None, {}), {}),
        ((PRINT, -1, sys.executable), {"cwd": "/", "env": {}}),
    ],
)
@pytest.mark.usefixtures("covered")
def test_an_interpreter_is_covered_however_it_is_named(positional: tuple[Any, ...], options: dict[str, Any]) -> None:
    if len(positional) < PARAMETERS.index("stdout"):
        options = {"stdout": subprocess.PIPE, **options}
    with subprocess.Popen(*positional, **options) as process:
        assert process.communicate(timeout=60) == (b"True\n", None)


@pytest.mark.usefixtures("covered")
def test_what_the_program_passes_stays_as_it_is() -> None:
    with subprocess.Popen(args := tuple(PRINT), stdout=subprocess.DEVNULL) as process:
        assert process.args is args


@pytest.mark.parametrize(
    ("positional", "options"), [((), {}), ((PRINT,), {"args": PRINT}), ((None,), {}), ((PRINT,), {"nope": 1})]
)
def test_wrong_arguments_are_the_systems_own_error(positional: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as without:
        subprocess.Popen(*positional, **options)
    with bindsock.install(), pytest.raises(TypeError) as within:
        subprocess.Popen(*positional, **options)
    assert str(within.value) == str(without.value)
