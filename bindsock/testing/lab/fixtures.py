"""The laboratory as pytest fixtures. ``from bindsock.testing.lab.fixtures import lab`` in a ``conftest.py`` makes it known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import Lab, available

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A fresh laboratory, with the test's thread in its host. Skips where the laboratory cannot run, and says why."""
    obstacle = available()
    if obstacle is not None:
        pytest.skip(obstacle)
    with Lab() as laboratory, laboratory.inside():
        yield laboratory
