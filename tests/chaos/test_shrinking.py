"""The shortest beginning that still fails."""

from __future__ import annotations

import pytest

from tests.chaos.shrinking import shortest_prefix


@pytest.mark.parametrize("enough", [0, 1, 7, 50, 99, 100])
def test_it_is_found(enough: int) -> None:
    assert shortest_prefix(100, lambda length: length >= enough) == enough


def test_what_does_not_fail_again_has_none() -> None:
    tried: list[int] = []

    def passes(length: int) -> bool:
        tried.append(length)
        return False

    assert shortest_prefix(100, passes) is None
    assert tried == [100]


def test_there_are_no_more_tries_than_are_asked_for() -> None:
    tried: list[int] = []

    def fails(length: int) -> bool:
        tried.append(length)
        return length >= 300

    assert shortest_prefix(1000, fails, tries=4) == 374
    assert len(tried) == 4
