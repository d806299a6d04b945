"""Route lookups in the kernel: the route by each interface, and that of an unbound socket.

RTM_GETROUTE with an interface and RTM_F_FIB_MATCH returns the entry that a bound socket would use, policy rules included, in 5 µs
(``linux net/ipv4/route.c``, inet_rtm_getroute). Lookups are sent in batches, each with one system call.

If there is no entry, the lookup is repeated with source addresses: policy rules and IPv6 routes for certain sources do not match
a lookup without one. For an interface without an address (an unnumbered uplink) the kernel chooses one of another interface,
such as the loopback.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from bindsock.errors import KernelError
from bindsock.kernel.linux.netlink import Message
from bindsock.kernel.linux.rtnetlink import routes
from bindsock.model.network import (
    FAMILIES,
    LOCAL_TABLE,
    Answers,
    Interface,
    InterfaceKind,
    IPAddress,
    Lookup,
    Route,
    RouteKind,
    family_of,
    unmapped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.kernel.linux.rtnetlink.routes import ParsedRoute
    from bindsock.model.network import IPNetwork, Network

PROBES: dict[socket.AddressFamily, tuple[IPAddress, ...]] = {
    socket.AF_INET: (ipaddress.ip_address("193.0.14.129"), ipaddress.ip_address("199.7.83.42")),
    socket.AF_INET6: (ipaddress.ip_address("2001:7fd::1"), ipaddress.ip_address("2001:500:9f::42")),
}
"""Addresses by which the default routes are looked up: those of two DNS root servers, K and L, which are in no private network.
Nothing is sent to them."""
_DEFAULT_LENGTH = {socket.AF_INET: 1, socket.AF_INET6: 3}
"""A route with at most this prefix length is a default route or replaces one: 0/1 and 128/1, or 2000::/3."""
_DEFAULT_PREFIX: dict[socket.AddressFamily, IPNetwork] = {
    socket.AF_INET: ipaddress.ip_network("0.0.0.0/0"),
    socket.AF_INET6: ipaddress.ip_network("::/0"),
}
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.ENETDOWN})
"""Errors that mean that there is no route by that interface: none at all, an unreachable, prohibit or blackhole route
(``linux net/ipv4/fib_semantics.c``, fib_props), or no such device."""
_REFUSALS = {
    errno.EHOSTUNREACH: RouteKind.UNREACHABLE,
    errno.EACCES: RouteKind.PROHIBIT,
    errno.EINVAL: RouteKind.BLACKHOLE,
}
_UNNUMBERED = 32
"""At most this many interfaces without an address are looked up: a cluster's node has hundreds, which are no uplinks."""
_SOURCES = 16
"""At most this many source addresses of an interface are tried."""


class _AboutDefaults(NamedTuple):
    """The lookups of the default routes by certain interfaces."""

    same: object
    """What they depend on in addition to the interfaces."""
    asked: list[tuple[socket.AddressFamily, list[Interface]]]
    """The interfaces of each family."""
    bodies: list[bytes]
    """For each family, one for an unbound socket, then one for each interface."""


