"""What must not happen: a packet for the server in the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab, Packet

RST = 4


@contextmanager
def nothing_through_the_tunnel(lab: Lab, interface: str = "tun0", *, host: str | None = None) -> Iterator[None]:
    """Fail if a packet of a connection to the server leaves by the VPN's device.

    :param host: an address of the server besides its usual ones

    What the kernel itself answers to what still comes for a socket that is long gone is not a connection's: TCP's resets
    (``net/ipv4/tcp_ipv4.c``, tcp_v4_send_reset) and ICMP's unreachables belong to no socket, so that nothing can bind them.
    """
    with lab.tap(interface=interface) as tap:
        yield
        leaked = [
            p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6, host) and not _is_the_kernels_own(p)
        ]
        assert not leaked, f"{len(leaked)} packets, the first: {leaked[0]}"
        assert tap.dropped == 0


def _is_the_kernels_own(packet: Packet) -> bool:
    """A reset for a segment that belongs to no socket any more, or an ICMP error."""
    return packet.protocol.startswith("icmp") or (packet.protocol == "tcp" and bool(packet.flags & RST))
