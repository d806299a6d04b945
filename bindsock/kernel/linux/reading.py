"""One reading of the network: links, addresses and routes dumped, and the kernel asked by which interfaces a default route leads.

A reading is several questions, between which the network can change. Whatever changes sends an event, and the event makes for
another reading, so that the last one is right.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.linux import devices, links, routes
from bindsock.network import (
    FAMILIES,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    IPAddress,
    Network,
    Route,
    RouteKind,
    unmapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsock.kernel.linux.netlink import Channel

LARGE_TABLE = 4096
"""With more routes than this the specific ones are not read at every event."""
ROUTES_KEPT_SECONDS = 60.0

# Public addresses of two DNS root servers, K and L, for no reason but that they are in nobody's private network. Nothing is sent.
_PROBES: dict[socket.AddressFamily, tuple[IPAddress, ...]] = {
    socket.AF_INET: (ipaddress.ip_address("193.0.14.129"), ipaddress.ip_address("199.7.83.42")),
    socket.AF_INET6: (ipaddress.ip_address("2001:7fd::1"), ipaddress.ip_address("2001:500:9f::42")),
}
# 0/1 and 128/1, or 2000::/3, stand in for a default route.
_DEFAULT_LENGTH = {socket.AF_INET: 1, socket.AF_INET6: 3}

# How the kernel says that no route leads there by that interface: none at all, an unreachable, prohibit or blackhole route
# (linux net/ipv4/fib_semantics.c, fib_props), or no such device.
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.ENETDOWN})


@dataclass(slots=True)
class _Memory:
    """What is kept from one reading to the next."""

    radios: dict[tuple[int, str, bytes], devices.Radio] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    routes_read: float | None = None
    """When, if there were so many that they are kept."""


class Reader:
    """Makes readings, over one channel."""

    def __init__(self, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = channel
        self._clock = clock
        self._memory = _Memory()

    def network(self) -> Network:
        """One reading.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        interfaces = self._interfaces()
        matches = self._defaults(interfaces)
        reachable = frozenset(
            (index, family) for (index, family) in matches if interfaces[index].kind is not InterfaceKind.TUNNEL
        )
        return Network(interfaces, self._routes(interfaces, matches), reachable)

    def forget(self) -> None:
        """Read everything anew the next time."""
        self._memory = _Memory()

    def _interfaces(self) -> dict[int, Interface]:
        found = [
            link for payload in self._channel.dump(links.RTM_GETLINK, links.ALL_LINKS) if (link := links.parse_link(payload))
        ]
        addresses: dict[int, list[InterfaceAddress]] = {}
        for payload in self._channel.dump(links.RTM_GETADDR, links.ALL_ADDRESSES):
            if entry := links.parse_address(payload):
                addresses.setdefault(entry[0], []).append(entry[1])
        radios: dict[tuple[int, str, bytes], devices.Radio] = {}
        interfaces = {}
        for link in found:
            key = (link.index, link.name, link.address)
            known = self._memory.radios.get(key)
            radios[key] = known if known is not None else devices.radio(link, self._channel.socket().fileno())
            kind, last_resort = links.classify(link, wireless=radios[key].wireless, modem=radios[key].modem)
            interfaces[link.index] = Interface(
                name=link.name,
                index=link.index,
                kind=kind,
                up=link.up,
                running=link.running,
                addresses=tuple(addresses.get(link.index, ())),
                mtu=link.mtu,
                # A tunnel that was made on top of one device (`ip link add type ipip ... dev eth0`) says so.
                delegate=link.lower if kind is InterfaceKind.TUNNEL else None,
                expensive=kind is InterfaceKind.CELLULAR,
                last_resort=last_resort,
            )
        self._memory.radios = radios
        return interfaces

    def _defaults(self, interfaces: dict[int, Interface]) -> dict[tuple[int, socket.AddressFamily], tuple[Route, ...]]:
        """The default route by each interface that could have one, as the kernel would choose it for a bound socket.

        Tunnels are asked only where their default routes are not known from a dump.
        """
        tunnels = self._routes_are_kept()
        matches = {}
        for interface in interfaces.values():
            if not (interface.up and interface.running) or interface.kind is InterfaceKind.LOOPBACK:
                continue
            if interface.kind is InterfaceKind.TUNNEL and not tunnels:
                continue
            for family in FAMILIES:
                if interface.usable_addresses(family) and (found := self._default(interface.index, family)):
                    matches[interface.index, family] = found
        return matches

    def _default(self, index: int, family: socket.AddressFamily) -> tuple[Route, ...]:
        for probe in _PROBES[family]:
            match = self.match(index, probe)
            if match is None:
                return ()
            if match.destination.prefixlen <= _DEFAULT_LENGTH[family]:
                hops = tuple(route for route in match.routes if route.interface == index)
                # With a nexthop object alone (net.ipv4.nexthop_compat_mode=0) the answer names no interface.
                return hops or match.by([routes.NextHop(index, None)])
        return ()

    def match(self, index: int, destination: IPAddress) -> routes.ParsedRoute | None:
        """The entry of the routing tables that a socket bound to the interface takes to the destination, or ``None``.

        :raises KernelError: the answer cannot be understood
        :raises OSError: the question is refused for another reason than that there is no route
        """
        return self._ask_route(routes.query(destination, index))

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Whether a socket that is bound to the interface reaches the destination, as far as the routing tables can tell."""
        scope = getattr(destination, "scope_id", None)
        if scope is not None and scope not in (str(interface.index), interface.name):
            return False
        destination = unmapped(destination)
        if destination.version == 4 and (destination.is_multicast or int(destination) == 0xFFFFFFFF):
            # Neither needs a route: out of the bound device it is heard by whoever is on the link.
            return self._ask_route(routes.query(destination, interface.index, fib_match=False)) is not None
        return self.match(interface.index, destination) is not None

    def _ask_route(self, body: bytes) -> routes.ParsedRoute | None:
        try:
            answer = self._channel.ask(routes.RTM_GETROUTE, body)
        except KernelError:
            raise
        except OSError as error:
            if error.errno in _NO_ROUTE:
                return None
            raise
        route = routes.parse_route(answer.payload, dump=False)
        if route is None:
            raise KernelError("rtnetlink answers a question for a route with something else")
        return None if route.type in routes.DEAD_ENDS else route

    def _routes_are_kept(self) -> bool:
        read = self._memory.routes_read
        return read is not None and 0 <= self._clock() - read < ROUTES_KEPT_SECONDS

    def _routes(
        self, interfaces: dict[int, Interface], matches: dict[tuple[int, socket.AddressFamily], tuple[Route, ...]]
    ) -> tuple[Route, ...]:
        memory = self._memory
        if self._routes_are_kept():
            kept = [
                route
                for route in memory.routes
                if route.kind is not RouteKind.UNICAST
                or (not _default_like(route) and route.interface in interfaces and interfaces[route.interface].up)
            ]
            return (*(route for found in matches.values() for route in found), *kept)
        started = self._clock()
        found = self._dump()
        memory.routes, memory.routes_read = (found, started) if len(found) > LARGE_TABLE else ((), None)
        return found

    def _dump(self) -> tuple[Route, ...]:
        parsed = [
            route
            for family in FAMILIES
            for payload in self._channel.dump(routes.RTM_GETROUTE, routes.dump_request(family))
            # A kernel without IPv6 answers with what it has.
            if (route := routes.parse_route(payload)) and route.family == family
        ]
        if all(route.routes or route.nexthop_id is None for route in parsed):
            return tuple(route for entry in parsed for route in entry.routes)
        # Where net.ipv4.nexthop_compat_mode=0 a route names its nexthop object and nothing else.
        nexthops = routes.parse_nexthops(self._channel.dump(routes.RTM_GETNEXTHOP, routes.ALL_NEXTHOPS))
        return tuple(route for entry in parsed for route in entry.routes or entry.by(nexthops.get(entry.nexthop_id or 0, ())))


def _default_like(route: Route) -> bool:
    return route.destination.prefixlen <= _DEFAULT_LENGTH[route.family]
