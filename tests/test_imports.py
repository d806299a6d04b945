"""What importing bindsock brings with it, and what every module of it does."""

from __future__ import annotations

import ast
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
    """``asyncio.all_tasks()`` and, since Python 3.14, ``python -m asyncio ps`` then tell a program's tasks from ours."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    starting = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in _STARTS_A_TASK]
    assert [ast.unparse(call) for call in starting if not any(keyword.arg == "name" for keyword in call.keywords)] == []
