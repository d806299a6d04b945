"""A check that no packet for the server goes into the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab, Packet

RST = 4


@contextmanager
def nothing_through_the_tunnel(lab: Lab, interface: str = "tun0", *, host: str | None = None) -> Iterator[None]:
    """Fail if a packet of a connection to the server leaves by the VPN's device.

    :param host: an additional address of the server

    The kernel's own answers to packets for a closed socket do not count: TCP resets (``net/ipv4/tcp_ipv4.c``,
    tcp_v4_send_reset) and ICMP unreachables belong to no socket, so nothing can bind them.
    """
    with lab.tap(interface=interface) as tap:
        yield
        leaked = [
            p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6, host) and not _is_the_kernels_own(p)
        ]
        assert not leaked, f"{len(leaked)} packets, the first: {leaked[0]}"
        assert tap.dropped == 0


def _is_the_kernels_own(packet: Packet) -> bool:
    """Whether the packet is a reset for a socket that no longer exists, or an ICMP error."""
    return packet.protocol.startswith("icmp") or (packet.protocol == "tcp" and bool(packet.flags & RST))
