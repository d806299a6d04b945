"""The default of one address family: which interface carries what goes anywhere, beneath the tunnels.

Theory of operation. The system's own word comes first: the unscoped default routes in the order in which the system itself would
use them (Linux: table main ahead of others, then the metric; Darwin has at most one). If the first that works is no tunnel's,
that is the answer. If it is a tunnel's, the tunnel may say over which interface it runs (its *delegate*, Darwin only), and is
believed if that interface is usable: NetworkExtension sets the delegate once, when the tunnel is made, and nobody corrects it
when the network moves. Otherwise all usable interfaces are ranked.

An interface is usable if it is up and has carrier, is neither tunnel nor loopback, is not kept out by the preferences, has an
address of the family from which one can talk beyond the link, and if the kernel itself has confirmed that a socket bound to it
finds a default route. The last is asked of the kernel since policy rules and error routes (``unreachable default`` of a VPN's
kill switch matches without a look at the device: linux net/ipv4/fib_trie.c) can take a default away that the tables show.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias

from bindsock.model.decision import Basis, Candidate, Decision
from bindsock.model.network import Interface, InterfaceKind, IPNetwork, Network, Route, RouteKind
from bindsock.model.preferences import is_expensive
from bindsock.routing.prefixes import is_default_in_disguise
from bindsock.routing.usable import Refusal, Stage, is_tunnel, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsock.model.preferences import Preferences

_TABLE_RANK = {254: 0, 253: 1}
"""Linux looks into ``main`` and then into ``default``, unless a rule sends it elsewhere."""

_HALF = {4: 1, 6: 3}
"""The longest prefix that may stand for a default route: ``0/1``, ``2000::/3``."""

_KIND_RANK = {InterfaceKind.WIRED: 0, InterfaceKind.WIFI: 1, InterfaceKind.CELLULAR: 3}
_OTHER_RANK = 2
_KIND_NAME = {InterfaceKind.WIRED: "wired", InterfaceKind.WIFI: "Wi-Fi", InterfaceKind.CELLULAR: "cellular"}

_Key: TypeAlias = tuple[bool, bool, int, int, int, int]


def order_of(route: Route) -> tuple[int, int]:
    """What the system orders its unscoped routes to one destination by; equal ones stay in the order of its list."""
    return (_TABLE_RANK.get(route.table, 2), route.metric)


def in_table(route: Route) -> str:
    """`` in table 52``, nothing for the main table."""
    return "" if route.table == 254 else f" in table {route.table}"


class Defaults:
    """The default routes of one family of a network, and what they decide."""

    def __init__(self, network: Network, family: socket.AddressFamily, preferences: Preferences) -> None:
        self.interfaces = network.interfaces
        self.family = family
        self.preferences = preferences
        self._reachable = network.reachable
        self._unscoped: list[Route] = []
        """In the order in which the system itself would use them."""
        self._scoped: list[Route] = []
        self._errors: list[Route] = []
        """Default routes that refuse what they match."""
        self._halves: list[Route] = []
        """Routes of uplinks that stand for a default route."""
        self._caught: dict[int, list[Route]] = {}
        """The specific routes of each tunnel."""
        self._read(network)
        self._best: dict[int, Route] = {}
        self._with_gateway: set[int] = set()
        self._position: dict[int, int] = {}
        self._keys: dict[int, _Key] = {}
        self._summarise()
        self.disguised = {
            index
            for index, routes in self._caught.items()
            if is_default_in_disguise((route.destination for route in routes), routes[0].destination.version)
        }
        """The tunnels whose specific routes are a default in disguise."""
        self._notes: list[str] = []
        self._refusals = {index: self._refusal(index, interface) for index, interface in self.interfaces.items()}
        self.index: int | None = None
        """The interface that was taken."""
        self.decision = self._decide()

    def _read(self, network: Network) -> None:
        version = 4 if self.family == socket.AF_INET else 6
        tunnels = {index for index, interface in self.interfaces.items() if is_tunnel(interface) or interface.last_resort}
        for route in network.routes:
            if route.destination.version != version:
                continue
            if route.destination.prefixlen == 0:
                if route.kind is not RouteKind.UNICAST:
                    self._errors.append(route)
                elif route.interface in self.interfaces:
                    (self._scoped if route.scoped else self._unscoped).append(route)
            elif route.interface in tunnels and route.kind is RouteKind.UNICAST and not route.scoped:
                self._caught.setdefault(route.interface, []).append(route)
            elif route.destination.prefixlen <= _HALF[version] and route.kind is RouteKind.UNICAST:
                self._halves.append(route)
        self._unscoped.sort(key=order_of)

    def _summarise(self) -> None:
        for position, route in enumerate(self._unscoped):
            if route.interface is not None:
                self._position.setdefault(route.interface, position)
        for route in (*self._unscoped, *self._scoped, *sorted(self._halves, key=order_of)):
            if route.interface is not None:
                self._best.setdefault(route.interface, route)
                if route.gateway is not None:
                    self._with_gateway.add(route.interface)

    # An interface by itself.

    def _refusal(self, index: int, interface: Interface) -> Refusal | None:
        """Why the interface is no uplink of the family, whether or not its default has a gateway."""
        refusal = unfit(interface, self.family, self.preferences)
        if refusal is not None and refusal.stage is Stage.TUNNEL:
            catches = self._catches(index)
            return Refusal(Stage.TUNNEL, f"{refusal.reason} ({catches})") if catches else refusal
        if refusal is not None:
            return refusal
        if (index, self.family) in self._reachable:
            return None
        best = self._best.get(index)
        if best is not None and best.is_default:
            return Refusal(Stage.UNCONFIRMED, "the kernel finds no default route by it for a bound socket")
        return Refusal(Stage.NO_DEFAULT, "has no default route")

    def _catches(self, index: int) -> str:
        """By which routes unbound traffic goes into the tunnel."""
        best = self._best.get(index)
        if best is not None and not best.scoped:
            return f"default route{in_table(best)}"
        routes = self._caught.get(index, [])
        if index in self.disguised:
            largest = sorted(routes, key=lambda route: route.destination.prefixlen)[:2]
            named = " and ".join(str(route.destination) for route in largest)
            return f"{named}{in_table(largest[0])}: a default in disguise"
        return ""

    def _ranked_refusal(self, index: int) -> Refusal | None:
        """Why the interface is no candidate of the ranking, in which nobody vouches for it."""
        refusal = self._refusals[index]
        best = self._best.get(index)
        if refusal is not None or best is None or index in self._with_gateway:
            return refusal
        interface = self.interfaces[index]
        # The default of a modem or of ppp has no gateway; neither has that of a bridge to virtual machines, which is no uplink.
        if interface.kind is InterfaceKind.CELLULAR or interface.last_resort:
            return None
        return Refusal(Stage.NO_GATEWAY, "its default route has no gateway")

    def _key(self, index: int) -> _Key:
        """What the usable interfaces are ranked by, least first."""
        key = self._keys.get(index)
        if key is None:
            key = self._keys[index] = self._make_key(index)
        return key

    def _make_key(self, index: int) -> _Key:
        interface = self.interfaces[index]
        best = self._best.get(index)
        return (
            interface.last_resort,
            self.preferences.cost in ("avoid", "cheapest") and is_expensive(interface, self.preferences),
            2 if best is None or not best.is_default else int(best.scoped),
            self._position.get(index, 0),
            _KIND_RANK.get(interface.kind, _OTHER_RANK),
            index,
        )

    # The choice.

    def _decide(self) -> Decision:
        index, above = self._first_default()
        basis, delegating = Basis.DEFAULT_ROUTE, ""
        ranked = sorted((i for i in self.interfaces if self._ranked_refusal(i) is None), key=self._key)
        if index is None:
            index, delegating = self._first_delegate(above, ranked)
            basis = Basis.DELEGATE
        if index is None and ranked:
            index = ranked[0]
            best = self._best.get(index)
            basis = Basis.SCOPED_DEFAULT if best is not None and best.scoped else Basis.DEFAULT_ROUTE
        self.index = index
        if index is None:
            basis = Basis.NONE
            self._note_errors()
        elif not delegating:
            self._note_cost(index, ranked)
            self._note_tie(index, ranked)
        best = None if index is None else self._best.get(index)
        return Decision(
            self.family,
            self.family,
            None if index is None else self.interfaces[index],
            basis,
            candidates=tuple(self._candidates(index, delegating, ranked)),
            tunnels=self._tunnels(above),
            gateway=None if best is None else best.gateway,
            notes=tuple(self._notes),
        )

    def _first_default(self) -> tuple[int | None, list[int]]:
        """The interface of the system's own default route, or the tunnels (and last resorts) that hide it.

        What is no tunnel and not usable is passed over as if it were not there: the answer must not depend on whether a dead
        interface has been taken away already.
        """
        above = []
        for index in dict.fromkeys(route.interface for route in self._unscoped if route.interface is not None):
            interface = self.interfaces[index]
            if is_tunnel(interface) or interface.last_resort:
                if interface.up:
                    above.append(index)
            elif self._refusals[index] is None:
                return (None if above else index), above
        return None, above

    def _first_delegate(self, above: list[int], ranked: list[int]) -> tuple[int | None, str]:
        """The interface over which one of the tunnels runs, if that can be believed, and the tunnel's name."""
        for tunnel in above:
            index = self._delegate_of(tunnel, ranked)
            if index is not None:
                return index, self.interfaces[tunnel].name
        return None, ""

    def _delegate_of(self, tunnel: int, ranked: list[int]) -> int | None:
        """The interface to which the tunnel is delegated, if that can be believed."""
        *_, last = self._chain(tunnel)
        name, index = self.interfaces[tunnel].name, self.interfaces[last].delegate
        if not index:
            return None
        delegate = self.interfaces.get(index)
        if delegate is None:
            self._notes.append(f"{name} is delegated to index {index}, which no longer exists")
            return None
        if is_tunnel(delegate):
            self._notes.append(f"the delegates of {name} go round in a circle")
            return None
        refusal = self._refusals[index]
        if refusal is not None:
            self._notes.append(f"{name} is delegated to {delegate.name}, which is not usable: {refusal.reason}")
            return None
        if ranked and self._key(ranked[0])[:2] < self._key(index)[:2]:
            better = self.interfaces[ranked[0]].name
            said = f"{name} is delegated to {delegate.name}, which is {'a last resort' if delegate.last_resort else 'expensive'}"
            if delegate.last_resort or self.preferences.cost == "cheapest":
                self._notes.append(f"{said}; not believed, since {better} is usable")
                return None
            self._notes.append(f"{said}, while {better} is usable: cost='cheapest' would take that")
        return index

    def _chain(self, tunnel: int) -> Iterator[int]:
        """The tunnel and those to which it is delegated, each once."""
        seen: set[int] = set()
        index: int | None = tunnel
        while index and index not in seen and index in self.interfaces and (not seen or is_tunnel(self.interfaces[index])):
            yield index
            seen.add(index)
            index = self.interfaces[index].delegate

    def _tunnels(self, above: list[int]) -> tuple[str, ...]:
        """The tunnels between an unbound socket and the interface that was taken, the one that catches first ahead."""
        policy = [r.interface for r in self._unscoped if order_of(r)[0] == 2]
        policy += [i for i in self.disguised if all(order_of(r)[0] == 2 for r in self._caught[i])]
        catching = [i for i in policy if i is not None and i != self.index and is_tunnel(self.interfaces[i])]
        catching += sorted(i for i in self.disguised if i != self.index)
        catching += (i for i in above if i != self.index)
        found = (link for i in catching if self.interfaces[i].up for link in self._chain(i))
        return tuple(self.interfaces[i].name for i in dict.fromkeys(found))

    # What a person reads.

    def _default_of(self, index: int) -> str:
        best = self._best.get(index)
        if best is None:
            return "the kernel confirms a default route by it"
        scoped = "scoped " if best.scoped else ""
        what = f"{scoped}default route" if best.is_default else f"route to {best.destination} as its default route"
        via = f"via {best.gateway}" if best.gateway is not None else "without a gateway"
        metric = f", metric {best.metric}" if best.metric else ""
        return f"{what} {via}{metric}{in_table(best)}"

    def _behind(self, index: int, winner: int, delegating: str) -> Candidate:
        """Why a usable interface was not taken."""
        interface, first = self.interfaces[index], self.interfaces[winner].name
        mine, best = self._key(index), self._key(winner)
        if delegating:
            clause = f"{delegating} is delegated to {first}"
        elif mine[0] > best[0]:
            clause = "is only a last resort"
        elif mine[1] > best[1]:
            clause = f"is expensive, {first} is not"
        elif mine[2] > best[2]:
            clause = f"the system's default route leaves by {first}"
        elif mine[3] > best[3]:
            clause = self._later(index, winner)
        elif mine[4] > best[4]:
            names = [_KIND_NAME.get(self.interfaces[i].kind, "other") for i in (index, winner)]
            clause = f"{names[0]} ranks behind {names[1]} {first}"
        else:
            clause = f"ranks like {first}, which has the lower index"
        return Candidate(interface.name, interface.index, False, f"usable ({self._default_of(index)}), but {clause}")

    def _later(self, index: int, winner: int) -> str:
        mine, best = self._best[index], self._best[winner]
        first = self.interfaces[winner].name
        if order_of(mine)[0] != order_of(best)[0]:
            return f"{first} has the default route of table {best.table}"
        if mine.metric != best.metric:
            return f"{first} has metric {best.metric}"
        return f"the system lists {first} first"

    def _candidates(self, taken: int | None, delegating: str, ranked: list[int]) -> Iterator[Candidate]:
        if taken is not None:
            interface = self.interfaces[taken]
            why = f"{delegating} is delegated to it, " if delegating else ""
            yield Candidate(interface.name, interface.index, True, why + self._default_of(taken))
            yield from (self._behind(index, taken, delegating) for index in ranked if index != taken)
        refusals = ((self._ranked_refusal(index), index) for index in self.interfaces if index != taken)
        refused = [(-refusal.stage, index, refusal.reason) for refusal, index in refusals if refusal is not None]
        for _, index, reason in sorted(refused):
            interface = self.interfaces[index]
            yield Candidate(interface.name, interface.index, False, reason)

    def _note_cost(self, index: int, ranked: list[int]) -> None:
        if self._key(index)[1] and any(not self._key(i)[1] for i in ranked):
            self._notes.append(f"{self.interfaces[index].name} is expensive, but it is the system's own choice")

    def _note_tie(self, index: int, ranked: list[int]) -> None:
        mine, name = self._key(index), self.interfaces[index].name
        for i in ranked:
            if i == index or self._key(i)[:3] != mine[:3]:
                continue
            key, other = self._key(i), self.interfaces[i].name
            if mine[2] == 0 and order_of(self._best[i]) == order_of(self._best[index]):
                metric = self._best[index].metric
                self._notes.append(f"{name} and {other} both have metric {metric}: the one was taken that the system lists first")
            elif mine[2] != 0 and key[4] == mine[4]:
                self._notes.append(f"{name} and {other} rank alike: the one with the lower index was taken")

    def _note_errors(self) -> None:
        for kind, table in dict.fromkeys((route.kind, route.table) for route in self._errors):
            self._notes.append(f"table {table} has the default route `{kind} default`, which refuses what it matches")


def specific_in(prefix: IPNetwork) -> str:
    """The prefix as a person writes it: a host without its length."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)
