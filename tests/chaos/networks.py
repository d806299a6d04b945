"""The networks in which chaos runs: uplinks of different kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bindsock.testing.lab import UplinkKind


@dataclass(frozen=True, slots=True)
class Drawing:
    """A host's uplinks."""

    uplinks: tuple[str, ...]
    """Their names, best first."""
    kinds: Mapping[str, UplinkKind] = field(default_factory=dict)
    nat64: bool = False
    """Whether the server is reached by an IPv4 address embedded in an IPv6 address, too."""


NETWORKS: Mapping[str, Drawing] = {
    "two": Drawing(("wifi0", "eth0")),
    "three": Drawing(("wifi0", "eth0", "wwan0")),
    "shared": Drawing(("wifi0", "eth0"), {"eth0": "shared"}),
    "point-to-point": Drawing(("wifi0", "ppp0"), {"ppp0": "point-to-point"}),
    "macvlan": Drawing(("wifi0", "eth0"), {"eth0": "macvlan"}),
    "nat64": Drawing(("wifi0", "wwan0"), {"wwan0": "ipv6-only"}, nat64=True),
}
"""By name:

* ``shared``: both uplinks are in the same subnet, with the same gateway
* ``point-to-point``: one of them has no subnet and no gateway, like PPP
* ``macvlan``: one of them is stacked on another interface, like a VLAN
* ``nat64``: one of them has no IPv4, but a translator
"""
