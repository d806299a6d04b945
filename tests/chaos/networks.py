"""The networks in which chaos runs: uplinks of different kinds."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from bindsock.testing.lab import Lab, UplinkKind


@dataclass(frozen=True, slots=True)
class Drawing:
    """A host's uplinks."""

    uplinks: tuple[str, ...]
    """Their names, best first."""
    kinds: Mapping[str, UplinkKind] = field(default_factory=dict)
    nat64: bool = False
    """Whether the server is reached by an IPv4 address embedded in an IPv6 address, too."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.kinds[name]}" if name in self.kinds else name for name in self.uplinks)


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
DRAWN = "drawn"
"""The name of the networks that :func:`draw` makes."""
_NAMES = ("wifi0", "eth0", "wwan0", "usb0", "wlan1")


def draw(seed: str) -> Drawing:
    """Two to five uplinks of any kinds, at least one of them with IPv4."""
    generator = random.Random(seed)
    uplinks = _NAMES[: generator.randint(2, len(_NAMES))]
    kinds = {name: generator.choice(get_args(UplinkKind)) for name in uplinks}
    first = uplinks[0]
    if "shared" in kinds.values() or set(kinds.values()) == {"ipv6-only"}:
        kinds[first] = "ethernet"  # in its network the shared ones are
    return Drawing(
        uplinks, {name: kind for name, kind in kinds.items() if kind != "ethernet"}, nat64="ipv6-only" in kinds.values()
    )


_PARTS = (
    "-brief address",
    "neighbour",
    "-4 rule",
    "-6 rule",
    "-4 route show table all",
    "-6 route show table all",
    "mptcp endpoint",
)


_CONNECTIONS = "ss --tcp --mptcp --numeric --no-header --extended --info"


def described(lab: Lab) -> str:
    """The network, for a person to read.

    These are the addresses, neighbours, rules, routes and multipath endpoints of the host and of the router, and the connections
    and subflows, with their timers, as the host and the server see them.
    """
    paragraphs = []
    for end in ("host", "router"):
        for part in _PARTS:
            try:
                text = lab.ip(*part.split(), namespace=end)
            except subprocess.CalledProcessError as error:
                text = error.stderr
            paragraphs.append(_paragraph(f"{end}, ip {part}", text))
    if shutil.which("ss") is not None:
        for side in ("host", "server"):
            with lab.inside(side):
                shown = subprocess.run(_CONNECTIONS.split(), capture_output=True, text=True)
            paragraphs.append(_paragraph(f"{side}, {_CONNECTIONS}", shown.stdout + shown.stderr))
    return "\n    ".join(paragraphs)


def _paragraph(title: str, text: str) -> str:
    told = [line for line in text.splitlines() if " table local " not in line]
    return "\n      ".join([f"{title}:", *(told or ["none"])])
