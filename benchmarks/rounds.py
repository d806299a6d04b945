"""Measures several sides in turn, so that other load on the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Call each side once in each round; the order is reversed from one round to the next.

    :param sides: functions that do something and return its cost
    :param warm_up: the number of rounds before those that count
    :return: the costs of the rounds, by side; values at the same position belong to the same round
    """
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + warm_up):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            cost = sides[name]()
            if number >= warm_up:
                costs[name].append(cost)
    return costs
