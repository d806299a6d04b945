"""Prefetched decisions: decides ahead for the case that an uplink goes down, which makes the move faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.model.network import Network, answers_without, taken_down
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from bindsock.model.network import Answers, IPAddress, Lookups

_MAX_TARGETS = 64
"""How many destinations are prefetched, each once for each uplink."""


class PrefetchedDecisions:
    """Deciders for the networks that may come next. They are found by equality, so they work for every kernel.

    :ivar due: when to prepare the next ones, in monotonic seconds; ``None`` if nothing has changed since
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self._present: Decider | None = None
        self._decided = 0
        self._deciders: list[Decider] = []

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks for which decisions were prefetched."""
        return tuple(decider.network for decider in self._deciders)

    def prepare(self, decider: Decider) -> None:
        """For each uplink, decide for the network without it, for all targets that the decider has decided so far.

        :param decider: the decider of the present network
        """
        self.due = None
        if decider is not self._present:
            self._present, self._decided, self._deciders = decider, 0, _deciders_ahead(decider)
        targets = decider.targets()
        for ahead in self._deciders:
            for target in targets[self._decided : _MAX_TARGETS]:
                ahead.path(target)
        self._decided = len(targets)

    def lacks_targets(self, decider: Decider) -> bool:
        """Whether the decider has decided for other targets since :meth:`prepare`, and there is room for them."""
        return decider.decided != self._decided < _MAX_TARGETS and decider is self._present

    def find(self, network: Network, latest: Decider) -> Decider | None:
        """The prefetched decider for an equal network, if there is one.

        :param latest: the decider of the last reading; the answers may have changed since :meth:`prepare`
        """
        if self._present is None or self._present.lookups != latest.lookups:
            return None
        return next((decider for decider in self._deciders if decider.network == network), None)

    def clear(self) -> None:
        """Drop all prefetched decisions."""
        self.due = self._present = None
        self._deciders = []


def _deciders_ahead(decider: Decider) -> list[Decider]:
    """One decider for each uplink, for the network without it."""
    network, found = decider.network, []
    for index in sorted({index for index, _ in network.reachable}):
        down = frozenset({index})
        lookups = _without(decider.lookups, down)
        found.append(Decider(taken_down(network, down), decider.preferences, interface=decider.pin, lookups=lookups))
    return found


def _without(lookups: Lookups, down: frozenset[int]) -> Lookups:
    def answer(destination: IPAddress) -> Answers:
        return answers_without(lookups(destination), down)

    return answer
