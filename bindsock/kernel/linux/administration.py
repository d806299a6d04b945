"""Policy rules, routing tables and firewall as an administrator sees them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bindsock.kernel.linux import firewall, netlink
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink.dump import dump_routes
from bindsock.kernel.linux.rtnetlink.policy import read_policy
from bindsock.kernel.linux.rtnetlink.repair import Repairs
from bindsock.kernel.linux.rtnetlink.rp_filter import is_strict
from bindsock.model.network import FAMILIES

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from bindsock.kernel.base import Repairer
    from bindsock.kernel.linux.gateways import Gateways
    from bindsock.model.network import Interface, Route
    from bindsock.model.policy import Gateway, PolicyRule


class Administration:
    """The :class:`bindsock.kernel.Administration` of Linux.

    :param channel: the netlink channel to use
    :param gateways: the known gateways
    """

    def __init__(self, channel: Channel, gateways: Gateways) -> None:
        self._channel = channel
        self._gateways = gateways
        self.repairer: Repairer | None = None
        self.mark = 0

    def rules(self) -> Sequence[PolicyRule]:
        """The policy rules of both families."""
        return read_policy(self._channel)

    def routes(self) -> Sequence[Route]:
        """The routing tables, except the local table."""
        return dump_routes(self._channel, FAMILIES)

    def firewall(self, version: int) -> Sequence[str]:
        """The chains of nftables that stop packets. Needs CAP_NET_ADMIN."""
        channel = Channel(functools.partial(netlink.open_query_socket, firewall.NETLINK_NETFILTER))
        try:
            return firewall.obstacles(channel, version)
        finally:
            channel.close()

    def filters_strictly(self, interface: Interface) -> bool:
        """Whether the interface's reverse path filter is strict."""
        return is_strict(self._channel, interface.index)

    def gateway(self, interface: Interface, family: socket.AddressFamily) -> Gateway | None:
        """The gateway by which the interface reaches the Internet."""
        return self._gateways.find(self._channel, interface, family)

    def repairs(self, *, kept: bool = False) -> Repairs:
        """An object that makes repairs in the present network namespace, over a socket of its own."""
        return Repairs(kept=kept)
