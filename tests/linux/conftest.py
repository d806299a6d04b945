from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.kernel.linux import LinuxKernel
    from tests.linux.namespaces import World

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def world() -> Iterator[World]:
    from tests.linux.namespaces import World

    with contextlib.ExitStack() as stack:
        try:
            made = World(stack)
        except PermissionError as refused:
            pytest.skip(f"no network namespaces here: {refused}")
        yield made


@pytest.fixture
def kernel(world: World) -> Iterator[LinuxKernel]:
    from bindsock.kernel.linux import LinuxKernel

    kernel = LinuxKernel()
    yield kernel
    kernel.close()
