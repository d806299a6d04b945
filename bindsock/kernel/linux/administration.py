"""What an administrator sees of the rules and the routing tables."""

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

    :param channel: over which the kernel is asked
    :param gateways: the gateways that are known
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
        """The routing tables but the local one."""
        return dump_routes(self._channel, FAMILIES)

    def firewall(self, version: int) -> Sequence[str]:
        """The chains of nftables. It takes CAP_NET_ADMIN."""
        channel = Channel(functools.partial(netlink.open_query_socket, firewall.NETLINK_NETFILTER))
        try:
            return firewall.obstacles(channel, version)
        finally:
            channel.close()

    def filters_strictly(self, interface: Interface) -> bool:
        """Whether the reverse path filter of the interface is strict."""
        return is_strict(self._channel, interface.index)

    def gateway(self, interface: Interface, family: socket.AddressFamily) -> Gateway | None:
        """The gateway by which the interface reaches the world."""
        return self._gateways.find(self._channel, interface, family)

    def repairs(self, *, kept: bool = False) -> Repairs:
        """What makes repairs, over a socket of its own: they are of the network namespace in which it is opened."""
        return Repairs(kept=kept)
