"""pytest fixtures for the laboratory. Import them in a ``conftest.py``: ``from bindsock.testing.lab.fixtures import lab``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import Lab, available

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A new laboratory, with the test's thread in its host. The test is skipped, with the reason, if it cannot run here."""
    obstacle = available()
    if obstacle is not None:
        pytest.skip(obstacle)
    with Lab() as laboratory, laboratory.inside():
        yield laboratory
