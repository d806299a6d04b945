"""One reading of the network: links, addresses and rules dumped, and the kernel asked where default routes lead.

A reading is several questions, between which the network can change. Whatever changes sends an event, and the event makes for
another reading, so that the last one is right.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING

from bindsock.kernel.linux.rtnetlink import devices, links, routes
from bindsock.kernel.linux.rtnetlink.questions import Questions
from bindsock.kernel.linux.rtnetlink.rules import Rules, read_rules
from bindsock.model.network import (
    FAMILIES,
    Interface,
    InterfaceAddress,
    InterfaceKind,
    IPAddress,
    Network,
    family_of,
    taken_down,
    unmapped,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Mapping

    from bindsock.kernel.linux.netlink import Channel
    from bindsock.model.network import Answers, Lookup


class Reader:
    """Makes readings, over one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._questions = Questions(channel)
        self._radios: dict[tuple[int, str, bytes], devices.Radio] = {}
        self._links: dict[int, links.Link] = {}
        self._kinds: dict[int, tuple[InterfaceKind, bool]] = {}
        self._had_others = False
        self.rules: Rules = Rules()
        """The policy rules of the last reading."""
        self.last: Network | None = None
        """The last reading."""

    @property
    def mark(self) -> int:
        """The firewall mark of bound sockets, with which routes are asked for. Another one makes the last reading old."""
        return self._questions.mark

    @mark.setter
    def mark(self, mark: int) -> None:
        if mark != self._questions.mark:
            self._questions.mark = mark
            self.last = None

    def network(
        self,
        *,
        same_interfaces: bool = False,
        same_rules: bool = False,
        families: Collection[socket.AddressFamily] = FAMILIES,
    ) -> Network:
        """One reading.

        :param same_interfaces: nothing has been said of interfaces and addresses since the last reading
        :param same_rules: nor of rules
        :param families: of which a default route may have changed besides
        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        last = self.last
        if last is not None and same_interfaces and same_rules and not families:
            return last
        interfaces = last.interfaces if last is not None and same_interfaces else self._interfaces()
        if last is None or not same_rules:
            self.rules = read_rules(self._channel)
        enslaved = frozenset(link.index for link in self._links.values() if link.master is not None)
        wanted = families if last is not None and same_interfaces and same_rules else FAMILIES
        defaults, unbound = self._questions.defaults(interfaces, enslaved, self.rules.sources, wanted)
        if last is not None:
            defaults = {key: lookup for key, lookup in last.defaults.items() if key[1] not in wanted} | defaults
            unbound = {family: lookup for family, lookup in last.unbound.items() if family not in wanted} | unbound
        interfaces = self._with_tunnel_bridges(interfaces, {index for index, _ in defaults})
        network = Network(interfaces, (), defaults, unbound, self.rules.tables)
        if network != self.last:
            self.last = network
        assert self.last is not None
        return self.last

    def without(self, down: frozenset[int]) -> Network:
        """A partial reading where nothing has been said since the last one but that these interfaces went down.

        What the others have, and what a socket bound to one of them finds, stays; what does not will be in the next reading.
        """
        if self.last is None:
            return self.network()
        self.last = taken_down(self.last, down)
        return self.last

    def _interfaces(self) -> Mapping[int, Interface]:
        found = {
            link.index: link
            for payload in self._channel.dump(links.RTM_GETLINK, links.ALL_LINKS)
            if (link := links.parse_link(payload))
        }
        addresses: dict[int, list[InterfaceAddress]] = {}
        for payload in self._channel.dump(links.RTM_GETADDR, links.ALL_ADDRESSES):
            if entry := links.parse_address(payload):
                addresses.setdefault(entry[0], []).append(entry[1])
        self._links, self._kinds = found, links.corrected_kinds(self._classified(found), found, addresses)
        self._recognise_container()
        return {
            link.index: self._interface(link, *self._kinds[link.index], tuple(addresses.get(link.index, ())))
            for link in found.values()
        }

    def _recognise_container(self) -> None:
        """Take the TAP of a rootless container (slirp4netns, pasta) for the way out: it has no other device, and has had none.

        A VPN is all that is left as well while the uplinks are gone, which is why a TUN never counts, and why it is remembered
        that there was another device.
        """
        ways = links.uplink_candidates(self._kinds, self._links)
        alone = len(ways) == 1 and links.is_tap(self._links[ways[0]])
        self._had_others |= bool(ways) and not alone
        if alone and not self._had_others and self._kinds[ways[0]][0] is InterfaceKind.TUNNEL:
            self._kinds[ways[0]] = InterfaceKind.OTHER, True

    def _classified(self, found: Mapping[int, links.Link]) -> dict[int, tuple[InterfaceKind, bool]]:
        radios: dict[tuple[int, str, bytes], devices.Radio] = {}
        kinds = {}
        for link in found.values():
            key = (link.index, link.name, link.address)
            known = self._radios.get(key)
            radios[key] = known if known is not None else devices.radio(link, self._channel.socket().fileno())
            kinds[link.index] = links.classify(link, wireless=radios[key].wireless, modem=radios[key].modem)
        self._radios = radios
        return kinds

    @staticmethod
    def _interface(
        link: links.Link, kind: InterfaceKind, last_resort: bool, addresses: tuple[InterfaceAddress, ...]
    ) -> Interface:
        return Interface(
            name=link.name,
            index=link.index,
            kind=kind,
            up=link.up,
            running=link.running,
            addresses=addresses,
            mtu=link.mtu,
            # A tunnel that was made on top of one device (`ip link add type ipip ... dev eth0`) says so.
            delegate=link.lower if kind is InterfaceKind.TUNNEL else None,
            expensive=kind is InterfaceKind.CELLULAR,
            last_resort=last_resort,
            dormant=link.dormant,
            alternative_names=link.alternative_names,
        )

    def _with_tunnel_bridges(self, interfaces: Mapping[int, Interface], with_default: set[int]) -> Mapping[int, Interface]:
        """A bridge to which only tunnels belong is one itself if it has a default route; one to virtual machines has none."""
        found = {
            index
            for index in with_default
            if interfaces[index].kind is not InterfaceKind.TUNNEL
            and links.all_ports_are_tunnels(self._links[index], self._links, self._kinds)
        }
        if not found:
            return interfaces
        return {
            index: dataclasses.replace(i, kind=InterfaceKind.TUNNEL) if index in found else i for index, i in interfaces.items()
        }

    def answers(self, destination: IPAddress) -> Answers:
        """What the kernel says about one destination.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        network = self.last if self.last is not None else self.network()
        return self._questions.answers(network, self.rules.sources, destination)

    def marked_route(self, interface: Interface, destination: IPAddress) -> Lookup | None:
        """The route that a bound socket would have if it had one of the marks that policy rules ask for: what a VPN hides from
        all but its own traffic."""
        for mark in self.rules.marks:
            answers = self._questions.answers(self.last or self.network(), (), destination, mark=mark)
            found = answers.by_interface.get(interface.index)
            if found is not None and found.usable:
                return found
        return None

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Whether a socket that is bound to the interface reaches the destination, as far as the routing tables can tell."""
        scope = getattr(destination, "scope_id", None)
        if scope is not None and scope not in (str(interface.index), interface.name):
            return False
        (answer,) = self._questions.ask([_question(destination, interface.index, self.mark)])
        if not isinstance(answer, int):
            return answer.type not in routes.DEAD_ENDS
        default = self.last.defaults.get((interface.index, family_of(unmapped(destination)))) if self.last is not None else None
        if not self.rules.sources and (default is None or default.needs_source is None):
            return False
        # A route for certain source addresses only, to which the socket is bound.
        found = self.answers(destination).by_interface.get(interface.index)
        return found is not None and found.usable


@lru_cache(maxsize=1024)
def _question(destination: IPAddress, index: int, mark: int) -> bytes:
    destination = unmapped(destination)
    # Neither of these needs a route: out of the bound device it is heard by whoever is on the link.
    on_link = destination.version == 4 and (destination.is_multicast or int(destination) == 0xFFFFFFFF)
    return routes.query(destination, index, fib_match=not on_link, mark=mark)
