"""What would be decided if one of the uplinks went down, worked out ahead: it is then known sooner by tenths of a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsock.model.network import Network, answers_without, taken_down
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from bindsock.model.network import Answers, IPAddress, Lookups

_MAX_TARGETS = 64
"""Not for more destinations: each is decided once for each uplink."""


class DecisionsAhead:
    """Deciders for the networks that may come next. They are found by equality: any kernel may make the network anew.

    :ivar due: when to prepare the next ones, ``None`` if nothing has changed since
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self._deciders: list[Decider] = []

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks for which something was decided ahead."""
        return tuple(decider.network for decider in self._deciders)

    def prepare(self, decider: Decider) -> None:
        """Decide for each uplink what holds once it has gone down, for what the decider has decided so far.

        :param decider: the decider of the present network
        """
        self.due = None
        network = decider.network
        self._deciders = []
        for index in sorted({index for index, _ in network.reachable}):
            down = frozenset({index})
            lookups = _without(decider.lookups, down)
            ahead = Decider(taken_down(network, down), decider.preferences, interface=decider.pin, lookups=lookups)
            for target in decider.targets()[:_MAX_TARGETS]:
                ahead.decide(target)
            self._deciders.append(ahead)

    def find(self, network: Network) -> Decider | None:
        """The decider for a network that is equal to this one, if it was foreseen."""
        return next((decider for decider in self._deciders if decider.network == network), None)

    def clear(self) -> None:
        """Forget everything."""
        self.due = None
        self._deciders.clear()


def _without(lookups: Lookups, down: frozenset[int]) -> Lookups:
    def answer(destination: IPAddress) -> Answers:
        return answers_without(lookups(destination), down)

    return answer
