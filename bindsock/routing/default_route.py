"""Decides which interface carries the default route of one address family, bypassing VPN tunnels.

Theory of operation. First comes the interface that the system would use for an unbound socket. If it is a usable uplink, it is
taken. So policy rules, metrics, router preferences and the choice among equal routes are left to the system. If it is a tunnel,
the tunnel may name the interface that carries its traffic (its *delegate*, on Darwin and for a few devices on Linux). That
interface is taken if it is usable. It may be out of date: NetworkExtension sets the delegate once, when the tunnel is made, and
does not correct it when the network changes. Otherwise all usable interfaces are ranked by the default route that the system
confirms for a socket bound to each of them: by the order in which the policy rules use their tables (without rules, ``main``
first), then by metric and router preference.

An interface is usable if it is up and has carrier, is neither a tunnel nor the loopback, is not excluded by the preferences, and
if the system confirms that a bound socket finds a default route and a source address. Policy rules and error routes can override
a default route of the tables (``unreachable default`` of a VPN's kill switch matches whatever the device: linux
net/ipv4/fib_trie.c). Other doubts about an interface (it is dormant, its default route has no gateway, its address is link-local)
only lower its rank.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.decision import Basis, Candidate, Decision
from bindsock.model.network import MAIN_TABLE, Interface, InterfaceKind, Lookup, Network, Route
from bindsock.model.policy import is_repair_table
from bindsock.model.preferences import is_expensive
from bindsock.model.tables import table_order
from bindsock.routing.sources import source_of
from bindsock.routing.usable import Refusal, Stage, is_tunnel, why_unusable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bindsock.model.network import IPAddress
    from bindsock.model.preferences import Preferences

_KIND_RANK = {InterfaceKind.WIRED: 0, InterfaceKind.WIFI: 1, InterfaceKind.CELLULAR: 3}
_OTHER_RANK = 2
_KIND_NAME = {InterfaceKind.WIRED: "wired", InterfaceKind.WIFI: "Wi-Fi", InterfaceKind.CELLULAR: "cellular"}
_UNRULED = 1 << 20
"""The rank of a table to which no rule leads."""


class _Key(NamedTuple):
    """The sort key of a usable interface; the lowest ranks first."""

    last_resort: bool
    doubtful: bool
    expensive: bool
    scope: int
    """0 if it has a default route for every socket, 1 if it has one only for bound sockets, 2 if it has none."""
    position: int
    """Its position in the order in which the system itself would use the interfaces."""
    kind: int
    number: int
    """The index of the interface."""


def rank_of(network: Network, route: Route) -> int:
    """The rank of the route's table; the system uses the table with the lowest rank first."""
    if network.tables:
        return network.tables.get((route.family, route.table), _UNRULED)
    return table_order(route, network.interfaces)


def in_table(route: Route) -> str:
    """The text `` in table 52``; empty for the main table."""
    return "" if route.table == MAIN_TABLE else f" in table {_described(route.table)}"


def _described(table: int) -> str:
    return f"{table} (made by bindsock repair)" if is_repair_table(table) else str(table)


