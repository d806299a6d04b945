"""Finds a short beginning of a sequence that still fails."""

from __future__ import annotations

from collections.abc import Callable


def shortest_prefix(length: int, fails: Callable[[int], bool], *, tries: int = 12) -> int | None:
    """Bisect, as far as failing is a matter of how much is done.

    What fails by chance may pass in one try and fail in the next: the result has failed once, and a shorter one may, too.

    :param length: of the sequence that has failed
    :param fails: tries the first so many, from 0 to ``length``
    :param tries: how often to try, at the most
    :return: how many of the first are enough, ``None`` if all of them have passed this time
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
