"""Finds a short beginning of a sequence that still fails."""

from __future__ import annotations

from collections.abc import Callable


def shortest_prefix(length: int, fails: Callable[[int], bool], *, tries: int = 12) -> int | None:
    """Find the length by bisection.

    If the failure is random, a try may pass and the next one fail: the result has failed once, and a shorter one may fail, too.

    :param length: the length of the sequence that has failed
    :param fails: whether the beginning of this length fails, from 0 to ``length``
    :param tries: the maximum number of tries
    :return: the length of the shortest beginning that failed, ``None`` if even the whole sequence passed this time
    """
    passed = -1
    failed: int | None = None
    for _ in range(tries):
        if failed is None:
            if fails(length):
                failed = length
                continue
            return None
        if failed - passed <= 1:
            break
        middle = (passed + failed) // 2
        if fails(middle):
            failed = middle
        else:
            passed = middle
    return failed
