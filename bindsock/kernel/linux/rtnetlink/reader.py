"""One reading of the network: links, addresses and routes dumped, and the kernel asked by which interfaces a default route leads.

A reading is several questions, between which the network can change. Whatever changes sends an event, and the event makes for
another reading, so that the last one is right.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from bindsock.errors import KernelError
from bindsock.kernel.linux.rtnetlink import devices, links, routes
from bindsock.model.network import (
    FAMILIES,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    IPAddress,
    Network,
    Route,
    taken_down,
    unmapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink.tables import DEFAULT_LENGTH, RoutingTables

# Public addresses of two DNS root servers, K and L, for no reason but that they are in nobody's private network. Nothing is sent.
_PROBES: dict[socket.AddressFamily, tuple[IPAddress, ...]] = {
    socket.AF_INET: (ipaddress.ip_address("193.0.14.129"), ipaddress.ip_address("199.7.83.42")),
    socket.AF_INET6: (ipaddress.ip_address("2001:7fd::1"), ipaddress.ip_address("2001:500:9f::42")),
}
# How the kernel says that no route leads there by that interface: none at all, an unreachable, prohibit or blackhole route
# (linux net/ipv4/fib_semantics.c, fib_props), or no such device.
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.ENETDOWN})


class Reader:
    """Makes readings, over one channel."""

    def __init__(self, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        """
        :param clock: monotonic seconds
        """
        self._channel = channel
        self._tables = RoutingTables(channel, clock)
        self._radios: dict[tuple[int, str, bytes], devices.Radio] = {}
        self._last: Network | None = None

    @property
    def defaults(self) -> tuple[Route, ...]:
        """The default routes of the last reading."""
        return self._tables.defaults

    def network(self, *, partial: bool = False, same_interfaces: bool = False) -> Network:
        """One reading.

        :param partial: the specific routes of an earlier reading will do
        :param same_interfaces: nothing has been said of interfaces and addresses since the last reading
        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        last = self._last if same_interfaces else None
        interfaces = last.interfaces if last is not None else self._interfaces()
        keeps = self._tables.keeps(partial)
        # Tunnels are asked only where their default routes are not known from a dump.
        matches = self._defaults(interfaces, tunnels=keeps)
        reachable = frozenset(
            (index, family) for (index, family) in matches if interfaces[index].kind is not InterfaceKind.TUNNEL
        )
        found = self._tables.kept(interfaces, matches.values(), partial) if keeps else self._tables.read(interfaces)
        network = Network(interfaces, found, reachable)
        if network != self._last:
            self._last = network
        return self._last

    def without(self, down: frozenset[int]) -> Network:
        """A partial reading where nothing has been said since the last one but that these interfaces went down.

        What the others have, and what a socket bound to one of them finds, stays; what does not will be in the next reading.
        """
        if self._last is None or not self._tables.keeps(partial=True):
            return self.network(partial=True)
        self._tables.take_down(down)
        self._last = taken_down(self._last, down)
        return self._last

    def _interfaces(self) -> Mapping[int, Interface]:
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
            known = self._radios.get(key)
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
        self._radios = radios
        return interfaces

    def _defaults(
        self, interfaces: Mapping[int, Interface], *, tunnels: bool
    ) -> dict[tuple[int, socket.AddressFamily], tuple[Route, ...]]:
        """The default route by each interface that could have one, as the kernel would choose it for a bound socket."""
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
            if match.destination.prefixlen <= DEFAULT_LENGTH[family]:
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
        return self._ask_route(_question(destination, interface.index)) is not None

    def _ask_route(self, body: bytes) -> routes.ParsedRoute | None:
        try:
            answer = self._channel.ask(routes.RTM_GETROUTE, body)
        except KernelError:
            raise
        except OSError as error:
            if error.errno in _NO_ROUTE:
                return None
            raise
        route = routes.parse_answer(answer.payload)
        if route is None:
            raise KernelError("rtnetlink answers a question for a route with something else")
        return None if route.type in routes.DEAD_ENDS else route


@lru_cache(maxsize=1024)
def _question(destination: IPAddress, index: int) -> bytes:
    destination = unmapped(destination)
    # Neither of these needs a route: out of the bound device it is heard by whoever is on the link.
    on_link = destination.version == 4 and (destination.is_multicast or int(destination) == 0xFFFFFFFF)
    return routes.query(destination, index, fib_match=not on_link)
