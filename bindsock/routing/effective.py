"""Decides which interface is the effective one for a target.

This is pure: nothing here does I/O. Every :class:`~bindsock.model.network.Network`, even an empty or inconsistent one, leads to
one :class:`~bindsock.model.decision.Decision`, and always to the same one. The rules, in order:

1. A pin is obeyed: that interface, or none.
2. Sockets for loopback and the host's own addresses stay unbound (on xnu, a TCP socket that is bound to ``en0`` cannot reach
   127.0.0.1; on Linux, a bound socket cannot reach the address of another interface). A scope id names its interface.
3. If an unbound socket would use an interface that is not a tunnel, that one is taken. Otherwise, among the interfaces that are
   not tunnels, the one with the longest matching prefix: a LAN, a bridge to containers, a second card.
4. Other destinations use the default route of the family: :mod:`bindsock.routing.default_route`.

For a destination, the decider asks for :class:`~bindsock.model.network.Answers`: from the kernel, or from routing tables.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from bindsock.model.decision import Basis, Candidate, Decision, Path, path_of
from bindsock.model.network import (
    LIMITED_BROADCAST,
    LOCAL_TABLE,
    Answers,
    Interface,
    InterfaceKind,
    IPAddress,
    Lookup,
    Network,
    Target,
    family_of,
    is_loopback,
    unmapped,
)
from bindsock.model.preferences import Preferences, is_expensive
from bindsock.model.prefixes import is_private, specific_in
from bindsock.model.tables import TableAnswers
from bindsock.routing.default_route import Defaults, in_table, rank_of
from bindsock.routing.sources import source_of
from bindsock.routing.usable import is_tunnel, why_dead, why_unusable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bindsock.model.network import Lookups

__all__ = ["Decider", "Preferences", "decide", "is_expensive"]

_DEFAULT = Preferences()
_REMEMBERED = 1 << 16
"""How many decisions are cached, so that a crawler does not fill the memory while the network does not change."""


def decide(
    network: Network,
    target: Target,
    preferences: Preferences = _DEFAULT,
    *,
    interface: str | None = None,
    lookups: Lookups | None = None,
) -> Decision:
    """Decide to which interface a socket for the target should be bound, and why.

    :param target: a destination, or a family if there is no destination yet
    :param interface: the name of the only interface that may be used
    :param lookups: returns the answers about a destination; from the network's routing tables unless given
    """
    return Decider(network, preferences, interface=interface, lookups=lookups).decide(target)


class Decider:
    """Makes and caches the decisions for one reading of the network.

    :param network: the reading
    :param preferences: which interfaces may be used
    :param interface: the name of the only interface that may be used, which may be a tunnel
    :param lookups: returns the answers about a destination; from the network's routing tables unless given
    """

    def __init__(
        self,
        network: Network,
        preferences: Preferences = _DEFAULT,
        *,
        interface: str | None = None,
        lookups: Lookups | None = None,
    ) -> None:
        self.network = network
        self.lookups: Lookups = lookups if lookups is not None else TableAnswers(network)
        self.preferences = preferences
        self.pin = interface
        self._decisions: dict[Target, Decision] = {}
        self._defaults: dict[tuple[socket.AddressFamily, int | None], Defaults] = {}
        self._by_answer: dict[object, Decision] = {}
        self._pinned: dict[object, Decision] = {}
        self._paths: dict[object, Path | None] = {}
        self._path_to: dict[Target, Path | None] = {}
        self._own: frozenset[tuple[int, int]] | None = None
        self._with_pin: dict[str, Decider] = {}

    def decide(self, target: Target) -> Decision:
        """The decision for a family or a destination."""
        decision = self._decisions.get(target)
        if decision is None:
            if len(self._decisions) >= _REMEMBERED:
                self._decisions.clear()
                self._by_answer.clear()
                self._pinned.clear()
                self._path_to.clear()
            decision = self._decisions[target] = self._decide(target)
        return decision

    def with_pin(self, interface: str | None) -> Decider:
        """The decider for the same network with another pin. Connections with the same pin share it.

        :param interface: the name of the only interface that may be used; ``None`` to keep this decider's pin
        """
        if interface is None or interface == self.pin:
            return self
        decider = self._with_pin.get(interface)
        if decider is None:
            decider = self._with_pin[interface] = Decider(
                self.network, self.preferences, interface=interface, lookups=self.lookups
            )
        return decider

    def targets(self) -> tuple[Target, ...]:
        """The targets that have been decided so far."""
        return tuple(self._decisions)

    @property
    def decided(self) -> int:
        """How many targets have been decided so far."""
        return len(self._decisions)

    def path(self, target: Target) -> Path | None:
        """The path for the target; ``None`` if a socket for it is not bound. Equal paths are the same object."""
        try:
            return self._path_to[target]
        except KeyError:
            path = self._path_to[target] = self._shared_path(self.decide(target))
            return path

    def _shared_path(self, decision: Decision) -> Path | None:
        if decision.interface is None:
            return None
        key = (decision.family, decision.interface.index, decision.gateway, decision.source)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = path_of(decision)
        return path

    def is_local(self, address: IPAddress) -> bool:
        """Whether the address belongs to this host: a loopback address, an address of an interface, or the unspecified one."""
        address = unmapped(address)
        number = int(address)
        if number == 0 or is_loopback(address):
            return True
        if _is_link_local(address) and isinstance(address, IPv6Address):
            return self._is_own_link_local(address)
        if self._own is None:
            self._own = frozenset(own.number for interface in self.network.interfaces.values() for own in interface.addresses)
        return (address.version, number) in self._own

    def _is_own_link_local(self, address: IPv6Address) -> bool:
        # fe80::1 belongs to lo0 on Darwin and to the router on many links, so the address alone is not enough.
        if address.scope_id is not None:
            scope = self._scope(address.scope_id)
            owners: Iterable[Interface] = () if scope is None else (scope,)
        else:
            owners = (i for i in self.network.interfaces.values() if i.kind is not InterfaceKind.LOOPBACK)
        return any(int(a.address) == int(address) and a.address.version == 6 for owner in owners for a in owner.addresses)

    def _decide(self, target: Target) -> Decision:
        if isinstance(target, int):
            return self._default(target).decision if self.pin is None else self._by_pin(target, None, on_link=True)
        address = unmapped(target)
        family = family_of(address)
        if self.is_local(address):
            notes = [self._why_local(address)]
            if self.pin is not None:
                notes.append(f"the pin to {self.pin} does not apply: a bound socket cannot reach this host itself")
            return Decision(target, family, None, Basis.LOCAL, unbound=True, notes=tuple(notes))
        on_link = _is_link_local(address)
        if self.pin is not None:
            return _with_target(self._by_pin(family, address, on_link=on_link), target)
        if isinstance(address, IPv6Address) and address.scope_id is not None and (on_link or _is_multicast(address)):
            return self._by_scope(target, address.scope_id)
        if _is_multicast(address) or (on_link and family == socket.AF_INET6):
            return _with_target(self._default(family).decision, target)
        return _with_target(self._by_prefix(address, on_link), target)

    def _default(self, family: socket.AddressFamily, first: int | None = None) -> Defaults:
        """The default routes of a family, with their decision.

        :param first: the index of the uplink that an unbound socket would use for the destination
        """
        if first is None:
            unbound = self.network.unbound.get(family)
            first = unbound.route.interface if unbound is not None else None
        defaults = self._defaults.get((family, first))
        if defaults is None:
            defaults = self._defaults[family, first] = Defaults(self.network, family, self.preferences, first)
        return defaults

    def _why_local(self, address: IPAddress) -> str:
        owners = [
            interface.name
            for _, interface in sorted(self.network.interfaces.items())
            if interface.kind is not InterfaceKind.LOOPBACK
            and any(int(unmapped(a.address)) == int(address) for a in interface.addresses)
        ]
        return f"{address} is this host's own address on {' and '.join(owners)}" if owners else f"{address} is this host"

    def _by_pin(self, family: socket.AddressFamily, address: IPAddress | None, *, on_link: bool) -> Decision:
        interface = self.network.named(self.pin or "")
        lookup = None
        if interface is not None:
            if address is not None and not on_link and not _is_multicast(address):
                lookup = self.lookups(address).by_interface.get(interface.index)
            lookup = lookup or self.network.defaults.get((interface.index, family))
        key = (family, on_link, lookup)
        decision = self._pinned.get(key)
        if decision is None:
            decision = self._pinned[key] = self._make_pinned(family, interface, lookup, on_link)
        return decision

    def _make_pinned(
        self, family: socket.AddressFamily, interface: Interface | None, lookup: Lookup | None, on_link: bool
    ) -> Decision:
        name = self.pin or ""
        if interface is None:
            candidate = Candidate(name, 0, False, "is pinned, but there is no interface of that name")
            return Decision(family, family, None, Basis.PINNED, candidates=(candidate,))
        if lookup is not None and not lookup.usable:
            lookup = None
        refusal = why_dead(interface, family, lookup, on_link=on_link)
        if refusal is not None:
            candidate = Candidate(interface.name, interface.index, False, f"is pinned, but {refusal.reason}")
            return Decision(family, family, None, Basis.PINNED, candidates=(candidate,))
        candidate = Candidate(interface.name, interface.index, True, "is pinned")
        notes = ("the pinned interface is a tunnel",) if is_tunnel(interface) else ()
        return Decision(
            family,
            family,
            interface,
            Basis.PINNED,
            candidates=(candidate,),
            gateway=lookup.route.gateway if lookup is not None else None,
            notes=notes,
            source=source_of(lookup, interface, family, self.network.interfaces) if lookup is not None else None,
        )

    def _scope(self, scope: str) -> Interface | None:
        if scope.isdecimal():
            return self.network.interfaces.get(int(scope))
        return self.network.named(scope)

    def _by_scope(self, target: Target, scope: str) -> Decision:
        family = socket.AF_INET6
        interface = self._scope(scope)
        if interface is None:
            note = f"there is no interface {scope}, which the scope id names"
            return Decision(target, family, None, Basis.LINK_SCOPE, notes=(note,))
        if is_tunnel(interface) or interface.kind is InterfaceKind.LOOPBACK:
            note = f"the scope id itself leads to {interface.name}"
            return Decision(target, family, None, Basis.LINK_SCOPE, unbound=True, notes=(note,))
        refusal = why_unusable(interface, family, self.preferences, on_link=True)
        if refusal is not None:
            candidate = Candidate(interface.name, interface.index, False, f"is named by the scope id, but {refusal.reason}")
            return Decision(target, family, None, Basis.LINK_SCOPE, candidates=(candidate,))
        candidate = Candidate(interface.name, interface.index, True, "is named by the scope id")
        return Decision(target, family, interface, Basis.LINK_SCOPE, candidates=(candidate,))

    def _by_prefix(self, address: IPAddress, on_link: bool) -> Decision:
        family = family_of(address)
        answers = self.lookups(address)
        unbound = answers.unbound
        if unbound is not None and self._is_delivered_here(unbound):
            note = f"the system delivers {address} to this host itself"
            return Decision(family, family, None, Basis.LOCAL, unbound=True, notes=(note,))
        key = (
            family,
            on_link,
            unbound.route.interface if unbound is not None else None,
            frozenset(answers.by_interface),
            *((i, lookup) for i, lookup in answers.by_interface.items() if lookup != self.network.defaults.get((i, family))),
            answers.refusal,
        )
        # With split tunnels, the decision depends on the destination, not only on the answers.
        shared = self.preferences.tunnels != "split"
        decision = self._by_answer.get(key) if shared else None
        if decision is None:
            decision = self._make_specific(address, answers, on_link)
            if shared:
                self._by_answer[key] = decision
        return decision

    def _is_delivered_here(self, unbound: Lookup) -> bool:
        """Whether a route of type ``local`` delivers to this host, as ``ip route add local 192.0.2.0/24 dev lo`` does."""
        interface = self.network.interfaces.get(unbound.route.interface or 0)
        return interface is not None and interface.kind is InterfaceKind.LOOPBACK and unbound.route.table == LOCAL_TABLE

    def _ordered(self, answers: Answers) -> list[Lookup]:
        """The routes to a destination, in the order in which the system would use them."""
        first = answers.unbound.route.interface if answers.unbound is not None else None
        ruled = bool(self.network.tables)

        def key(lookup: Lookup) -> tuple[bool, bool, int, int, int, int]:
            route = lookup.route
            rank, length = rank_of(self.network, route), route.destination.prefixlen
            if ruled:
                return (False, route.interface != first, 0, rank, -length, route.metric)
            # Only bound sockets use a scoped route (Darwin). It counts if no unscoped route is specific.
            return (length == 0, route.interface != first, int(route.scoped), -length, rank, route.metric)

        known = (lookup for index, lookup in answers.by_interface.items() if lookup.usable and index in self.network.interfaces)
        return sorted(known, key=key)

    def _make_specific(self, address: IPAddress, answers: Answers, on_link: bool) -> Decision:
        family = family_of(address)
        defaults = self._default(family)
        passed: dict[int, Candidate] = {}
        notes: list[str] = []
        if answers.refusal is not None:
            refused = answers.refusal.route
            notes.append(f"there is a route of kind {refused.kind} for {specific_in(refused.destination)}{in_table(refused)}")
        for lookup in self._ordered(answers):
            route, index = lookup.route, lookup.route.interface
            if index is None:
                continue
            interface = self.network.interfaces[index]
            if route.destination.prefixlen == 0:
                if is_tunnel(interface) or defaults.unusable(index):
                    continue
                break  # the routes after the system's own default are not used, even if they are more specific
            prefix = f"{specific_in(route.destination)}{in_table(route)}"
            tunnel = is_tunnel(interface) or (interface.last_resort and index != defaults.index)
            if tunnel and interface.up and self._goes_into(lookup, answers, defaults, address):
                own = Candidate(interface.name, interface.index, False, f"is a tunnel whose own route {prefix} is")
                return Decision(
                    family,
                    family,
                    None,
                    Basis.SPLIT_TUNNEL,
                    unbound=True,
                    candidates=(own, *passed.values()),
                    notes=(f"the unbound socket goes into {interface.name}", *notes),
                )
            # A link-local address is enough for a default route, but not for a specific route to a network beyond the link.
            given = lookup if lookup.source is not None or lookup.needs_source is not None else None
            refusal = why_unusable(interface, family, self.preferences, given, on_link=on_link)
            if tunnel or refusal is not None:
                reason = "is a tunnel" if tunnel or refusal is None else refusal.reason
                passed[index] = Candidate(interface.name, interface.index, False, f"{reason} ({prefix})")
                continue
            return self._taken_by_prefix(interface, lookup, prefix, passed, defaults, notes)
        return self._left_to_default(passed, self._default(family, self._first_uplink(answers, defaults)), notes)

    def _first_uplink(self, answers: Answers, defaults: Defaults) -> int | None:
        """The index of the uplink that the system would use unbound for this destination, if there is one.

        It can differ from that of other destinations: with equal next hops, or with a policy rule for certain destinations.
        """
        index = answers.unbound.route.interface if answers.unbound is not None else None
        if index is None or index not in defaults.lookups or index not in self.network.interfaces:
            return None
        return None if is_tunnel(self.network.interfaces[index]) or defaults.unusable(index) else index

    def _goes_into(self, lookup: Lookup, answers: Answers, defaults: Defaults, address: IPAddress) -> bool:
        """Whether a split tunnel should carry the destination: the route belongs to the tunnel itself.

        If the tunnel takes all traffic by routes that together act as a default route, only those of its routes count that lie
        within another route of the tunnel or within private addresses.
        """
        route = lookup.route
        if self.preferences.tunnels != "split" or route.interface is None:
            return False
        if answers.unbound is not None and answers.unbound.route.interface != route.interface:
            return False  # an unbound socket would not use the tunnel
        if not defaults.stands_for_default(route.interface) or is_private(route.destination):
            return True
        return self._lies_within_another(route.interface, route.destination.prefixlen, address)

    def _lies_within_another(self, index: int, length: int, address: IPAddress) -> bool:
        """Whether the interface has a route with a shorter prefix that contains the address.

        To find out, ask about neighbouring addresses outside its own prefix.
        """
        bits = address.max_prefixlen
        for shorter in range(length - 1, -1, -1):
            beside = type(address)(int(address) ^ (1 << (bits - 1 - shorter)))
            if self.is_local(beside) or _is_multicast(beside):
                continue
            other = self.lookups(beside).by_interface.get(index)
            if other is not None and address in other.route.destination and not other.route.is_default:
                return True
        return False

    def _taken_by_prefix(
        self,
        interface: Interface,
        lookup: Lookup,
        prefix: str,
        passed: dict[int, Candidate],
        defaults: Defaults,
        notes: list[str],
    ) -> Decision:
        gateway = lookup.route.gateway
        source = source_of(lookup, interface, defaults.family, self.network.interfaces)
        via = f" via {gateway}" if gateway is not None else " on its own link"
        via += f", from {source}" if source is not None else ""
        candidates = [
            Candidate(interface.name, interface.index, True, f"has the longest prefix, {prefix}{via}"),
            *passed.values(),
        ]
        named = {candidate.index for candidate in candidates}
        for other in defaults.decision.candidates:
            if other.index not in named:
                reason = f"is only for what no prefix matches ({other.reason})" if other.taken else other.reason
                candidates.append(Candidate(other.interface, other.index, False, reason))
        return Decision(
            defaults.family,
            defaults.family,
            interface,
            Basis.LONGEST_PREFIX,
            candidates=tuple(candidates),
            tunnels=self._passed_tunnels(passed),
            gateway=gateway,
            notes=tuple(notes),
            source=source,
        )

    def _left_to_default(self, passed: dict[int, Candidate], defaults: Defaults, notes: list[str]) -> Decision:
        default = defaults.decision
        indices = {candidate.index for candidate in passed.values()}
        return Decision(
            default.target,
            default.family,
            default.interface,
            default.basis,
            candidates=(
                *(c for c in default.candidates if c.taken),
                *passed.values(),
                *(c for c in default.candidates if not c.taken and c.index not in indices),
            ),
            tunnels=tuple(dict.fromkeys((*self._passed_tunnels(passed), *default.tunnels))),
            gateway=default.gateway,
            notes=(*notes, *default.notes),
            source=default.source,
        )

    def _passed_tunnels(self, passed: dict[int, Candidate]) -> tuple[str, ...]:
        interfaces = (self.network.interfaces[index] for index in passed)
        return tuple(i.name for i in interfaces if i.up and (is_tunnel(i) or i.last_resort))


def _is_link_local(address: IPAddress) -> bool:
    return int(address) >> 16 == 0xA9FE if address.version == 4 else int(address) >> 118 == 0x3FA


def _is_multicast(address: IPAddress) -> bool:
    return int(address) >> 28 == 0xE if address.version == 4 else int(address) >> 120 == 0xFF


def _has_next_hop(target: Target) -> bool:
    """Whether the next hop of a route can matter. What is for everybody on the link, or link-local in IPv6, passes no router."""
    if isinstance(target, int):
        return True
    address = unmapped(target)
    if _is_multicast(address) or (address.version == 6 and _is_link_local(address)):
        return False
    return address != LIMITED_BROADCAST


def _with_target(decision: Decision, target: Target) -> Decision:
    """The same decision for another target."""
    return Decision(
        target,
        decision.family,
        decision.interface,
        decision.basis,
        decision.unbound,
        decision.candidates,
        decision.tunnels,
        decision.gateway if _has_next_hop(target) else None,
        decision.notes,
        decision.source,
    )
