"""The VPN: a TUN device in the host that takes the default route in one of the ways of real VPNs."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from bindsock.model.network import MAIN_TABLE

from . import _netlink as netlink
from ._namespaces import LabUnavailable, inside
from ._topology import DEFAULTS, LEAVES, Family
from ._tunnel import open_tun

if TYPE_CHECKING:
    from ._child import Child, Helper
    from ._uplinks import Uplinks

VpnMode = Literal["metric", "replace", "halves", "policy", "policy-kill", "split"]
"""How the VPN takes the default route.

* ``metric``: a default route with a better metric; the uplinks' stay (NetworkManager)
* ``replace``: the only default route; the uplinks' are deleted
* ``halves``: 0.0.0.0/1 and 128.0.0.0/1, ::/1 and 8000::/1 (OpenVPN ``redirect-gateway def1``)
* ``policy``: a table of its own and rules (``wg-quick``)
* ``policy-kill``: the same, and the table ends with ``unreachable default``
* ``split``: no default route, only routes to the server's networks
"""
VpnOuter = Literal["host-route", "bound", "unbound", "fwmark", "own"]
"""How the VPN client's own socket reaches the VPN server.

* ``host-route``: by a host route over the best uplink; the route is changed when the uplinks change
* ``bound``: bound to the best uplink; rebound when the uplinks change. With ``replace`` and IPv4 it has no route, as in reality
* ``unbound``: it does not: its packets loop into its own tunnel
* ``fwmark``: with a firewall mark, like WireGuard; only the policy modes let marked packets bypass the tunnel
* ``own``: there is no VPN client; :attr:`Lab.vpn_tun` is the descriptor of the TUN device for the caller's client
"""

TUN = "tun0"
MARK = TABLE = 51820
PORT = 51820
MTU = 1400
METRIC = 50
CLIENT = {socket.AF_INET: "10.66.0.2", socket.AF_INET6: "fd66::2"}
_GATE = {socket.AF_INET: "10.66.0.1", socket.AF_INET6: "fd66::1"}
_NETWORK = {socket.AF_INET: "10.66.0.0/24", socket.AF_INET6: "fd66::/64"}
_LENGTH = {socket.AF_INET: 24, socket.AF_INET6: 64}
_HALVES = {socket.AF_INET: ("0.0.0.0/1", "128.0.0.0/1"), socket.AF_INET6: ("::/1", "8000::/1")}
_SERVER_NETWORK = {socket.AF_INET: "10.9.0.0/24", socket.AF_INET6: "fd10:9::/64"}
_RULES = (32765, 32764)
_LAST_METRIC = 0xFFFFFFF0
SERVER_ADDRESS = LEAVES[1].host(socket.AF_INET)
_HOST_ROUTE = f"{SERVER_ADDRESS}/32"


@dataclass(frozen=True, slots=True)
class VpnCounters:
    """The counters of the VPN client since it was started."""

    sent: int
    received: int
    refused: int
    """Datagrams that the system refused to send."""
    reentered: int
    """The client's own packets that came out of the tunnel: the loop."""
    stopped: bool
    """Whether the loop reached its limit and the client gave up."""


