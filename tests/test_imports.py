"""What importing bindsock loads, and rules that hold for every module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bindsock

OPTIONAL = (
    "aiodns", "aiohttp", "aiomqtt", "aioquic", "anyio", "dns", "grpc", "httpcore", "httpx", "paho", "pycares", "pytest",
    "requests", "rich", "trio", "urllib3", "uvloop",
)  # fmt: skip
_STARTS_A_TASK = ("create_task", "ensure_future", "Task")


def loaded(module: str) -> set[str]:
    """The top-level packages that importing the module loads, in a fresh interpreter."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "bindsock",
        "bindsock.blocking",
        "bindsock.cli",
        "bindsock.integrations.stdlib",
        "bindsock.proxy",
        "bindsock.testing.simulated",
    ],
)
def test_nothing_optional_is_imported(module: str) -> None:
    assert loaded(module).isdisjoint(OPTIONAL)


def test_the_anyio_face_does_not_need_trio() -> None:
    assert "trio" not in loaded("bindsock.anyio")


@pytest.mark.parametrize("library", ["aiodns", "aiohttp", "aioquic", "grpc", "httpx", "urllib3"])
def test_an_integration_imports_its_library_and_not_the_others(library: str) -> None:
    modules = loaded(f"bindsock.integrations.{library}")
    assert library in modules
    assert modules.isdisjoint({"aiohttp", "aioquic", "grpc", "httpx"} - {library})


@pytest.mark.parametrize("module", sorted(Path(bindsock.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_every_task_has_a_name(module: Path) -> None:
    """So ``asyncio.all_tasks()`` and, since Python 3.14, ``python -m asyncio ps`` show which tasks are bindsock's."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    starting = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in _STARTS_A_TASK]
    assert [ast.unparse(call) for call in starting if not any(keyword.arg == "name" for keyword in call.keywords)] == []


def test_importing_bindsock_loads_nothing_that_is_not_used_yet() -> None:
    script = "import sys, bindsock; print(*(name for name in sys.modules if name.startswith(('bindsock', 'asyncio'))))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["bindsock"]


def test_every_public_name_is_found_and_listed() -> None:
    assert sorted(bindsock.__all__) == sorted(bindsock._MODULES)
    assert set(bindsock.__all__) <= set(dir(bindsock))
    for name in bindsock.__all__:
        assert getattr(bindsock, name) is getattr(importlib.import_module(bindsock._MODULES[name]), name)


def test_type_checkers_see_each_public_name_where_it_is_imported_from() -> None:
    tree = ast.parse(Path(bindsock.__file__).read_text())
    (checking,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in checking.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == bindsock._MODULES


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'open_conection'"):
        bindsock.open_conection  # type: ignore[attr-defined]  # noqa: B018


def test_a_plain_connection_imports_neither_datagrams_nor_replacement_nor_resolvers() -> None:
    script = "import sys, bindsock; bindsock.open_connection; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    unneeded = ("bindsock.datagram", "bindsock.reconnect", "bindsock.resolvers", "bindsock.eventloop")
    assert [name for name in run.stdout.split() if name.startswith(unneeded)] == []
