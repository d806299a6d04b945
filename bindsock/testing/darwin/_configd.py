"""What configd and NetworkExtension make of the kernel: uplinks, the primary one, VPNs. In their order, with their flags."""

from __future__ import annotations

from bindsock.testing.darwin._machine import SimulatedMachine
from bindsock.testing.darwin._state import Hardware

_LINK_LOCAL = "fe80::{:x}/64"
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


class ConfiguredMachine(SimulatedMachine):
    """Scenes of several steps."""

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
        """Attach an interface with addresses and default routes; scoped ones, if there is a primary interface already.

        :param ipv4: an address with its prefix length
        :param gateway: of IPv4; without one the default leads to the link itself, as on cellular
        :param ipv6: likewise
        :param router: of IPv6, a link-local address; ``None`` for no default
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
        """The service order changes: this interface's defaults lose their scope, those of the one before get one."""
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
        """A VPN of NetworkExtension's kind comes up and owns the unscoped default of each family that it has an address of.

        :param delegate: the interface over which it says that it runs
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
        """The VPN goes.

        :param primary: the interface that configd makes the primary one; nobody repairs the defaults if there is none
        """
        self.remove_interface(name)
        if primary is not None:
            self.make_primary(primary)

    def _demote(self) -> None:
        """Give IPv4's unscoped default a scope."""
        default = self.state.default(4)
        if default is None:
            return
        name, gateway = default.interface.name, default.gateway
        self.delete_route(_DEFAULT[4], name)
        self.add_route(_DEFAULT[4], name, None if gateway is None else str(gateway), scoped=True)
