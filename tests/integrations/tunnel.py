"""What must not happen: a packet for the server in the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab, Packet


@contextmanager
def nothing_through_the_tunnel(lab: Lab) -> Iterator[None]:
    """Fail if a packet of a connection to the server leaves by the VPN's device.

    What the kernel itself answers to what still comes for a socket that is long gone is not a connection's: TCP's resets
    (``net/ipv4/tcp_ipv4.c``, tcp_v4_send_reset) and ICMP's unreachables belong to no socket, so that nothing can bind them.
    """
    with lab.tap(interface="tun0") as tap:
        yield
        leaked = [p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6) and not _is_the_kernels_own(p)]
        assert not leaked, f"{len(leaked)} packets, the first: {leaked[0]}"
        assert tap.dropped == 0


def _is_the_kernels_own(packet: Packet) -> bool:
    """A reset without a socket, or the last acknowledgement of a connection that this side closed first: bare TCP headers.

    The latter is sent on behalf of what is left of the socket (TIME_WAIT). IPv6 then takes the interface for a hint only, since
    the source address is fixed and the socket that sends is the kernel's (``net/ipv6/tcp_ipv6.c``, tcp_v6_send_response;
    ``net/ipv6/route.c``, ip6_route_output_flags). A connection that leaked would have its SYN and its data in the tunnel, too.
    """
    if packet.protocol == "tcp":
        header, timestamp = (60 if ":" in packet.source else 40), 12
        return packet.length in (header, header + timestamp) and not packet.payload
    return packet.protocol.startswith("icmp")