class Vpn:
    """The TUN device, its routes, and the client and server processes."""

    def __init__(self, uplinks: Uplinks, namespaces: dict[str, int], helper: Helper) -> None:
        self._uplinks = uplinks
        self._helper = helper
        self._namespaces = namespaces
        self._server: Child | None = None
        self._client: Child | None = None
        self._following: VpnOuter | None = None
        self._bound_to: int | None = None
        self._ruled: VpnMode | None = None
        self._taken: list[netlink.Message] = []
        self.mode: VpnMode | None = None
        self.tun: int | None = None

    def up(self, mode: VpnMode, outer: VpnOuter, loop_limit: int) -> float:
        if self.mode is not None:
            raise RuntimeError(f"the VPN is already up, in mode {self.mode}")
        if mode not in get_args(VpnMode) or outer not in get_args(VpnOuter):
            raise ValueError(f"mode must be one of {get_args(VpnMode)}, outer one of {get_args(VpnOuter)}")
        if self._server is None:
            self._server = self._start_server()
        self._clear_rules()
        tun = self._open_tun("host")
        try:
            index = self._configure(CLIENT, "host")
            if outer == "own":
                self.tun = os.dup(tun)
            else:
                self._start_client(tun, outer, loop_limit)
        finally:
            os.close(tun)
        self.mode = mode
        return self._take_default(mode, index)

    def down(self, *, crash: bool) -> float:
        if self.mode is None:
            raise RuntimeError("the VPN is not up")
        mode, self.mode = self.mode, None
        now = time.monotonic()
        if crash:
            self._uplinks.has_defaults = True  # they are missing now, but an uplink that comes up next gets its route
        else:
            self._give_default_back(mode)
        self._end_client(crash)
        if self._following == "host-route":
            self._uplinks.netlinks["host"].request(netlink.route(_HOST_ROUTE, delete=True), ignore=netlink.GONE)
        self._following = None
        return now

    def follow(self) -> None:
        """Let the client's own socket use the uplink that is best now."""
        best = self._uplinks.best
        if best is None or self._following is None:
            return
        if self._following == "host-route":
            self._uplinks.netlinks["host"].request(
                netlink.route(_HOST_ROUTE, interface=best.index, gateway=best.next_hop(socket.AF_INET))
            )
        elif best.index != self._bound_to and self._client is not None:
            self._bound_to = best.index
            self._client.tell(command="bind", interface=best.index)

    def counters(self) -> VpnCounters:
        if self._client is None:
            raise RuntimeError("no VPN client is running")
        counts = self._client.ask(command="counts")
        return VpnCounters(counts["sent"], counts["received"], counts["refused"], counts["reentered"], counts["stopped"])

    def foreign(self) -> int:
        """How many inner packets the VPN server dropped because their source address is not the client's."""
        return int(self._server.ask(command="counts")["foreign"]) if self._server is not None else 0

    def close(self) -> None:
        self.mode = None
        self._end_client(crash=False)
        if self._server is not None:
            self._server.close()
            self._server = None

    def _open_tun(self, namespace: str) -> int:
        with inside(self._namespaces[namespace]):
            try:
                return open_tun(TUN)
            except OSError as exc:
                raise LabUnavailable(f"the VPN needs /dev/net/tun: {exc.strerror}") from exc

    def _configure(self, addresses: dict[Family, str], namespace: str) -> int:
        """Add addresses to the TUN device and set it up.

        :return: its index
        """
        link = self._uplinks.netlinks[namespace]
        index = link.link(TUN).index
        # No link-local address, router solicitation or multicast report, so that the device only counts the test's packets.
        with inside(self._namespaces[namespace]):
            if socket.AF_INET6 in self._uplinks.families:
                with open(f"/proc/sys/net/ipv6/conf/{TUN}/addr_gen_mode", "w", encoding="ascii") as file:
                    file.write("1")
        link.request(
            netlink.link_mtu(index, MTU),
            netlink.link_flags(index, netlink.IFF_UP, netlink.IFF_UP | netlink.IFF_MULTICAST),
            *(netlink.address(index, f"{addresses[f]}/{_LENGTH[f]}") for f in self._uplinks.families),
        )
        return index

    def _start_server(self) -> Child:
        tun = self._open_tun("vpn")
        try:
            server = self._helper.child(self._namespaces["vpn"], "_tunnel", "server", descriptors=[tun])
        finally:
            os.close(tun)
        self._configure(_GATE, "vpn")
        for family in self._uplinks.families:
            self._uplinks.netlinks["router"].request(netlink.route(_NETWORK[family], gateway=LEAVES[1].host(family)))
        clients = [socket.inet_pton(f, a).hex() for f, a in CLIENT.items()]
        server.ask(command="start", address=SERVER_ADDRESS, port=PORT, clients=clients)
        return server

    def _start_client(self, tun: int, outer: VpnOuter, loop_limit: int) -> None:
        self._client = self._helper.child(self._namespaces["host"], "_tunnel", "client", descriptors=[tun])
        interface: int | None = 0
        if outer == "bound":
            best = self._uplinks.best
            interface = self._bound_to = best.index if best is not None else None
        if outer in ("host-route", "bound"):
            self._following = outer
            self.follow()
        mark = MARK if outer == "fwmark" else 0
        self._client.ask(command="start", server=SERVER_ADDRESS, port=PORT, limit=loop_limit, interface=interface, mark=mark)

    def _end_client(self, crash: bool) -> None:
        if self._client is not None:
            if crash:
                self._client.kill()
            else:
                self._client.close()
            self._client = None
        if self.tun is not None:
            os.close(self.tun)
            self.tun = None

    def _take_default(self, mode: VpnMode, tun: int) -> float:
        now = time.monotonic()
        host = self._uplinks.netlinks["host"]
        host.request(*self._routes(mode, tun), *self._rules(mode))
        self._taken = self._routes(mode, tun, delete=True)
        self._ruled = mode
        if mode == "replace":
            self._uplinks.give_defaults(False)
        return now

    def _give_default_back(self, mode: VpnMode) -> None:
        if mode == "replace":
            self._uplinks.give_defaults(True)
        self._clear_rules()
        self._uplinks.netlinks["host"].request(*self._taken, ignore=netlink.GONE)

    def _routes(self, mode: VpnMode, tun: int, *, delete: bool = False) -> list[netlink.Message]:
        messages: list[netlink.Message] = []
        for family in self._uplinks.families:
            default = DEFAULTS[family]
            match mode:
                case "metric" | "replace":
                    messages.append(netlink.route(default, interface=tun, metric=METRIC, delete=delete))
                case "halves":
                    messages.extend(netlink.route(half, interface=tun, delete=delete) for half in _HALVES[family])
                case "split":
                    messages.append(netlink.route(_SERVER_NETWORK[family], interface=tun, delete=delete))
                case "policy" | "policy-kill":
                    messages.append(netlink.route(default, interface=tun, table=TABLE, delete=delete))
        return messages

    def _rules(self, mode: VpnMode, *, delete: bool = False) -> list[netlink.Message]:
        """The rules of the policy modes, and the routes that the kernel does not remove with the device."""
        messages: list[netlink.Message] = []
        marked, suppress = _RULES
        for family in self._uplinks.families:
            if mode == "policy-kill":
                messages.append(
                    netlink.route(DEFAULTS[family], kind="unreachable", table=TABLE, metric=_LAST_METRIC, delete=delete)
                )
            if mode in ("policy", "policy-kill"):
                messages += [
                    netlink.rule(family, marked, table=TABLE, not_mark=MARK, delete=delete),
                    netlink.rule(family, suppress, table=MAIN_TABLE, suppress_prefix_length=0, delete=delete),
                ]
        return messages

    def _clear_rules(self) -> None:
        if self._ruled is not None:
            self._uplinks.netlinks["host"].request(*self._rules(self._ruled, delete=True), ignore=netlink.GONE)
            self._ruled = None
