"""The routing tables: dumped at every reading while that is cheap, and kept for a while where there are thousands of routes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from bindsock.kernel.linux.rtnetlink import routes
from bindsock.model.network import FAMILIES, Route, RouteKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import Interface

LARGE = 4096
"""With more routes than this the specific ones are not read at every event."""
KEPT_SECONDS = 60.0
DEFAULT_LENGTH = {socket.AF_INET: 1, socket.AF_INET6: 3}
"""Up to this prefix length a route is the default or stands in for it: 0/1 and 128/1, or 2000::/3."""


class RoutingTables:
    """The routes of all tables, both families: the defaults first, else in the kernel's order."""

    def __init__(self, channel: Channel, clock: Callable[[], float]) -> None:
        """
        :param clock: monotonic seconds
        """
        self._channel = channel
        self._clock = clock
        self._parsed: dict[bytes, routes.ParsedRoute | None] = {}
        self._specific: tuple[Route, ...] = ()
        self._read_at: float | None = None
        self._of_up: tuple[frozenset[int], tuple[Route, ...]] | None = None
        self.defaults: tuple[Route, ...] = ()
        """The default routes of the last reading."""

    def keeps(self, partial: bool) -> bool:
        """Whether the next reading uses the specific routes of an earlier one, for which it needs to know the present defaults.

        :param partial: an earlier one will do, however few routes there are
        """
        if self._read_at is None or not (partial or len(self._specific) > LARGE):
            return False
        return 0 <= self._clock() - self._read_at < KEPT_SECONDS

    def read(self, interfaces: Mapping[int, Interface]) -> tuple[Route, ...]:
        """The routes, dumped.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        started = self._clock()
        found = self._dump()
        self.defaults = tuple(r for r in found if r.kind is RouteKind.UNICAST and _stands_for_default(r))
        self._specific = tuple(r for r in found if not (r.kind is RouteKind.UNICAST and _stands_for_default(r)))
        self._read_at, self._of_up = started, None
        return self.defaults + self._specific

    def kept(
        self, interfaces: Mapping[int, Interface], defaults: Iterable[tuple[Route, ...]], partial: bool
    ) -> tuple[Route, ...]:
        """The routes, with the specific ones of an earlier reading.

        :param defaults: the default route by each interface as the kernel chooses it now
        :param partial: a complete reading follows at once, so that a default that is not confirmed can wait for that
        """
        up = frozenset(interface.index for interface in interfaces.values() if interface.up)
        if self._of_up is None or self._of_up[0] != up:
            self._of_up = up, tuple(r for r in self._specific if r.kind is not RouteKind.UNICAST or r.interface in up)
        self.defaults = _brought_up_to_date(self.defaults, defaults, up if partial else frozenset())
        return self.defaults + self._of_up[1]

    def take_down(self, down: frozenset[int]) -> None:
        """Interfaces have gone down, with their routes."""
        self.defaults = tuple(r for r in self.defaults if r.interface not in down)

    def _dump(self) -> tuple[Route, ...]:
        known, self._parsed = self._parsed, {}
        for family in FAMILIES:
            # A kernel without IPv6 answers the second time with what it said the first time.
            for payload in self._channel.dump(routes.RTM_GETROUTE, routes.dump_request(family)):
                self._parsed[payload] = known[payload] if payload in known else routes.parse_route(payload)
        entries = [entry for entry in self._parsed.values() if entry is not None]
        if all(entry.routes or entry.nexthop_id is None for entry in entries):
            return tuple(route for entry in entries for route in entry.routes)
        # Where net.ipv4.nexthop_compat_mode=0 a route names its nexthop object and nothing else.
        nexthops = routes.parse_nexthops(self._channel.dump(routes.RTM_GETNEXTHOP, routes.ALL_NEXTHOPS))
        return tuple(r for entry in entries for r in entry.routes or entry.by(nexthops.get(entry.nexthop_id or 0, ())))


def _stands_for_default(route: Route) -> bool:
    return route.destination.prefixlen <= DEFAULT_LENGTH[route.family]


def _brought_up_to_date(
    old: tuple[Route, ...], chosen: Iterable[tuple[Route, ...]], doubtful: frozenset[int]
) -> tuple[Route, ...]:
    """The old defaults, corrected by what the kernel would choose now, so that where nothing has changed they stay as they are.

    By an interface for which the kernel still chooses one that was there, all that were there are taken to be there still.

    :param doubtful: interfaces that keep theirs though the kernel chooses none now: a kill switch can be in the way, and what
        counts is that the kernel does not confirm them
    """
    now = {(group[0].interface, group[0].family): group for group in chosen if group}
    replaced = {key for key, group in now.items() if group[0] not in old}
    result = [
        r for r in old if (r.interface, r.family) not in replaced and ((r.interface, r.family) in now or r.interface in doubtful)
    ]
    for key in replaced:
        result.extend(now[key])
    return tuple(result)
