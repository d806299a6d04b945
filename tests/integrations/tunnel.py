"""A check that no packet for the server goes into the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bindsock.testing.lab import Lab, Packet
from tests.chaos.packets import Kind, PeersEnds

RST, ACK = 4, 0x10


@contextmanager
def nothing_through_the_tunnel(lab: Lab, interface: str = "tun0", *, host: str | None = None) -> Iterator[None]:
    """Fail if a packet of a connection to the server leaves by the VPN's device.

    :param host: an additional address of the server

    The kernel's own answers to packets for a closed socket do not count: TCP resets (``net/ipv4/tcp_ipv4.c``,
    tcp_v4_send_reset) and ICMP unreachables belong to no socket, so nothing can bind them. Nor do the acknowledgements of
    TIME_WAIT over IPv6: once the socket has acknowledged the peer's FIN by its device, segments that the FIN has overtaken are
    answered by the routing table. Two processors pass on what the server sends, so this happens in one of some 6,000 connections.
    """
    with lab.tap(interface=interface) as tap, lab.tap(outgoing=None, protocol="tcp") as connections:
        yield
        leaked = [
            p for p in tap.packets if p.destination in (lab.server.ipv4, lab.server.ipv6, host) and not _is_the_kernels_own(p)
        ]
        if leaked:
            repeated = _repeated_acknowledgements(connections.packets, interface)
            leaked = [packet for packet in leaked if _key(packet) not in repeated]
        assert not leaked, f"{len(leaked)} packets, the first: {leaked[0]}"
        assert tap.dropped == 0


def _is_the_kernels_own(packet: Packet) -> bool:
    """Whether the packet is a reset for a socket that no longer exists, or an ICMP error."""
    return packet.protocol.startswith("icmp") or (packet.protocol == "tcp" and bool(packet.flags & RST))


def _repeated_acknowledgements(packets: list[Packet], interface: str) -> set[tuple[str, int, int, int]]:
    """The acknowledgements by the tunnel of a FIN that an uplink has acknowledged before."""
    ends, found = PeersEnds(interface), set()
    for packet in packets:
        ends.follow(packet)
        bare = packet.flags == ACK and not packet.payload
        if packet.outgoing and packet.interface == interface and bare and ends.answered(packet) is Kind.REPEATED:
            found.add(_key(packet))
    return found


def _key(packet: Packet) -> tuple[str, int, int, int]:
    return packet.source, packet.source_port, packet.destination_port, packet.acknowledgement
