"""The operations of the simulated machine: they add and remove interfaces, addresses and routes, and send Darwin's events."""

from __future__ import annotations

import weakref
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

from bindsock.kernel.darwin import abi
from bindsock.testing.darwin import _encoding as encoding
from bindsock.testing.darwin._errors import darwin_error
from bindsock.testing.darwin._state import HARDWARE, Hardware, SimulatedInterface, SimulatedRoute, State
from bindsock.testing.darwin._system_sockets import EventSocket, RouteSocket

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.testing.darwin._state import IPInterface
    from bindsock.testing.darwin._system_sockets import SimulatedSystemSocket

_ALL_NODES: dict[int, tuple[IPAddress, ...]] = {
    4: (IPv4Address("224.0.0.1"),),
    6: (IPv6Address("ff01::1"), IPv6Address("ff02::1"), IPv6Address("ff02::2:ff38:e44d")),
}
_PROTOCOL = {4: abi.AF_INET, 6: abi.AF_INET6}


class SimulatedMachine:
    """The part of :class:`SimulatedDarwin` that tests control."""

    def __init__(self) -> None:
        self.state: State = State()
        self.recycled: dict[str, SimulatedInterface] = {}
        """The last interface of each name, among detached ones."""
        self.listeners: weakref.WeakSet[SimulatedSystemSocket] = weakref.WeakSet()
        self.ipv6_default: str = ""
        """The name of the IPv6 default interface, whose router has the unscoped route."""
        self._last_index = 0
        self._event_number = 0
        self._sequence = 0

    def add_interface(
        self,
        name: str,
        hardware: str | Hardware = "wifi",
        *,
        mtu: int = 1500,
        up: bool = True,
        index: int | None = None,
        new_hardware: bool = False,
        quiet: bool = False,
    ) -> SimulatedInterface:
        """Attach an interface. If it was attached before with the same hardware, it gets its old index.

        :param hardware: one of :data:`HARDWARE`
        :param quiet: send no events
        """
        kind = HARDWARE[hardware] if isinstance(hardware, str) else hardware
        known = self.recycled.get(name)
        if known is not None and not new_hardware:
            interface = known
            interface.delegate, interface.delegate_hardware, interface.attached = 0, None, True
            interface.addresses.clear()
            interface.protocols.clear()
        else:
            interface = SimulatedInterface(name, index or self._last_index + 1, kind)
        interface.mtu, interface.flags = mtu, kind.flags
        self._last_index = max(self._last_index, interface.index)
        self.recycled[name] = interface
        if up:
            interface.flags |= abi.IFF_UP | abi.IFF_RUNNING
        self.state.interfaces[interface.index] = interface
        self.state.interfaces = dict(sorted(self.state.interfaces.items()))
        if quiet:
            return interface
        tunnel = kind.family == abi.IFRTYPE_FAMILY_UTUN
        # A tunnel is announced before it has an index (recorded).
        self._tell(encoding.interface_message(interface, index=0 if tunnel else None))
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IF_ATTACHED)
        if kind.family == abi.IFRTYPE_FAMILY_ETHERNET:
            self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_LINK_ADDRESS_CHANGED)
            if kind.type == abi.IFT_BRIDGE:
                self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IFCAP_CHANGED)
                self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IFCAP_CHANGED)
            self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFFLAGS)
        return interface

    def remove_interface(self, name: str) -> None:
        """Detach an interface, as when a USB card is removed or a tunnel's program ends. Its default routes go without an
        event."""
        interface = self.state.named(name)
        tunnel = not interface.multi_access
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_LINK_QUALITY_METRIC_CHANGED, bytes(4))
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IF_DETACHING)
        if not tunnel:
            interface.flags &= ~abi.IFF_UP
            self._tell(encoding.interface_message(interface))
        for own in list(interface.addresses):
            self._withdraw(interface, own)
        for version in (4, 6):
            if _PROTOCOL[version] in interface.protocols:
                self._protocol(interface, version, abi.KEV_DL_PROTO_DETACHED)
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFFLAGS)
        if tunnel:
            interface.flags &= ~(abi.IFF_UP | abi.IFF_RUNNING)
            self._tell(encoding.interface_message(interface))
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IF_DETACHED)
        self.state.routes = [route for route in self.state.routes if route.interface is not interface]
        self._changed()
        interface.attached = False
        interface.delegate, interface.delegate_hardware = 0, None
        del self.state.interfaces[interface.index]

    def set_up(self, name: str, up: bool) -> None:
        """Set or clear IFF_UP. Clearing it removes the IPv4 routes, also the default route, without an event; setting it restores
        only the routes to the link. IPv6 routes stay."""
        interface = self.state.named(name)
        if interface.up == up:
            self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFFLAGS)
            return
        working = abi.IFF_UP | abi.IFF_RUNNING
        interface.flags = interface.flags | working if up else interface.flags & ~working
        for own in interface.of_version(4):
            if up:
                self._tell(encoding.address_message(abi.RTM_NEWADDR, interface, own))
                self._add_link_route(interface, own)
            else:
                self._remove_link_route(interface, own)
                self._tell(encoding.address_message(abi.RTM_DELADDR, interface, own))
        if not up:
            self.state.routes = [r for r in self.state.routes if r.interface is not interface or r.destination.version == 6]
        self._changed()
        self._tell(encoding.interface_message(interface))
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFFLAGS)

    def set_link(self, name: str, on: bool) -> None:
        """Set or clear the carrier. The kernel only sends an event; configd removes addresses later."""
        self._event(self.state.named(name), abi.KEV_DL_SUBCLASS, abi.KEV_DL_LINK_ON if on else abi.KEV_DL_LINK_OFF)

    def set_mtu(self, name: str, mtu: int) -> None:
        """Change the MTU."""
        interface = self.state.named(name)
        interface.mtu = mtu
        self._tell(encoding.interface_message(interface))
        self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFMTU)

    def set_delegate(self, name: str, delegate: str | None) -> None:
        """Set an interface's delegate. A loop is refused silently (xnu bsd/net/kpi_interface.c, ifnet_set_delegate)."""
        interface = self.state.named(name)
        new = None if delegate is None else self.state.named(delegate)
        step = new
        while step is not None:
            if step is interface:
                return
            step = self.state.interfaces.get(step.delegate)
        index = 0 if new is None else new.index
        if index != interface.delegate:
            interface.delegate = index
            interface.delegate_hardware = None if new is None else new.hardware
            self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_IFDELEGATE_CHANGED)

    def add_address(self, name: str, address: str, *, tentative: bool = False, quiet: bool = False) -> None:
        """Add an address to an interface.

        :param address: an address with its prefix length
        """
        interface, own = self.state.named(name), ip_interface(address)
        version = own.version
        first = not interface.of_version(version)
        interface.addresses.append(own)
        if tentative:
            interface.tentative.add(own.ip)
        if not quiet:
            self._attach(interface, version)
            self._tell(encoding.address_message(abi.RTM_NEWADDR, interface, own))
        self._add_link_route(interface, own, quiet=quiet)
        self._changed()
        if quiet:
            return
        if first:
            for group in _groups(own):
                self._tell(encoding.group_message(abi.RTM_NEWMADDR, interface, group))
        elif version == 6 and not own.ip.is_link_local and not interface.multi_access:
            self._tell(encoding.group_message(abi.RTM_NEWMADDR, interface, _solicited(own.ip)))
        if version == 4:
            self._event(interface, abi.KEV_INET_SUBCLASS, abi.KEV_INET_NEW_ADDR, bytes(28))
        elif own.ip.is_link_local:
            self._event(interface, abi.KEV_INET6_SUBCLASS, abi.KEV_INET6_NEW_LL_ADDR, bytes(144))
        elif interface.multi_access:
            self._event(interface, abi.KEV_INET6_SUBCLASS, abi.KEV_INET6_NEW_RTADV_ADDR, bytes(144))

    def finish_duplicate_detection(self, name: str) -> None:
        """End duplicate address detection: the interface's addresses are no longer tentative."""
        interface = self.state.named(name)
        interface.tentative.clear()
        self._event(interface, abi.KEV_ND6_SUBCLASS, 5, bytes(80))

    def remove_address(self, name: str, address: str) -> None:
        """Remove an address. Static routes that were made with it stay, but do not work."""
        interface = self.state.named(name)
        own = next(a for a in interface.addresses if a.ip == ip_address(address))
        self._withdraw(interface, own)
        self._changed()

    def _withdraw(self, interface: SimulatedInterface, own: IPInterface) -> None:
        self._remove_link_route(interface, own)
        interface.addresses.remove(own)
        interface.tentative.discard(own.ip)
        self._tell(encoding.address_message(abi.RTM_DELADDR, interface, own))
        if not interface.of_version(own.version):
            for group in _groups(own):
                self._tell(encoding.group_message(abi.RTM_DELMADDR, interface, group))
        if own.version == 4:
            self._event(interface, abi.KEV_INET_SUBCLASS, abi.KEV_INET_ADDR_DELETED, bytes(28))
        else:
            self._event(interface, abi.KEV_INET6_SUBCLASS, abi.KEV_INET6_ADDR_DELETED, bytes(144))

    def advertise_router(self, name: str, router: str, address: str | None = None) -> None:
        """Receive a router advertisement. It adds a default route, without a PF_ROUTE message, and an address.

        The route is scoped unless the interface is the IPv6 default interface.

        :param address: the address that the interface gives itself, with its prefix length
        """
        interface = self.state.named(name)
        if address is not None and not any(a.ip == ip_interface(address).ip for a in interface.addresses):
            self.add_address(name, address)
        if not self.ipv6_default:
            self.ipv6_default = name
        if not any(r.is_default and r.interface is interface and r.gateway for r in self.state.of_version(6)):
            flags = abi.RTF_UP | abi.RTF_GATEWAY | abi.RTF_GLOBAL | abi.RTF_PRCLONING
            if self.ipv6_default != name:
                flags |= abi.RTF_IFSCOPE
            source = interface.source(6, link_local=True)
            route = SimulatedRoute(ip_network("::/0"), interface, ip_address(router), flags, source)
            self.state.routes.append(route)
            self._changed()
        self._event(interface, abi.KEV_ND6_SUBCLASS, abi.KEV_ND6_RA, bytes(80))

    def forget_router(self, name: str) -> None:
        """Drop the interface's IPv6 default routers, silently."""
        interface = self.state.named(name)
        kept = [r for r in self.state.routes if not (r.is_default and r.destination.version == 6 and r.interface is interface)]
        self.state.routes = kept
        self._changed()

    def set_ipv6_default(self, name: str) -> None:
        """Make an interface the IPv6 default interface, as configd does: its router's route becomes unscoped, the others scoped.
        No event is sent."""
        self.ipv6_default = name
        for route in self.state.of_version(6):
            if route.is_default and route.gateway is not None:
                if route.interface.name == name:
                    route.flags &= ~abi.RTF_IFSCOPE
                else:
                    route.flags |= abi.RTF_IFSCOPE
        self._changed()

    def add_route(
        self, destination: str, name: str, gateway: str | None = None, *, scoped: bool = False, quiet: bool = False
    ) -> None:
        """Add a route as configd or route(8) does.

        :param gateway: ``None`` for a route to the link itself
        :raises OSError: EEXIST, the route already exists; ENETUNREACH, the gateway is on no link
        """
        interface, network = self.state.named(name), ip_network(destination)
        flags = abi.RTF_UP | abi.RTF_STATIC
        flags |= abi.RTF_CLONING if gateway is None else abi.RTF_GATEWAY | abi.RTF_PRCLONING
        if scoped:
            flags |= abi.RTF_IFSCOPE
        if gateway is not None and network.prefixlen == network.max_prefixlen:
            flags |= abi.RTF_HOST
        source = interface.source(network.version)
        hop = None if gateway is None else ip_address(gateway)
        route = SimulatedRoute(network, interface, hop, flags, source)
        error = 0
        if self._static(network, interface if scoped else None) is not None:
            error = abi.EEXIST
        elif hop is not None and not any(hop in own.network for own in interface.of_version(hop.version)):
            error = abi.ENETUNREACH
        else:
            if not flags & abi.RTF_HOST:
                route.flags |= abi.RTF_GLOBAL if network.prefixlen == 0 else 0
            self.state.routes.append(route)
            self._changed()
        self._sequence += 1
        if not quiet:
            index = interface.index if scoped else 0
            self._tell(encoding.route_message(abi.RTM_ADD, route, echo=True, sequence=self._sequence, error=error, index=index))
        if error:
            raise darwin_error(error)

    def delete_route(self, destination: str, name: str, *, scoped: bool = False) -> None:
        """Delete a route.

        :raises OSError: ESRCH, there is none
        """
        interface, network = self.state.named(name), ip_network(destination)
        route = self._static(network, interface if scoped else None)
        self._sequence += 1
        if route is None:
            missing = SimulatedRoute(network, interface, None, abi.RTF_UP | abi.RTF_STATIC)
            self._tell(
                encoding.route_message(abi.RTM_DELETE, missing, echo=True, sequence=self._sequence, error=abi.ESRCH, index=0)
            )
            raise darwin_error(abi.ESRCH)
        self.state.routes.remove(route)
        self._changed()
        self._tell(encoding.route_message(abi.RTM_DELETE, route, echo=True, sequence=self._sequence))

    def _static(self, network: object, scope: SimulatedInterface | None) -> SimulatedRoute | None:
        for route in self.state.routes:
            if route.destination == network and route.scoped == (scope is not None) and scope in (None, route.interface):
                return route
        return None

    def _add_link_route(self, interface: SimulatedInterface, own: IPInterface, *, quiet: bool = False) -> None:
        for route in self._link_routes(interface, own):
            twin = any(r.destination == route.destination and not r.scoped for r in self.state.routes)
            if twin and not route.scoped and not route.flags & abi.RTF_LOCAL:
                if any(r.destination == route.destination and r.interface is interface for r in self.state.routes):
                    continue
                route.flags |= abi.RTF_IFSCOPE
            self.state.routes.append(route)
        if not quiet:
            told = next(iter(reversed(self._link_routes(interface, own))))
            self._tell(encoding.route_message(abi.RTM_ADD, told))

    def _remove_link_route(self, interface: SimulatedInterface, own: IPInterface) -> None:
        made = self._link_routes(interface, own)
        others = [a for a in interface.addresses if a is not own and a.network == own.network]
        for route in made:
            if route.flags & abi.RTF_LOCAL or not others:
                self.state.routes = [
                    r
                    for r in self.state.routes
                    if not (
                        r.destination == route.destination
                        and r.interface is route.interface
                        and r.source == route.source
                        and not r.flags & abi.RTF_STATIC
                    )
                ]
        self._tell(encoding.route_message(abi.RTM_DELETE, made[-1]))

    def _link_routes(self, interface: SimulatedInterface, own: IPInterface) -> list[SimulatedRoute]:
        """The routes that come with an address: to its link, and for IPv6 to the address itself by the loopback."""
        if isinstance(own, IPv4Interface):
            if own.network.prefixlen == 32 and not interface.multi_access:
                flags = abi.RTF_UP | abi.RTF_HOST | abi.RTF_LOCAL
                return [SimulatedRoute(own.network, interface, own.ip, flags, own.ip)]
            return [SimulatedRoute(own.network, interface, None, abi.RTF_UP | abi.RTF_CLONING, own.ip)]
        loopback = self.state.named("lo0")
        flags = abi.RTF_UP | abi.RTF_HOST | abi.RTF_LLINFO | abi.RTF_LOCAL
        scope = abi.RTF_IFSCOPE if own.ip.is_link_local else 0
        itself = SimulatedRoute(ip_network(own.ip), loopback, None, flags | scope, own.ip)
        if own.network.prefixlen == 128:
            return [itself]
        link_local = interface.source(6, link_local=True)
        return [SimulatedRoute(own.network, interface, None, abi.RTF_UP | abi.RTF_CLONING | scope, link_local), itself]

    def _changed(self) -> None:
        self.state.generation += 1

    def inject(self, message: bytes, *, without: SimulatedSystemSocket | None = None) -> None:
        """Send bytes to all PF_ROUTE listeners, such as malformed messages of other programs, or answers to their lookups.

        :param without: a listener that does not receive them
        """
        for listener in list(self.listeners):
            if isinstance(listener, RouteSocket) and listener is not without:
                listener.deliver(message)

    def join(self, name: str, group: str) -> None:
        """Let a program join a multicast group."""
        self._tell(encoding.group_message(abi.RTM_NEWMADDR, self.state.named(name), ip_address(group)))

    def leave(self, name: str, group: str) -> None:
        """Let a program leave a multicast group."""
        self._tell(encoding.group_message(abi.RTM_DELMADDR, self.state.named(name), ip_address(group)))

    def _tell(self, message: bytes) -> None:
        self.inject(message)

    def _event(self, interface: SimulatedInterface, subclass: int, code: int, data: bytes = b"") -> None:
        self._event_number += 1
        message = encoding.kernel_event(interface, subclass, code, self._event_number, data)
        for listener in list(self.listeners):
            if isinstance(listener, EventSocket) and listener.wants(abi.KEV_VENDOR_APPLE, abi.KEV_NETWORK_CLASS, subclass):
                listener.deliver(message)

    def _attach(self, interface: SimulatedInterface, version: int) -> None:
        if _PROTOCOL[version] not in interface.protocols:
            interface.protocols.add(_PROTOCOL[version])
            self._protocol(interface, version, abi.KEV_DL_PROTO_ATTACHED)
            self._event(interface, abi.KEV_DL_SUBCLASS, abi.KEV_DL_SIFFLAGS)

    def _protocol(self, interface: SimulatedInterface, version: int, code: int) -> None:
        data = _PROTOCOL[version].to_bytes(4, "little") + bytes(4)
        self._event(interface, abi.KEV_DL_SUBCLASS, code, data)


def _groups(own: IPInterface) -> tuple[IPAddress, ...]:
    """The multicast groups that an interface joins with its first address of a family."""
    groups = _ALL_NODES[own.version]
    return (*groups, _solicited(own.ip)) if isinstance(own, IPv6Interface) else groups


def _solicited(address: IPAddress) -> IPv6Address:
    return IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(address) & 0xFFFFFF)