class Questions:
    """Asks the kernel for routes, over one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._about_defaults: tuple[object, _AboutDefaults] | None = None
        self.mark = 0
        """The firewall mark of bound sockets."""

    def defaults(
        self,
        interfaces: Mapping[int, Interface],
        enslaved: frozenset[int],
        sources: Sequence[IPNetwork],
        families: Iterable[socket.AddressFamily] = FAMILIES,
    ) -> tuple[dict[tuple[int, socket.AddressFamily], Lookup], dict[socket.AddressFamily, Lookup]]:
        """The default route by each interface that could have one, and that of an unbound socket.

        :param enslaved: the interfaces that belong to a bridge or bond, which are no uplinks themselves
        :param sources: the source prefixes that have policy rules of their own
        """
        found: dict[tuple[int, socket.AddressFamily], Lookup] = {}
        unbound: dict[socket.AddressFamily, Lookup] = {}
        # Most readings are about routes, and ask by the same interfaces.
        same = (tuple(families), enslaved, self.mark)
        last = self._about_defaults
        if last is None or last[0] is not interfaces or last[1].same != same:
            last = self._about_defaults = interfaces, _about_defaults(interfaces, *same)
        answers = self.ask(last[1].bodies)
        for family, asked in last[1].asked:
            own, answers = answers[: len(asked) + 1], answers[len(asked) + 1 :]
            one = _Defaults(self, interfaces, asked, family, sources, own)
            found |= {(index, family): lookup for index, lookup in one.found.items()}
            if one.unbound is not None:
                unbound[family] = one.unbound
        return found, unbound

    def answers(
        self, network: Network, sources: Sequence[IPNetwork], destination: IPAddress, *, mark: int | None = None
    ) -> Answers:
        """Look up one destination.

        :param network: the last reading
        :param sources: the source prefixes that have policy rules of their own
        :param mark: the firewall mark of bound sockets, instead of :attr:`mark`
        """
        mark = self.mark if mark is None else mark
        destination = unmapped(destination)
        family = family_of(destination)
        asked = [
            i
            for i in network.interfaces.values()
            if _can_be_asked(i) and (_has_address(i, family) or (i.index, family) in network.defaults)
        ]
        questions = [routes.query(destination, None, fib_match=False)]
        questions += [routes.query(destination, i.index, mark=mark) for i in asked]
        first, *rest = self.ask(questions)
        unbound, refusal = _unbound_answer(first, destination)
        found = {
            i.index: Lookup(route, _source(answer))
            for i, answer in zip(asked, rest, strict=True)
            if (route := _hop(answer, i.index))
        }
        self._add_sourced(found, asked, family, destination, network, sources)
        other = network.interfaces.get(unbound.route.interface or 0) if unbound is not None else None
        if other is not None and _can_be_asked(other) and not _addressed(other, family):
            # An interface without an address, for example to a single container.
            entry, whole = self.ask(
                [routes.query(destination, other.index, fib_match=match, mark=mark) for match in (True, False)]
            )
            if (route := _hop(entry, other.index)) and not isinstance(whole, int):
                found[other.index] = Lookup(route, _owned(whole.source, network.interfaces))
        for index in found.keys() & {i.index for i in asked if not _addressed(i, family)}:
            default = network.defaults.get((index, family))
            if default is not None and found[index].source is None:
                found[index] = dataclasses.replace(found[index], source=default.source)
        if unbound is not None and (bound := found.get(unbound.route.interface or 0)) is not None:
            unbound = Lookup(_as_chosen(unbound.route, bound.route))
        return Answers(unbound, found, refusal)

    def _add_sourced(
        self,
        found: dict[int, Lookup],
        asked: Iterable[Interface],
        family: socket.AddressFamily,
        destination: IPAddress,
        network: Network,
        sources: Sequence[IPNetwork],
    ) -> None:
        """Repeat the lookup with source addresses, for the interfaces by which no route was found."""
        tried: list[tuple[int, IPAddress]] = []
        for interface in asked:
            if interface.index not in found:
                default = network.defaults.get((interface.index, family))
                needed = default.needs_source if default is not None else None
                tried += (
                    [(interface.index, needed)] if needed is not None else _sources(interface, family, sources, ruled_only=True)
                )
        if tried:
            self.with_sources(found, tried, destination)

    def with_sources(self, found: dict[int, Lookup], tried: Sequence[tuple[int, IPAddress]], destination: IPAddress) -> None:
        """Repeat the lookup with source addresses, and add for each interface the first route found."""
        answers = self.ask([routes.query(destination, index, source=source, mark=self.mark) for index, source in tried])
        for (index, source), answer in zip(tried, answers, strict=True):
            if index not in found and (route := _hop(answer, index)):
                found[index] = Lookup(route, needs_source=source)

    def ask(self, questions: Sequence[bytes]) -> list[ParsedRoute | int]:
        """The route for each lookup, or the errno that means that there is none.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a lookup fails for another reason than that there is no route
        """
        return [_understood(answer) for answer in self._channel.ask_all(routes.RTM_GETROUTE, questions)]


def _about_defaults(
    interfaces: Mapping[int, Interface], families: tuple[socket.AddressFamily, ...], enslaved: frozenset[int], mark: int
) -> _AboutDefaults:
    to_ask: list[tuple[socket.AddressFamily, list[Interface]]] = []
    bodies: list[bytes] = []
    for family in families:
        asked = [i for i in interfaces.values() if _can_be_asked(i) and (_addressed(i, family) or i.index not in enslaved)]
        without = [i.index for i in asked if not _addressed(i, family)]
        passed = frozenset(without[_UNNUMBERED:])
        asked = [i for i in asked if i.index not in passed]
        if len(without) == len(asked) and not any(i.usable_addresses(family) for i in interfaces.values()):
            continue  # a machine without this family
        to_ask.append((family, asked))
        bodies.append(routes.query(PROBES[family][0], None, fib_match=False))
        bodies += [routes.query(PROBES[family][0], i.index, mark=mark) for i in asked]
    return _AboutDefaults((families, enslaved, mark), to_ask, bodies)


class _Defaults:
    """Looks up the default routes of one family."""

    def __init__(
        self,
        questions: Questions,
        interfaces: Mapping[int, Interface],
        asked: Sequence[Interface],
        family: socket.AddressFamily,
        sources: Sequence[IPNetwork],
        answers: Sequence[ParsedRoute | int],
    ) -> None:
        """
        :param answers: about the first probe: that for an unbound socket, then one for each interface
        """
        self._questions = questions
        self._interfaces = interfaces
        self._family = family
        self.found: dict[int, Lookup] = {}
        probe, second = PROBES[family]
        first, *rest = answers
        longer: list[int] = []
        for interface, answer in zip(asked, rest, strict=True):
            route = _hop(answer, interface.index)
            if route is not None and route.destination.prefixlen > _DEFAULT_LENGTH[family]:
                longer.append(interface.index)
            if route is not None:
                self.found[interface.index] = Lookup(route, _source(answer))
        if longer:
            first = self._ask_again(longer, first, second)
        missing = [i for i in asked if i.index not in self.found]
        tried = [pair for i in missing for pair in _sources(i, family, sources)]
        if tried:
            questions.with_sources(self.found, tried, probe)
        self.unbound = self._unbound(first, probe)
        self._add_given_sources([i for i in asked if i.index in self.found and not _addressed(i, family)], probe)

    def _ask_again(self, longer: Sequence[int], first: ParsedRoute | int, second: IPAddress) -> ParsedRoute | int:
        """Look up a second address, since specific routes matched the first one.

        A tunnel with a specific route to both addresses has a default route in disguise: it is kept.
        """
        bodies = [
            routes.query(second, None, fib_match=False),
            *(routes.query(second, index, mark=self._questions.mark) for index in longer),
        ]
        unbound, *rest = self._questions.ask(bodies)
        passed = False
        for index, answer in zip(longer, rest, strict=True):
            route = _hop(answer, index)
            if route is not None and route.destination.prefixlen <= _DEFAULT_LENGTH[self._family]:
                self.found[index] = Lookup(route, _source(answer))
            elif route is None or self._interfaces[index].kind is not InterfaceKind.TUNNEL:
                del self.found[index]
            else:
                continue
            passed |= not isinstance(first, int) and any(hop.interface == index for hop in first.routes)
        return unbound if passed else first

    def _unbound(self, answer: ParsedRoute | int, probe: IPAddress) -> Lookup | None:
        lookup, _ = _unbound_answer(answer, probe)
        if lookup is None:
            return None
        bound = self.found.get(lookup.route.interface or 0)
        if bound is not None:
            return Lookup(_as_chosen(lookup.route, bound.route))
        return Lookup(dataclasses.replace(lookup.route, destination=_DEFAULT_PREFIX[self._family]))

    def _add_given_sources(self, unnumbered: Sequence[Interface], probe: IPAddress) -> None:
        """Find the source address of interfaces without one, as the kernel would choose it.

        Interfaces for which it would choose an address of a tunnel or another uplink are removed.
        """
        if not unnumbered:
            return
        answers = self._questions.ask(
            [routes.query(probe, i.index, fib_match=False, mark=self._questions.mark) for i in unnumbered]
        )
        uplinks = self.found.keys() - {i.index for i in unnumbered}
        for interface, answer in zip(unnumbered, answers, strict=True):
            lookup = self.found.pop(interface.index)
            source = _owned(lookup.source, self._interfaces)
            if source is None and not isinstance(answer, int):
                source = _owned(answer.source, self._interfaces, without=uplinks)
            if source is not None:
                self.found[interface.index] = dataclasses.replace(lookup, source=source)


def _can_be_asked(interface: Interface) -> bool:
    return interface.up and interface.running and interface.kind is not InterfaceKind.LOOPBACK


def _has_address(interface: Interface, family: socket.AddressFamily) -> bool:
    return any(a.family == family and not a.tentative for a in interface.addresses)


def _addressed(interface: Interface, family: socket.AddressFamily) -> bool:
    """Whether the kernel would send to the Internet from one of its addresses: not from an IPv6 link-local one (RFC 6724)."""
    return bool(interface.usable_addresses(family)) or (family == socket.AF_INET and _has_address(interface, family))


def _sources(
    interface: Interface, family: socket.AddressFamily, ruled: Sequence[IPNetwork], *, ruled_only: bool = False
) -> list[tuple[int, IPAddress]]:
    """The interface's addresses that may have routes of their own: one for each policy rule and each IPv6 prefix."""
    own = [a for a in interface.addresses if a.family == family and a.usable]
    found = [next((a.address for a in own if a.address in prefix), None) for prefix in ruled]
    if family == socket.AF_INET6 and not ruled_only:
        by_prefix = {ipaddress.ip_network((a.address, a.prefix_length), strict=False): a.address for a in reversed(own)}
        found += by_prefix.values()
    return [(interface.index, address) for address in dict.fromkeys(found) if address is not None][:_SOURCES]


