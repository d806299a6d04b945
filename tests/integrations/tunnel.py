"""What must not happen: a packet for the server in the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab, Packet


@contextmanager
def nothing_through_the_tunnel(lab: Lab) -> Iterator[None]:
    """Fail if a packet of a connection to the server leaves by the VPN's device.

    Two things are not a connection's: the kernel's own chatter on a new device, and the resets with which it answers what still
    comes, after an uplink has come back, for a connection that is long gone (``net/ipv4/tcp_ipv4.c``, tcp_v4_send_reset). Those
    belong to no socket, so that nothing can bind them.
    """
    with lab.tap(interface="tun0") as tap:
        yield
        to_server = [p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6)]
        assert [p for p in to_server if not _is_reset_without_a_socket(p)] == []
        assert tap.dropped == 0


def _is_reset_without_a_socket(packet: Packet) -> bool:
    """It has no options, which everything else that a client sends has: a timestamp at least."""
    return packet.protocol == "tcp" and packet.length == (60 if ":" in packet.source else 40) and not packet.payload
