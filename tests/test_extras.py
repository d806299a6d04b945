"""The error messages when an optional package is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bindsock.extras import needs

EXTRAS = {
    "bindsock.anyio": ("anyio", "anyio"),
    "bindsock.integrations.aiodns": ("aiodns", "aiodns"),
    "bindsock.integrations.aiohttp": ("aiohttp", "aiohttp"),
    "bindsock.integrations.aiomqtt": ("aiomqtt", "aiomqtt"),
    "bindsock.integrations.aioquic": ("aioquic", "aioquic"),
    "bindsock.integrations.grpc": ("grpc", "grpc"),
    "bindsock.integrations.httpx": ("httpx", "anyio"),
    "bindsock.integrations.paho": ("paho", "paho"),
    "bindsock.integrations.requests": ("requests", "requests"),
    "bindsock.integrations.urllib3": ("urllib3", "urllib3"),
}
"""The extra and a package that it installs, by the module that needs it."""


def message(module: str, package: str) -> str:
    """The error message of importing the module without the package."""
    script = f"import sys; sys.modules[{package!r}] = None\ntry: import {module}\nexcept ImportError as error: print(error)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module: str) -> None:
    extra, package = EXTRAS[module]
    assert f'pip install "bindsock[{extra}]"' in message(module, package)


def test_an_extra_that_brings_two_missing_packages_is_named_for_either() -> None:
    assert 'pip install "bindsock[aiomqtt]"' in message("bindsock.integrations.aiomqtt", "paho")


def test_trio_is_named_where_it_is_first_needed() -> None:
    script = (
        "import sys; sys.modules['trio'] = None\n"
        "import bindsock.anyio\n"
        "try: bindsock.anyio.install_trio_socket_factory()\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'pip install "bindsock[trio]"' in run.stdout


def test_dnspython_is_named_where_it_is_first_needed() -> None:
    script = (
        "import sys; sys.modules['dns'] = None\nimport bindsock.resolvers\n"
        "try: bindsock.resolvers.ServerLookup(['192.0.2.53'])\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'pip install "bindsock[dns]"' in run.stdout


def test_another_error_of_an_import_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), needs("httpx"):
        raise ZeroDivisionError


def test_the_error_keeps_the_name_of_the_package() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needs("httpx"):
        import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401
    assert caught.value.name == "nowhere_to_be_found"


@pytest.mark.parametrize("module", EXTRAS)
def test_every_extra_is_one_that_can_be_installed(module: str) -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert EXTRAS[module][0] in project["optional-dependencies"]