def _owned(source: IPAddress | None, interfaces: Mapping[int, Interface], without: Iterable[int] = ()) -> IPAddress | None:
    """The source address if it is this host's, on an interface that is no tunnel and not excluded by ``without``."""
    if source is None or source.is_unspecified or source.is_loopback or source.is_link_local:
        return None
    owners = [i for i in interfaces.values() if i.has(source)]
    fit = [i for i in owners if i.kind is not InterfaceKind.TUNNEL and i.index not in without]
    return source if fit else None


def _understood(answer: Message | int) -> ParsedRoute | int:
    if isinstance(answer, int):
        if answer not in NO_ROUTE:
            raise OSError(answer, os.strerror(answer))
        return answer
    route = routes.parse_answer(answer.payload)
    if route is None:
        raise KernelError("netlink: a route lookup was answered with something else")
    return route


def _hop(answer: ParsedRoute | int, index: int) -> Route | None:
    """The route by which a socket bound to the interface would send; ``None`` if there is none."""
    if isinstance(answer, int) or answer.type in routes.DEAD_ENDS or answer.type == routes.RTN_LOCAL:
        return None
    if not answer.routes:
        # If the answer has only a nexthop object (net.ipv4.nexthop_compat_mode=0), it names no interface.
        return answer.by([routes.NextHop(index, None)])[0]
    # With an IPv6 source address the kernel may choose another interface (linux net/ipv6/route.c, ip6_route_output_flags).
    return next((route for route in answer.routes if route.interface == index), None)


def _source(answer: ParsedRoute | int) -> IPAddress | None:
    return None if isinstance(answer, int) else answer.source


def _unbound_answer(answer: ParsedRoute | int, destination: IPAddress) -> tuple[Lookup | None, Lookup | None]:
    """The route of an unbound socket, and the route that refuses its packets."""
    if isinstance(answer, int):
        kind = _REFUSALS.get(answer)
        if kind is None:
            return None, None
        return None, Lookup(Route(ipaddress.ip_network(destination), None, kind=kind))
    route = next(iter(answer.routes), None)
    if route is None or answer.type in routes.DEAD_ENDS:
        return None, None
    if answer.type == routes.RTN_LOCAL:
        # Delivered to this host, whichever table says so.
        route = dataclasses.replace(route, table=LOCAL_TABLE)
    return Lookup(route), None


def _as_chosen(chosen: Route, entry: Route) -> Route:
    """The entry that a bound socket finds, with the next hop that the kernel chose, if both are in the same table."""
    if entry.table != chosen.table:
        return chosen
    if entry.gateway == chosen.gateway:
        return entry
    return dataclasses.replace(entry, gateway=chosen.gateway)
