"""What must not happen: a packet for the server in the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab


@contextmanager
def nothing_through_the_tunnel(lab: Lab) -> Iterator[None]:
    """Fail if a packet to the server leaves by the VPN's device. The kernel's own chatter on a new device does not count."""
    with lab.tap(interface="tun0") as tap:
        yield
        assert [p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6)] == []
        assert tap.dropped == 0
