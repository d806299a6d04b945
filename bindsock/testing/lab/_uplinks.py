"""The host's uplinks, and the changes that can be made to them.

Like a network manager, it restores addresses and default routes when a link comes up. Every operation is complete when it
returns, and returns the ``time.monotonic()`` from just before the change.
"""

from __future__ import annotations

import errno
import functools
import socket
import time
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from . import _netlink as netlink
from ._namespaces import inside
from ._topology import BEST_METRIC, DEFAULTS, LEAVES, Family, Uplink, with_length

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

_SYSCTLS = {
    # A strict reverse path filter (1) drops all answers to a socket that is bound to another interface than the default route's.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    # Otherwise each of two interfaces in a subnet answers ARP requests for both, and asks in the name of both. The router then
    # sends to the wrong one, where no bound socket takes the packets.
    "ipv4/conf/all/arp_ignore": "1",
    "ipv4/conf/all/arp_announce": "2",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
}
# A veth pair that comes up drops packets until the kernel's link watch has run. With the usual second between ARP requests, this
# would look like an outage, so the interval is shorter. The time until the kernel gives up, three seconds, is unchanged.
_NEIGHBOURS = {"retrans_time_ms": "50", "mcast_solicit": "60"}
_FORWARDING = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
_BLACKHOLE_PRIORITY = 100
_HARDWARE = b"\x02\0\0\0\0\1"
"""A hardware address for links that need a given one."""
P = ParamSpec("P")


def _hardware(uplink: Uplink, end: int) -> bytes:
    """The hardware address of an end of an uplink. A device that is plugged in again has the same one, as in reality.

    With another one, its neighbours would go on sending IPv6 packets to the old one for up to a minute: Linux sends no
    unsolicited neighbour advertisement by default.
    """
    return bytes((2, 0, 0, 0, end, uplink.number))


def _operation(method: Callable[Concatenate[Uplinks, P], float]) -> Callable[Concatenate[Uplinks, P], float]:
    """Call ``changed`` after the operation."""

    @functools.wraps(method)
    def wrapper(self: Uplinks, /, *args: P.args, **kwargs: P.kwargs) -> float:
        now = method(self, *args, **kwargs)
        self.changed()
        return now

    return wrapper


