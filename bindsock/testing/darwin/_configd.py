"""What configd and NetworkExtension do to the kernel: they set up uplinks, the primary interface and VPNs.

The calls have the order and flags of the real ones.
"""

from __future__ import annotations

from bindsock.testing.darwin._machine import SimulatedMachine
from bindsock.testing.darwin._state import Hardware

_LINK_LOCAL = "fe80::{:x}/64"
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


class ConfiguredMachine(SimulatedMachine):
    """A :class:`SimulatedMachine` with operations that take several steps."""

    def add_uplink(
        self,
        name: str,
        hardware: str | Hardware = "wifi",
        *,
        ipv4: str | None = None,
        gateway: str | None = None,
        ipv6: str | None = None,
        router: str | None = None,
    ) -> None:
        """Attach an interface with addresses and default routes. The routes are scoped if there already is a primary interface.

        :param ipv4: an IPv4 address with its prefix length
        :param gateway: the IPv4 gateway; without one the default route leads to the link itself, as on cellular interfaces
        :param ipv6: an IPv6 address with its prefix length
        :param router: the link-local address of the IPv6 router; ``None`` for no IPv6 default route
        """
        interface = self.add_interface(name, hardware)
        if ipv4 is not None:
            self.add_address(name, ipv4)
            self.add_route(_DEFAULT[4], name, gateway, scoped=self.state.default(4) is not None)
        if ipv6 is not None:
            self.add_address(name, _LINK_LOCAL.format(0xA000 + interface.index))
            self.add_address(name, ipv6)
            if router is not None:
                self.advertise_router(name, router)

    def make_primary(self, name: str) -> None:
        """Make an interface the primary one: its default routes become unscoped, those of the previous one scoped."""
        self._demote()
        scoped = self.state.default(4, self.state.named(name).index)
        if scoped is not None:
            gateway = None if scoped.gateway is None else str(scoped.gateway)
            self.delete_route(_DEFAULT[4], name, scoped=True)
            self.add_route(_DEFAULT[4], name, gateway)
        self.set_ipv6_default(name)

    def vpn_up(
        self, name: str = "utun0", delegate: str | None = None, *, ipv4: str | None = "10.8.0.2/32", ipv6: str | None = None
    ) -> None:
        """Start a VPN as NetworkExtension does. It gets the unscoped default route of each family in which it has an address.

        :param delegate: the interface that it claims to run over
        """
        self.add_interface(name, "tunnel", mtu=1280)
        self.set_delegate(name, delegate)
        if ipv4 is not None:
            self.add_address(name, ipv4)
            self._demote()
            self.add_route(_DEFAULT[4], name)
        if ipv6 is not None:
            self.add_address(name, _LINK_LOCAL.format(0xB000 + self.state.named(name).index))
            self.add_address(name, ipv6)
            self.set_ipv6_default(name)
            self.add_route(_DEFAULT[6], name)

    def vpn_down(self, name: str = "utun0", primary: str | None = None) -> None:
        """Stop the VPN.

        :param primary: the interface that configd makes the primary one; if ``None``, the default routes are not restored
        """
        self.remove_interface(name)
        if primary is not None:
            self.make_primary(primary)

    def _demote(self) -> None:
        """Make the unscoped IPv4 default route scoped."""
        default = self.state.default(4)
        if default is None:
            return
        name, gateway = default.interface.name, default.gateway
        self.delete_route(_DEFAULT[4], name)
        self.add_route(_DEFAULT[4], name, None if gateway is None else str(gateway), scoped=True)
