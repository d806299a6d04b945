"""Which interface: the pure decision.

Nothing here does I/O. Every :class:`~bindsock.model.network.Network`, empty or inconsistent as it may be, gives a
:class:`~bindsock.model.network.Decision`, always the same one. In this order:

1. A pin is obeyed: that interface, or none.
2. Loopback and the host's own addresses are left unbound (a TCP socket that is bound to ``en0`` cannot reach 127.0.0.1 on xnu,
   and loses what it sends to another interface's address on Linux); a scope id names its interface.
3. The longest prefix wins among the interfaces that are no tunnels: a LAN, a bridge to containers, a second card.
4. What is left goes by the family's default: :mod:`bindsock.routing.default_route`.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.decision import Basis, Candidate, Decision, Path, path_of
from bindsock.model.network import Interface, InterfaceKind, IPAddress, Network, Route, RouteKind, Target, family_of, unmapped
from bindsock.model.preferences import Preferences, is_expensive
from bindsock.routing.default_route import Defaults, in_table, order_of, specific_in
from bindsock.routing.prefixes import PrefixTable, is_private
from bindsock.routing.usable import dead, is_tunnel, unfit

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Decider", "Preferences", "decide", "is_expensive"]

_DEFAULT = Preferences()
_REMEMBERED = 1 << 16
"""Decisions that are kept: a crawler must not fill the memory while the network stands still."""


class _Specific(NamedTuple):
    """A route that is no default, in the order in which the system uses those to one destination."""

    scoped: bool
    order: tuple[int, int]
    position: int
    route: Route


def decide(network: Network, target: Target, preferences: Preferences = _DEFAULT, *, interface: str | None = None) -> Decision:
    """Which interface a socket for the target is to be bound to, and why.

    :param target: a family, for what has no destination yet, or a destination
    :param interface: the name of the one interface that may be used
    """
    return Decider(network, preferences, interface=interface).decide(target)


class Decider:
    """The decisions about one reading of the network, each made once.

    :param network: the reading
    :param preferences: what may be chosen
    :param interface: the name of the one interface that may be used, of a tunnel even
    """

    def __init__(self, network: Network, preferences: Preferences = _DEFAULT, *, interface: str | None = None) -> None:
        self.network = network
        self.preferences = preferences
        self.pin = interface
        self._decisions: dict[Target, Decision] = {}
        self._defaults: dict[socket.AddressFamily, Defaults] = {}
        self._specifics: dict[int, PrefixTable[_Specific]] = {}
        self._by_routes: dict[tuple[bool, tuple[int, ...]], Decision] = {}
        self._pinned: dict[tuple[socket.AddressFamily, bool], Decision] = {}
        self._paths: dict[tuple[socket.AddressFamily, int, IPAddress | None], Path | None] = {}
        self._own: frozenset[tuple[int, int]] | None = None
        self._with_pin: dict[str, Decider] = {}

    def decide(self, target: Target) -> Decision:
        """The decision for a family or a destination."""
        decision = self._decisions.get(target)
        if decision is None:
            if len(self._decisions) >= _REMEMBERED:
                self._decisions.clear()
                self._by_routes.clear()
            decision = self._decisions[target] = self._decide(target)
        return decision

    def with_pin(self, interface: str | None) -> Decider:
        """The decider for the same network with a connection's own pin; the same one for each connection that has it.

        :param interface: the name of the one interface that may be used; ``None`` for no other pin than this decider's
        """
        if interface is None or interface == self.pin:
            return self
        decider = self._with_pin.get(interface)
        if decider is None:
            decider = self._with_pin[interface] = Decider(self.network, self.preferences, interface=interface)
        return decider

    def targets(self) -> tuple[Target, ...]:
        """What has been decided so far."""
        return tuple(self._decisions)

    def path(self, target: Target) -> Path | None:
        """What a socket for the target depends on, ``None`` where nothing is bound."""
        decision = self.decide(target)
        if decision.interface is None:
            return None
        key = (decision.family, decision.interface.index, decision.gateway)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = path_of(decision)
        return path

    def is_local(self, address: IPAddress) -> bool:
        """Whether the address is this host: a loopback address, one of its own, or the unspecified one."""
        address = unmapped(address)
        number = int(address)
        if number == 0 or (number >> 24 == 127 if address.version == 4 else number == 1):
            return True
        if _is_link_local(address) and isinstance(address, IPv6Address):
            return self._is_own_link_local(address)
        if self._own is None:
            self._own = frozenset(
                _plain(own.address) for interface in self.network.interfaces.values() for own in interface.addresses
            )
        return (address.version, number) in self._own

    def _is_own_link_local(self, address: IPv6Address) -> bool:
        # fe80::1 is lo0's on Darwin and the router's on many a link: without the link it says nothing.
        if address.scope_id is not None:
            scope = self._scope(address.scope_id)
            owners: Iterable[Interface] = () if scope is None else (scope,)
        else:
            owners = (i for i in self.network.interfaces.values() if i.kind is not InterfaceKind.LOOPBACK)
        return any(int(a.address) == int(address) and a.address.version == 6 for owner in owners for a in owner.addresses)

    def _decide(self, target: Target) -> Decision:
        if isinstance(target, int):
            return self._default(target).decision if self.pin is None else self._by_pin(target, on_link=True)
        address = unmapped(target)
        family = family_of(address)
        if self.is_local(address):
            notes = [self._why_local(address)]
            if self.pin is not None:
                notes.append(f"the pin to {self.pin} does not apply: a bound socket cannot reach this host itself")
            return Decision(target, family, None, Basis.LOCAL, unbound=True, notes=tuple(notes))
        on_link = _is_link_local(address)
        if self.pin is not None:
            return _aimed(self._by_pin(family, on_link=on_link), target)
        if isinstance(address, IPv6Address) and address.scope_id is not None and (on_link or _is_multicast(address)):
            return self._by_scope(target, address.scope_id)
        if _is_multicast(address) or (on_link and family == socket.AF_INET6):
            return _aimed(self._default(family).decision, target)
        return _aimed(self._by_prefix(address, on_link), target)

    def _default(self, family: socket.AddressFamily) -> Defaults:
        defaults = self._defaults.get(family)
        if defaults is None:
            defaults = self._defaults[family] = Defaults(self.network, family, self.preferences)
        return defaults

    def _why_local(self, address: IPAddress) -> str:
        owners = [
            interface.name
            for _, interface in sorted(self.network.interfaces.items())
            if interface.kind is not InterfaceKind.LOOPBACK
            and any(int(unmapped(a.address)) == int(address) for a in interface.addresses)
        ]
        return f"{address} is this host's own address on {' and '.join(owners)}" if owners else f"{address} is this host"

    # The pin.

    def _by_pin(self, family: socket.AddressFamily, *, on_link: bool) -> Decision:
        key = (family, on_link)
        decision = self._pinned.get(key)
        if decision is None:
            decision = self._pinned[key] = self._make_pinned(family, on_link)
        return decision

    def _make_pinned(self, family: socket.AddressFamily, on_link: bool) -> Decision:
        name = self.pin or ""
        interface = self.network.named(name)
        if interface is None:
            candidate = Candidate(name, 0, False, "is pinned, but there is no interface of that name")
            return Decision(family, family, None, Basis.PINNED, candidates=(candidate,))
        refusal = dead(interface, family, on_link=on_link)
        if refusal is not None:
            candidate = Candidate(name, interface.index, False, f"is pinned, but {refusal.reason}")
            return Decision(family, family, None, Basis.PINNED, candidates=(candidate,))
        gateway = next(
            (
                route.gateway
                for route in sorted(self.network.routes, key=lambda route: (route.scoped, *order_of(route)))
                if route.is_default
                and route.interface == interface.index
                and route.family == family
                and route.kind is RouteKind.UNICAST
            ),
            None,
        )
        candidate = Candidate(name, interface.index, True, "is pinned")
        notes = ("the pinned interface is a tunnel",) if is_tunnel(interface) else ()
        return Decision(family, family, interface, Basis.PINNED, candidates=(candidate,), gateway=gateway, notes=notes)

    # The scope.

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
        refusal = unfit(interface, family, self.preferences, on_link=True)
        if refusal is not None:
            candidate = Candidate(interface.name, interface.index, False, f"is named by the scope id, but {refusal.reason}")
            return Decision(target, family, None, Basis.LINK_SCOPE, candidates=(candidate,))
        candidate = Candidate(interface.name, interface.index, True, "is named by the scope id")
        return Decision(target, family, interface, Basis.LINK_SCOPE, candidates=(candidate,))

    # The longest prefix.

    def _table(self, version: int) -> PrefixTable[_Specific]:
        """The specific routes of ``main`` and ``default``, and those of tunnels in any table.

        Of other tables nobody knows whether this traffic is sent to them: a tunnel's are looked through, others do not count.
        A tunnel's scoped routes catch nothing: only a socket that is bound to it sees them.
        """
        table = self._specifics.get(version)
        if table is None:
            table = self._specifics[version] = PrefixTable(version)
            interfaces = self.network.interfaces
            tunnels = {index for index, interface in interfaces.items() if is_tunnel(interface)}
            for position, route in enumerate(self.network.routes):
                if route.destination.version != version or route.destination.prefixlen == 0:
                    continue
                if route.scoped and route.interface in tunnels:
                    continue
                if route.table in (254, 253):
                    order = order_of(route)
                elif route.interface in tunnels:
                    order = (-1, route.metric)
                else:
                    continue
                if route.interface in interfaces or route.kind is not RouteKind.UNICAST:
                    table.add(route.destination, _Specific(route.scoped, order, position, route))
        return table

    def _by_prefix(self, address: IPAddress, on_link: bool) -> Decision:
        matching = [specific for same in self._table(address.version).matching(address) for specific in sorted(same)]
        if not matching:
            return self._default(family_of(address)).decision
        # A scoped route (Darwin) is seen only by sockets that are bound already: it counts where no other route is specific.
        matching.sort(key=lambda specific: specific.scoped)
        key = (on_link, tuple(specific.position for specific in matching))
        decision = self._by_routes.get(key)
        if decision is None:
            decision = self._by_routes[key] = self._make_specific(family_of(address), [s.route for s in matching], on_link)
        return decision

    def _make_specific(self, family: socket.AddressFamily, routes: list[Route], on_link: bool) -> Decision:
        defaults = self._default(family)
        passed: dict[int, Candidate] = {}
        notes: list[str] = []
        for route in routes:
            prefix = f"{specific_in(route.destination)}{in_table(route)}"
            if route.kind is not RouteKind.UNICAST:
                notes.append(f"there is a route of kind {route.kind} for {prefix}")
                continue
            index = route.interface
            if index is None or index in passed:
                continue
            interface = self.network.interfaces[index]
            tunnel = is_tunnel(interface) or (interface.last_resort and index != defaults.index)
            if tunnel and interface.up and self._goes_into(route, routes, defaults):
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
            refusal = unfit(interface, family, self.preferences, on_link=on_link)
            if tunnel or refusal is not None:
                reason = "is a tunnel" if tunnel or refusal is None else refusal.reason
                passed[index] = Candidate(interface.name, interface.index, False, f"{reason} ({prefix})")
                continue
            return self._taken_by_prefix(interface, route, prefix, passed, defaults, notes)
        return self._left_to_default(passed, defaults, notes)

    def _goes_into(self, route: Route, routes: list[Route], defaults: Defaults) -> bool:
        """Whether the tunnel's route is one of its own, and not a part of a default in disguise.

        Of a tunnel that takes everything, what lies within another of its routes, or within private addresses, is its own.
        """
        if self.preferences.tunnels != "split" or route.scoped:
            return False
        if route.interface not in defaults.disguised or is_private(route.destination):
            return True
        return any(r.interface == route.interface and r.destination.prefixlen < route.destination.prefixlen for r in routes)

    def _taken_by_prefix(
        self,
        interface: Interface,
        route: Route,
        prefix: str,
        passed: dict[int, Candidate],
        defaults: Defaults,
        notes: list[str],
    ) -> Decision:
        via = f" via {route.gateway}" if route.gateway is not None else " on its own link"
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
            gateway=route.gateway,
            notes=tuple(notes),
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
        )

    def _passed_tunnels(self, passed: dict[int, Candidate]) -> tuple[str, ...]:
        interfaces = (self.network.interfaces[index] for index in passed)
        return tuple(i.name for i in interfaces if i.up and (is_tunnel(i) or i.last_resort))


def _is_link_local(address: IPAddress) -> bool:
    return int(address) >> 16 == 0xA9FE if address.version == 4 else int(address) >> 118 == 0x3FA


def _plain(address: IPAddress) -> tuple[int, int]:
    """Version and number of an address, of an IPv4-mapped one those of the IPv4 address."""
    version, number = address.version, int(address)
    return (4, number & 0xFFFFFFFF) if version == 6 and number >> 32 == 0xFFFF else (version, number)


def _is_multicast(address: IPAddress) -> bool:
    return int(address) >> 28 == 0xE if address.version == 4 else int(address) >> 120 == 0xFF


def _aimed(decision: Decision, target: Target) -> Decision:
    """The same decision about another target."""
    return Decision(
        target,
        decision.family,
        decision.interface,
        decision.basis,
        decision.unbound,
        decision.candidates,
        decision.tunnels,
        decision.gateway,
        decision.notes,
    )
