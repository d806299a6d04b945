"""Reading the network: links, addresses and policy rules are dumped, and the default routes are looked up.

A reading takes several requests, and the network can change between them. Such a change sends an event, which causes another
reading, so the last reading is consistent.
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
    """Reads the network, over one channel."""

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
        self._ahead: tuple[Network | None, dict[frozenset[int], Network]] = None, {}
        """A reading, and what would follow if one of its uplinks went down."""

    @property
    def mark(self) -> int:
        """The firewall mark of bound sockets, used in route lookups. Changing it discards the last reading."""
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
        """Read the network.

        :param same_interfaces: no event since the last reading was about interfaces or addresses
        :param same_rules: no event since the last reading was about policy rules
        :param families: the families whose default routes may have changed
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
        """A partial reading after events that only say that interfaces went down.

        The other interfaces and their routes are assumed to be unchanged; the next reading will tell.

        :param down: the indices of the interfaces
        """
        if self.last is None:
            return self.network()
        of, ahead = self._ahead
        self.last = ahead[down] if of is self.last and down in ahead else taken_down(self.last, down)
        return self.last

    def look_ahead(self) -> None:
        """Prepare :meth:`without` for each uplink of the last reading."""
        last = self.last
        if last is not None and self._ahead[0] is not last:
            single = {frozenset({index}) for index, _ in last.reachable}
            self._ahead = last, {down: taken_down(last, down) for down in single}

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
        """Recognise the TAP device of a rootless container (slirp4netns, pasta) as an uplink, if there has never been another
        device.

        A VPN's device can be the only one left, too, while the uplinks are gone. So a TUN device never counts, and the reader
        remembers whether there was another device.
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
            # A tunnel that was made on a certain device names it (`ip link add type ipip ... dev eth0`).
            delegate=link.lower if kind is InterfaceKind.TUNNEL else None,
            expensive=kind is InterfaceKind.CELLULAR,
            last_resort=last_resort,
            dormant=link.dormant,
            alternative_names=link.alternative_names,
        )

    def _with_tunnel_bridges(self, interfaces: Mapping[int, Interface], with_default: set[int]) -> Mapping[int, Interface]:
        """Mark as tunnels the bridges that have only tunnels as members and a default route.

        A bridge to virtual machines may have only TAP members, too, but has no default route.
        """
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
        """Look up one destination.

        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        network = self.last if self.last is not None else self.network()
        return self._questions.answers(network, self.rules.sources, destination)

    def marked_route(self, interface: Interface, destination: IPAddress) -> Lookup | None:
        """The route that a bound socket would have with one of the firewall marks that policy rules match.

        VPNs hide this route from all traffic but their own.
        """
        for mark in self.rules.marks:
            answers = self._questions.answers(self.last or self.network(), (), destination, mark=mark)
            found = answers.by_interface.get(interface.index)
            if found is not None and found.usable:
                return found
        return None

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Whether the routing tables have a route to the destination for a socket that is bound to the interface."""
        scope = getattr(destination, "scope_id", None)
        if scope is not None and scope not in (str(interface.index), interface.name):
            return False
        (answer,) = self._questions.ask([_question(destination, interface.index, self.mark)])
        if not isinstance(answer, int):
            return answer.type not in routes.DEAD_ENDS
        default = self.last.defaults.get((interface.index, family_of(unmapped(destination)))) if self.last is not None else None
        if not self.rules.sources and (default is None or default.needs_source is None):
            return False
        # There may be a route for certain source addresses; the socket will be bound to one.
        found = self.answers(destination).by_interface.get(interface.index)
        return found is not None and found.usable


@lru_cache(maxsize=1024)
def _question(destination: IPAddress, index: int, mark: int) -> bytes:
    destination = unmapped(destination)
    # Multicast and broadcast need no route: a bound socket sends them to the link.
    on_link = destination.version == 4 and (destination.is_multicast or int(destination) == 0xFFFFFFFF)
    return routes.query(destination, index, fib_match=not on_link, mark=mark)
