"""What would be decided if one of the uplinks went down, worked out ahead: it is then known sooner by tenths of a millisecond."""

from __future__ import annotations

from bindsock.model.network import Network, taken_down
from bindsock.routing.effective import Decider

_MAX_ROUTES = 1000
_MAX_TARGETS = 64
"""With more routes nothing is decided ahead, and not for more destinations: each is decided once for each uplink."""


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
        if len(network.routes) > _MAX_ROUTES:
            return
        for index in sorted({index for index, _ in network.reachable}):
            ahead = Decider(taken_down(network, frozenset({index})), decider.preferences, interface=decider.pin)
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
