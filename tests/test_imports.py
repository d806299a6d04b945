"""What importing bindsock brings with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIONAL = ("aiohttp", "aioquic", "anyio", "dns", "httpcore", "httpx", "rich", "trio", "uvloop", "pytest")


def loaded(module: str) -> set[str]:
    """The top-level packages that importing the module loads, in a fresh interpreter."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["bindsock", "bindsock.cli", "bindsock.proxy", "bindsock.testing.simulated"])
def test_nothing_optional_is_imported(module: str) -> None:
    assert loaded(module).isdisjoint(OPTIONAL)


def test_the_anyio_face_does_not_need_trio() -> None:
    assert "trio" not in loaded("bindsock.anyio")


@pytest.mark.parametrize("library", ["aiohttp", "aioquic", "httpx"])
def test_an_integration_imports_its_library_and_not_the_others(library: str) -> None:
    modules = loaded(f"bindsock.integrations.{library}")
    assert library in modules
    assert modules.isdisjoint({"aiohttp", "aioquic", "httpx"} - {library})