class Uplinks:
    """The links between the host and the router.

    :param uplinks: the uplinks by name, best first
    :param namespaces: the descriptors of the namespaces, by name
    :param families: the address families that the system has
    """

    def __init__(self, uplinks: Mapping[str, Uplink], namespaces: dict[str, int], families: Sequence[Family]) -> None:
        self.families = tuple(families)
        self.by_name = uplinks
        self.has_defaults = True
        """Whether the uplinks have default routes; a VPN may have taken them away."""
        self.changed: Callable[[], None] = lambda: None
        """Called after every operation."""
        self._namespaces = namespaces
        self.netlinks: dict[str, netlink.Netlink] = {}

    def build(self) -> None:
        """Make all links, addresses and routes."""
        for name, namespace in self._namespaces.items():
            with inside(namespace):
                self.netlinks[name] = netlink.Netlink()
                for key, value in (_SYSCTLS | (_FORWARDING if name in ("router", "vpn") else {})).items():
                    self._sysctl(key, value)
            self._set_up(name, "lo")
        for leaf in LEAVES:
            self._pair(leaf.namespace, "eth0", leaf.namespace)
            index = self.netlinks[leaf.namespace].link("eth0").index
            router = self.netlinks["router"].link(leaf.namespace).index
            for family in self.families:
                self.netlinks["router"].request(netlink.address(router, with_length(family, leaf.gateway(family))))
                self.netlinks[leaf.namespace].request(
                    netlink.address(index, with_length(family, leaf.host(family))),
                    netlink.route(DEFAULTS[family], interface=index, gateway=leaf.gateway(family)),
                )
        for bridge in {uplink.router_device for uplink in self.by_name.values() if uplink.bridged}:
            self.netlinks["router"].request(netlink.bridge(bridge, _HARDWARE))
            self._set_up("router", bridge)
        for uplink in self.by_name.values():
            self._make(uplink)

    def close(self) -> None:
        for link in self.netlinks.values():
            link.close()

    @property
    def best(self) -> Uplink | None:
        """The uplink that a network manager would take for IPv4."""
        usable = [u for u in self.by_name.values() if u.routable and u.carrier and u.ipv4]
        return min(usable, key=lambda u: u.metric, default=None)

    @_operation
    def down(self, name: str) -> float:
        """Set the link down. The kernel removes its routes and IPv6 addresses."""
        uplink = self.by_name[name]
        uplink.up = False
        return self._host(netlink.link_flags(uplink.index, 0, netlink.IFF_UP))

    @_operation
    def up(self, name: str) -> float:
        """Set the link up, and add its addresses and default routes again."""
        uplink = self.by_name[name]
        uplink.up = uplink.addressed = True
        return self._host(
            netlink.link_flags(uplink.index, netlink.IFF_UP, netlink.IFF_UP), *self._addresses(uplink), *self._defaults(uplink)
        )

    @_operation
    def carrier(self, name: str, on: bool) -> float:
        """Pull the cable, or plug it in."""
        uplink = self.by_name[name]
        uplink.carrier = on
        router = self.netlinks["router"]
        index = router.link(name).index
        now = time.monotonic()
        router.request(netlink.link_flags(index, netlink.IFF_UP if on else 0, netlink.IFF_UP))
        if on:
            router.request(*self._router_addresses(uplink))
        return now

    @_operation
    def remove_addresses(self, name: str) -> float:
        """Remove the addresses and default routes; the link stays up."""
        uplink = self.by_name[name]
        uplink.addressed = False
        return self._host(*self._without_addresses(uplink), ignore=netlink.GONE)

    @_operation
    def add_addresses(self, name: str) -> float:
        """Add the addresses and default routes again."""
        uplink = self.by_name[name]
        uplink.addressed = True
        return self._host(*self._addresses(uplink), *self._defaults(uplink))

    @_operation
    def renumber(self, name: str, site: str) -> float:
        """Move the uplink to its other network, ``"a"`` or ``"b"``: other prefix, address and gateway, same link."""
        uplink = self.by_name[name]
        now = self._host(*self._without_addresses(uplink), ignore=netlink.GONE)
        uplink.site = site
        uplink.addressed = True
        self._host(*self._addresses(uplink), *self._defaults(uplink))
        return now

    @_operation
    def default(self, name: str) -> float:
        """Make the uplink's default route the best one. There is a default route at all times."""
        uplink = self.by_name[name]
        others = [u for u in self.by_name.values() if u is not uplink and u.metric <= BEST_METRIC]
        before = uplink.metric
        outdated = [(u, u.metric) for u in others if u.metric < BEST_METRIC]
        for other in others:  # an uplink whose route at the best metric is replaced must get another route before
            other.metric = 500 + 100 * other.number
            self._host(*self._defaults(other))
        uplink.metric = BEST_METRIC
        now = self._host(*self._defaults(uplink))
        for old, metric in [*outdated, *([(uplink, before)] if before != BEST_METRIC else [])]:
            self._host(*self._defaults(old, metric=metric, delete=True), ignore=netlink.GONE)
        return now

    @_operation
    def metric(self, name: str, metric: int) -> float:
        """Change the metric of the uplink's default routes: the new one is added, then the old one deleted."""
        uplink = self.by_name[name]
        before, uplink.metric = uplink.metric, metric
        now = self._host(*self._defaults(uplink))
        if before != metric:
            self._host(*self._defaults(uplink, metric=before, delete=True), ignore=netlink.GONE)
        return now

    @_operation
    def delete(self, name: str) -> float:
        """Delete the interface, as if a USB device was unplugged."""
        uplink = self.by_name[name]
        uplink.exists = False
        return self._host(netlink.delete_link(uplink.index))

    @_operation
    def create(self, name: str) -> float:
        """Create a deleted interface again. It has a new index."""
        uplink = self.by_name[name]
        uplink.exists = uplink.up = uplink.carrier = uplink.addressed = True
        now = time.monotonic()
        self._make(uplink)
        return now

    @_operation
    def blackhole(self, name: str, on: bool) -> float:
        """Let the router silently drop packets from and to the uplink. The gateway itself still answers."""
        uplink = self.by_name[name]
        messages = []
        for family in self._families(uplink):
            hosts = [uplink.host_alone(family, site) for site in ("a", "b")]
            directions: list[tuple[str, str | None, str | None]] = [
                (uplink.router_device, host if uplink.bridged else None, None) for host in hosts
            ]
            directions += [(leaf.namespace, None, host) for host in hosts for leaf in LEAVES]
            messages += [
                netlink.rule(
                    family,
                    _BLACKHOLE_PRIORITY + uplink.number,
                    action="blackhole",
                    incoming=incoming,
                    source=source,
                    destination=destination,
                    delete=not on,
                )
                for incoming, source, destination in directions
            ]
        now = time.monotonic()
        self.netlinks["router"].request(*messages, ignore=(errno.EEXIST, errno.ENOENT))
        return now

    def give_defaults(self, present: bool) -> None:
        """Add the uplinks' default routes, or remove all of them."""
        self.has_defaults = True
        for uplink in self.by_name.values():
            self._host(*self._defaults(uplink, delete=not present), ignore=() if present else netlink.GONE)
        self.has_defaults = present

    def _host(self, *messages: netlink.Message, ignore: Container[int] = ()) -> float:
        now = time.monotonic()
        self.netlinks["host"].request(*messages, ignore=ignore)
        return now

    def _make(self, uplink: Uplink) -> None:
        host, router = self.netlinks["host"], self.netlinks["router"]
        if uplink.kind != "macvlan" or not uplink.index:
            hardware = _hardware(uplink, 1), _hardware(uplink, 2)
            self._pair("host", uplink.lower, uplink.name, neighbours=uplink.kind != "point-to-point", hardware=hardware)
        else:
            self._set_up("router", uplink.name)  # the cable was not deleted, but it may have been pulled
        if uplink.kind == "macvlan":
            host.request(netlink.macvlan(uplink.name, host.link(uplink.lower).index, _hardware(uplink, 3)))
            self._set_up("host", uplink.name)
        uplink.index = host.link(uplink.name).index
        if uplink.bridged:
            router.request(netlink.link_master(router.link(uplink.name).index, router.link(uplink.router_device).index))
        router.request(*self._router_addresses(uplink))
        self._host(*self._addresses(uplink), *self._defaults(uplink))

    def _families(self, uplink: Uplink) -> list[Family]:
        return [family for family in self.families if uplink.ipv4 or family != socket.AF_INET]

    def _addresses(self, uplink: Uplink) -> list[netlink.Message]:
        return [netlink.address(uplink.index, uplink.host_with_length(f)) for f in self._families(uplink)]

    def _without_addresses(self, uplink: Uplink) -> list[netlink.Message]:
        addresses = [netlink.address(uplink.index, uplink.host_with_length(f), delete=True) for f in self._families(uplink)]
        # The kernel removed the IPv4 route with its subnet, but not the IPv6 route.
        return addresses + self._defaults(uplink, delete=True)

    def _router_addresses(self, uplink: Uplink) -> list[netlink.Message]:
        index = self.netlinks["router"].link(uplink.router_device).index
        places = [(family, site) for family in self._families(uplink) for site in ("a", "b")]
        if uplink.kind == "point-to-point":
            return [netlink.route(uplink.host_alone(*place), interface=index) for place in places]
        return [netlink.address(index, with_length(family, uplink.gateway(family, site))) for family, site in places]

    def _defaults(self, uplink: Uplink, *, metric: int | None = None, delete: bool = False) -> list[netlink.Message]:
        if not self.has_defaults or not (uplink.routable or (delete and uplink.exists)):
            return []
        return [
            netlink.route(
                DEFAULTS[family],
                interface=uplink.index,
                gateway=uplink.next_hop(family),
                metric=uplink.metric if metric is None else metric,
                delete=delete,
            )
            for family in self._families(uplink)
        ]

    def _pair(
        self,
        namespace: str,
        name: str,
        router_name: str,
        *,
        neighbours: bool = True,
        hardware: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Connect a namespace with the router.

        :param neighbours: whether the link has neighbours. Otherwise there are no questions for link-layer addresses, and
            both ends have the same one, since the kernel then sends to its own
        :param hardware: the hardware addresses of both ends; by default the kernel chooses them
        """
        if not neighbours:
            hardware = _HARDWARE, _HARDWARE
        self.netlinks[namespace].request(netlink.veth(name, router_name, self._namespaces["router"], hardware=hardware))
        for end, device in (("router", router_name), (namespace, name)):
            if not neighbours:
                link = self.netlinks[end]
                link.request(netlink.link_flags(link.link(device).index, netlink.IFF_NOARP, netlink.IFF_NOARP))
            self._set_up(end, device)
            with inside(self._namespaces[end]):
                for version in ("ipv4", "ipv6"):
                    for key, value in _NEIGHBOURS.items():
                        self._sysctl(f"{version}/neigh/{device}/{key}", value)

    def _set_up(self, namespace: str, name: str) -> None:
        link = self.netlinks[namespace]
        link.request(netlink.link_flags(link.link(name).index, netlink.IFF_UP, netlink.IFF_UP))

    def _sysctl(self, key: str, value: str) -> None:
        if key.startswith("ipv6/") and socket.AF_INET6 not in self.families:
            return
        with open(f"/proc/sys/net/{key}", "w", encoding="ascii") as file:
            file.write(value)