class Defaults:
    """The default routes of one family of a network, and the decision that follows from them.

    :param first: the index of the interface that an unbound socket would use, if there is one
    """

    def __init__(self, network: Network, family: socket.AddressFamily, preferences: Preferences, first: int | None) -> None:
        self.network = network
        self.interfaces: Mapping[int, Interface] = network.interfaces
        self.family = family
        self.preferences = preferences
        self.first = first
        self.lookups: dict[int, Lookup] = {index: lookup for (index, of), lookup in network.defaults.items() if of == family}
        """The kernel's answer for a socket that is bound to the interface, by index."""
        self._best = {index: lookup.route for index, lookup in self.lookups.items() if lookup.usable and index in self.interfaces}
        self._order = self._ordered(first)
        """The indices of the interfaces with an unscoped default route, in the order in which the system would use them."""
        self._position = {index: position for position, index in enumerate(self._order)}
        self._notes: list[str] = []
        self._refusals = {index: self._refusal(index, interface) for index, interface in self.interfaces.items()}
        self._keys = {index: self._key(index) for index, refusal in self._refusals.items() if refusal is None}
        self.index: int | None = None
        """The index of the interface that was taken."""
        self.decision: Decision = self._decide()

    def _ordered(self, first: int | None) -> list[int]:
        def key(index: int) -> tuple[bool, int, bool, int, int]:
            route = self._best[index]
            return index != first, rank_of(self.network, route), route.is_default, route.metric, -route.preference

        return sorted((index for index, route in self._best.items() if not route.scoped), key=key)

    def unusable(self, index: int) -> bool:
        """Whether the interface is not a usable uplink of the family."""
        return self._refusals.get(index) is not None

    def stands_for_default(self, index: int) -> bool:
        """Whether specific routes of the tunnel together act as a default route."""
        best = self._best.get(index)
        return best is not None and not best.is_default

    def _refusal(self, index: int, interface: Interface) -> Refusal | None:
        """Why the interface is not a usable uplink of the family; ``None`` if it is."""
        lookup = self.lookups.get(index)
        refusal = why_unusable(interface, self.family, self.preferences, lookup)
        if refusal is not None and refusal.stage in (Stage.TUNNEL, Stage.DUMMY):
            catches = self._catches(index)
            return Refusal(refusal.stage, f"{refusal.reason} ({catches})") if catches else refusal
        if refusal is not None or index in self._best:
            return refusal
        if lookup is not None:
            return Refusal(Stage.UNCONFIRMED, "the kernel finds no default route by it for a bound socket")
        asked = " for a socket that is bound to it" if self.network.tables else ""
        return Refusal(Stage.NO_DEFAULT, f"has no default route{asked}")

    def _catches(self, index: int) -> str:
        """The route by which unbound traffic enters the tunnel, as text; empty if there is none."""
        best = self._best.get(index)
        if best is None or best.scoped:
            return ""
        if best.is_default:
            return f"default route{in_table(best)}"
        return f"{best.destination}{in_table(best)}: a default in disguise"

    def _key(self, index: int) -> _Key:
        interface = self.interfaces[index]
        best = self._best.get(index)
        return _Key(
            interface.last_resort,
            bool(self._doubt(index)),
            self.preferences.cost in ("avoid", "cheapest") and is_expensive(interface, self.preferences),
            2 if best is None or not best.is_default else int(best.scoped),
            self._position.get(index, 0),
            _KIND_RANK.get(interface.kind, _OTHER_RANK),
            index,
        )

    def _source(self, index: int) -> IPAddress | None:
        """The address that a socket has to be bound to before it connects by the interface."""
        return source_of(self.lookups[index], self.interfaces[index], self.family, self.interfaces)

    def _doubt(self, index: int) -> str:
        """The doubt about an interface that the system confirms; empty if there is none."""
        interface, best = self.interfaces[index], self._best.get(index)
        if interface.dormant:
            return "it is dormant"
        if self._is_link_local(index):
            return "its address is link-local"
        # The default route of a modem or of ppp has no gateway. That of a bridge to virtual machines has none, either, but such a
        # bridge is not an uplink.
        without = best is not None and best.gateway is None
        if without and interface.kind is not InterfaceKind.CELLULAR and not interface.last_resort:
            return "its default route has no gateway"
        return ""

    def _is_link_local(self, index: int) -> bool:
        lookup = self.lookups.get(index)
        given = lookup is not None and (lookup.source is not None or lookup.needs_source is not None)
        return not given and not self.interfaces[index].usable_addresses(self.family)

    def _decide(self) -> Decision:
        index, above = self._first_default()
        basis, delegating = Basis.DEFAULT_ROUTE, ""
        ranked = sorted(self._keys, key=self._keys.__getitem__)
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
            self._note_refusals()
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
            notes=(*self._notes, *self._note_dummies(index)),
            source=None if index is None else self._source(index),
        )

    def _first_default(self) -> tuple[int | None, list[int]]:
        """The interface of the system's own default route, or the tunnels (and last resorts) that precede it.

        Unusable interfaces are ignored, so that the result does not depend on whether a dead interface has already been removed.
        """
        above = []
        for index in self._order:
            interface = self.interfaces[index]
            if is_tunnel(interface) or interface.last_resort:
                if interface.up:
                    above.append(index)
            elif self._refusals[index] is None:
                # The system's own choice needs no gateway. A dormant interface is only used if there is no other.
                hidden = above or interface.dormant or self._is_link_local(index)
                return (None if hidden else index), above
        return None, above

    def _first_delegate(self, above: list[int], ranked: list[int]) -> tuple[int | None, str]:
        """The first believable delegate of one of the tunnels, and the name of that tunnel."""
        for tunnel in above:
            index = self._delegate_of(tunnel, ranked)
            if index is not None:
                return index, self.interfaces[tunnel].name
        return None, ""

    def _delegate_of(self, tunnel: int, ranked: list[int]) -> int | None:
        """The interface to which the tunnel is delegated, if it is believable."""
        *_, last = self._chain(tunnel)
        name, index = self.interfaces[tunnel].name, self.interfaces[last].delegate
        if not index:
            return None
        delegate = self.interfaces.get(index)
        if delegate is None:
            self._notes.append(f"{name} is delegated to index {index}, which no longer exists")
            return None
        if is_tunnel(delegate):
            self._notes.append(f"the delegates of {name} form a circle")
            return None
        refusal = self._refusals[index]
        if refusal is not None:
            self._notes.append(f"{name} is delegated to {delegate.name}, which is not usable: {refusal.reason}")
            return None
        if ranked and self._cost(ranked[0]) < self._cost(index):
            better = self.interfaces[ranked[0]].name
            said = f"{name} is delegated to {delegate.name}, which is {'a last resort' if delegate.last_resort else 'expensive'}"
            if delegate.last_resort or self.preferences.cost == "cheapest":
                self._notes.append(f"{said}; ignored, because {better} is usable")
                return None
            self._notes.append(f"{said}, while {better} is usable: cost='cheapest' would take {better}")
        return index

    def _cost(self, index: int) -> tuple[bool, bool]:
        key = self._keys[index]
        return key.last_resort, key.expensive

    def _chain(self, tunnel: int) -> Iterator[int]:
        """The tunnel and the tunnels to which it is delegated, each once."""
        seen: set[int] = set()
        index: int | None = tunnel
        while index and index not in seen and index in self.interfaces and (not seen or is_tunnel(self.interfaces[index])):
            yield index
            seen.add(index)
            index = self.interfaces[index].delegate

    def _tunnels(self, above: list[int]) -> tuple[str, ...]:
        """The tunnels between an unbound socket and the interface that was taken, the outermost first."""
        found = (link for i in above if i != self.index for link in self._chain(i))
        return tuple(self.interfaces[i].name for i in dict.fromkeys(found))

    def _default_of(self, index: int) -> str:
        best = self._best[index]
        scoped = "scoped " if best.scoped else ""
        what = f"{scoped}default route" if best.is_default else f"route to {best.destination} as its default route"
        via = f"via {best.gateway}" if best.gateway is not None else "without a gateway"
        metric = f", metric {best.metric}" if best.metric else ""
        source = self._source(index)
        given = self.lookups[index].source
        if source is None and given is not None and not self.interfaces[index].has(given):
            return f"{what} {via}{metric}{in_table(best)}, from {given}"
        return f"{what} {via}{metric}{in_table(best)}" + (f", from {source}" if source is not None else "")

    def _behind(self, index: int, winner: int, delegating: str) -> Candidate:
        """Why a usable interface was not taken."""
        interface, first = self.interfaces[index], self.interfaces[winner].name
        mine, best = self._keys[index], self._keys[winner]
        if delegating:
            clause = f"{delegating} is delegated to {first}"
        elif mine.last_resort > best.last_resort:
            clause = "is only a last resort"
        elif winner == self.first:
            clause = self._later(index, winner)
        elif mine.doubtful > best.doubtful:
            clause = self._doubt(index)
        elif mine.expensive > best.expensive:
            clause = f"is expensive, {first} is not"
        elif mine.scope > best.scope:
            clause = f"the system's default route leaves by {first}"
        elif mine.position > best.position:
            clause = self._later(index, winner)
        elif mine.kind > best.kind:
            names = [_KIND_NAME.get(self.interfaces[i].kind, "other") for i in (index, winner)]
            clause = f"{names[0]} ranks behind {names[1]} {first}"
        else:
            clause = f"ranks like {first}, which has the lower index"
        return Candidate(interface.name, interface.index, False, f"usable ({self._default_of(index)}), but {clause}")

    def _later(self, index: int, winner: int) -> str:
        mine, best = self._best[index], self._best[winner]
        first = self.interfaces[winner].name
        if mine.scoped or not mine.is_default:
            return f"the system's default route leaves by {first}"
        if rank_of(self.network, mine) != rank_of(self.network, best):
            return f"{first} has the default route of table {_described(best.table)}"
        if mine.metric != best.metric:
            return f"{first} has metric {best.metric}"
        if mine.preference != best.preference:
            return f"{first} has the router with the higher preference"
        return f"the system itself uses {first}"

    def _candidates(self, taken: int | None, delegating: str, ranked: list[int]) -> Iterator[Candidate]:
        if taken is not None:
            interface = self.interfaces[taken]
            why = f"{delegating} is delegated to it, " if delegating else ""
            yield Candidate(interface.name, interface.index, True, why + self._default_of(taken))
            yield from (self._behind(index, taken, delegating) for index in ranked if index != taken)
        refusals = ((self._refusals[index], index) for index in self.interfaces if index != taken)
        refused = [(-refusal.stage, index, refusal.reason) for refusal, index in refusals if refusal is not None]
        for _, index, reason in sorted(refused):
            interface = self.interfaces[index]
            yield Candidate(interface.name, interface.index, False, reason)

    def _note_cost(self, index: int, ranked: list[int]) -> None:
        if self._keys[index].expensive and any(not self._keys[i].expensive for i in ranked):
            self._notes.append(f"{self.interfaces[index].name} is expensive, but it is the system's own choice")

    def _note_tie(self, index: int, ranked: list[int]) -> None:
        mine, name = self._keys[index], self.interfaces[index].name
        for i in ranked:
            if i == index or self._keys[i][:4] != mine[:4]:
                continue
            key, other = self._keys[i], self.interfaces[i].name
            if mine.scope == 0 and self._equal(self._best[i], self._best[index]):
                metric = self._best[index].metric
                why = "the system uses" if index == self.first else "has the lower index"
                self._notes.append(f"{name} and {other} both have metric {metric}: took the one that {why}")
            elif mine.scope != 0 and key.kind == mine.kind:
                self._notes.append(f"{name} and {other} have equal rank: took the one with the lower index")

    def _equal(self, one: Route, other: Route) -> bool:
        def rank(route: Route) -> tuple[int, int, int]:
            return rank_of(self.network, route), route.metric, route.preference

        return rank(one) == rank(other)

    def _note_refusals(self) -> None:
        refusals = [lookup.route for lookup in self.lookups.values() if not lookup.usable]
        for kind, table in dict.fromkeys((route.kind, route.table) for route in refusals):
            where = f"table {table} has" if table else "some table has"
            self._notes.append(f"{where} the default route `{kind} default`, which rejects all packets")

    def _note_dummies(self, taken: int | None) -> Iterator[str]:
        for index in self._order:
            if index == taken:
                return
            if self.interfaces[index].kind is InterfaceKind.DUMMY and self.interfaces[index].up:
                name = self.interfaces[index].name
                yield f"{name} has a default route and carries nothing (a kill switch or leak protection)"
