"""The kind of each packet that left the host, and the device by which it left."""

from __future__ import annotations

import enum
import functools
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from bindsock.testing.lab import Packet

TUNNEL = "tun0"
_FIN, _SYN, _RESET, _ACK = 1, 2, 4, 16
_DISCARD = 9
_NAMES = 53
_FRAGMENT = 0
"""The port number that stands for "unknown": only the first fragment of a packet has ports."""
_REMEMBERED, _TOLD, _ENDS = 20000, 8, 10000


class Kind(enum.StrEnum):
    """The kind of a packet."""

    DATAGRAM = "datagram"
    DATA = "data"
    HANDSHAKE = "handshake"
    END = "end"
    ACKNOWLEDGEMENT = "acknowledgement"
    RESET = "reset"
    """A TCP reset: an abort, or the answer to a segment for a socket that no longer exists."""
    LATE = "late acknowledgement"
    """An acknowledgement of a repeated FIN: the socket had no route by its device when the FIN first arrived. By now the socket
    is in TIME_WAIT, which answers by the routing table. It happens where a VPN deletes the uplinks' default routes."""
    REPEATED = "repeated acknowledgement"
    """An acknowledgement of a FIN that an uplink has acknowledged before: the peer has repeated the FIN, or earlier data arrived
    after it. The socket is in TIME_WAIT since its first acknowledgement, and TIME_WAIT answers by the routing table over IPv6."""
    FIRST_HOP = "first hop"
    """bindsock's probe whether a router answers."""
    NAME = "name"
    """The question to the uplink's name server for a NAT64 prefix, on a network without IPv4 (RFC 7050)."""
    ERROR = "error"
    """ICMP packets that the kernel sends."""
    LINK = "link"
    """Neighbour discovery and multicast reports that the kernel sends."""
    VPN = "vpn"
    """A packet of the VPN's own socket. While no uplink has a route, it goes into the VPN's own tunnel."""
    UNKNOWN = "unknown"


FOLLOWS_ROUTES = frozenset({Kind.RESET, Kind.ERROR, Kind.LINK, Kind.LATE, Kind.REPEATED, Kind.VPN})
"""Kinds that the kernel sends without a socket, so no binding applies, or that the VPN sends from an unbound socket."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses and ports that identify the traffic of the programs."""

    servers: frozenset[str]
    datagram_port: int
    stream_ports: frozenset[int]
    vpn: tuple[str, int]


def classify(packet: Packet, endpoints: Endpoints) -> Kind:
    """The kind of the packet."""
    if packet.interface == "lo" or _is_multicast(packet.destination):
        return Kind.LINK
    match packet.protocol:
        case "tcp" if packet.destination in endpoints.servers and packet.destination_port in endpoints.stream_ports:
            return _of_stream(packet)
        case "udp" if packet.destination_port == _DISCARD:
            return Kind.FIRST_HOP
        case "udp" if packet.destination_port == _NAMES:
            return Kind.NAME
        case "udp" if packet.destination == endpoints.vpn[0] and packet.destination_port in (endpoints.vpn[1], _FRAGMENT):
            return Kind.VPN
        case "udp" if packet.destination in endpoints.servers and packet.destination_port == endpoints.datagram_port:
            return Kind.DATAGRAM
        case "icmp6" if _is_of_link(packet):
            return Kind.LINK
        case "icmp" | "icmp6":
            return Kind.ERROR
    return Kind.UNKNOWN


@functools.lru_cache(256)
def _is_multicast(address: str) -> bool:
    return ip_address(address).is_multicast


def _is_of_link(packet: Packet) -> bool:
    """Whether the packet goes no further than the next hop. The programs have no servers among the neighbours."""
    return ip_address(packet.destination).is_link_local or packet.destination.endswith("::1")


def _of_stream(packet: Packet) -> Kind:
    if packet.flags & _RESET:
        return Kind.RESET
    if packet.flags & _SYN:
        return Kind.HANDSHAKE
    if packet.payload:
        return Kind.DATA
    return Kind.END if packet.flags & _FIN else Kind.ACKNOWLEDGEMENT


@dataclass(slots=True)
class _PeersEnd:
    """The peer's FIN of a connection, and the acknowledgements of it."""

    following: int
    """The acknowledgement number that acknowledges the FIN."""
    copies: int = 0
    """How often the FIN arrived."""
    packets: int = 0
    """The number of packets that arrived since the FIN, including it."""
    acknowledged: bool = False
    """Whether an acknowledgement left by an uplink."""
    leaked: bool = False
    """Whether an acknowledgement left by the tunnel that the socket itself sent."""

    def answered_by_tunnel(self) -> Kind:
        """Record an acknowledgement that left by the tunnel. Returns its kind."""
        self.leaked |= (self.packets if self.acknowledged else self.copies) < 2
        if self.leaked:
            return Kind.ACKNOWLEDGEMENT
        return Kind.REPEATED if self.acknowledged else Kind.LATE


class PeersEnds:
    """The ends of connections by their peers, to tell an acknowledgement of the socket from one of TIME_WAIT.

    :param tunnel: the VPN's device
    """

    def __init__(self, tunnel: str) -> None:
        self._tunnel = tunnel
        self._ends: OrderedDict[tuple[str, int, int], _PeersEnd] = OrderedDict()

    def follow(self, packet: Packet) -> None:
        """Take note of a packet. Each must be passed in, in order."""
        if packet.protocol != "tcp":
            return
        if not packet.outgoing:
            connection = packet.destination, packet.destination_port, packet.source_port
            end = self._ends.get(connection)
            if packet.flags & _FIN:
                following = (packet.sequence + (packet.payload_length or len(packet.payload)) + 1) % 2**32
                if end is None or end.following != following:
                    end = self._ends[connection] = _PeersEnd(following)
                    if len(self._ends) > _ENDS:
                        self._ends.popitem(last=False)
                end.copies += 1
            if end is not None:
                end.packets += 1
        elif packet.flags & _ACK and packet.interface != self._tunnel:
            end = self._end_of(packet)
            if end is not None:
                end.acknowledged = True

    def answered(self, packet: Packet) -> Kind:
        """Take note of an acknowledgement that left by the tunnel.

        :return: its kind
        """
        end = self._end_of(packet)
        return end.answered_by_tunnel() if end is not None else Kind.ACKNOWLEDGEMENT

    def _end_of(self, packet: Packet) -> _PeersEnd | None:
        """The peer's FIN that the packet acknowledges. Only over IPv6: over IPv4 TIME_WAIT keeps the socket's device."""
        if ":" not in packet.source:
            return None
        end = self._ends.get((packet.source, packet.source_port, packet.destination_port))
        return end if end is not None and end.following == packet.acknowledgement else None


class Census:
    """Counts packets by device and kind, and keeps those that left by the wrong device.

    :param endpoints: identify the traffic of the programs
    :param ignored: devices whose packets are not counted
    """

    def __init__(self, endpoints: Endpoints, *, ignored: Collection[str] = ()) -> None:
        self._endpoints = endpoints
        self._ignored = ignored
        self.counts: Counter[tuple[str, Kind]] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()
        """The number of datagrams by program and device. The device is ``""`` if it was gone before the packet was read."""
        self._wrong: dict[tuple[str, str, int, int], tuple[list[Packet], int]] = {}
        self._ends = PeersEnds(TUNNEL)
        self._recent: deque[Packet] = deque(maxlen=_REMEMBERED)

    def take(self, packets: Iterable[Packet]) -> None:
        """Count packets."""
        for packet in packets:
            if packet.interface in self._ignored:
                continue
            self._recent.append(packet)
            self._ends.follow(packet)
            if not packet.outgoing:
                continue
            kind = classify(packet, self._endpoints)
            if kind is Kind.ACKNOWLEDGEMENT and packet.interface == TUNNEL:
                kind = self._ends.answered(packet)
            self.counts[packet.interface, kind] += 1
            if kind is Kind.DATAGRAM:
                self.left[program_of(packet.payload), packet.interface] += 1
            if kind is Kind.UNKNOWN or is_leak(packet.interface, kind):
                key = (packet.interface, packet.protocol, packet.source_port, packet.destination_port)
                story, count = self._wrong.get(key) or (self._story(packet), 0)
                self._wrong[key] = story, count + 1

    def take_wrong(self) -> list[tuple[list[Packet], int]]:
        """The packets that left by the wrong device since the last call.

        :return: for each connection and device: the first such packet and the connection's packets before it, the latest first,
            and the number of such packets
        """
        wrong, self._wrong = self._wrong, {}
        return list(wrong.values())

    def _story(self, packet: Packet) -> list[Packet]:
        ports = {packet.source_port, packet.destination_port}
        same = (p for p in reversed(self._recent) if {p.source_port, p.destination_port} == ports)
        return list(itertools.islice(same, _TOLD))

    def last(self, port: int) -> list[Packet]:
        """The last packets from and to a local port, the latest first."""
        same = (p for p in reversed(self._recent) if port in (p.source_port, p.destination_port))
        return list(itertools.islice(same, _TOLD))

    def by_device(self) -> dict[str, dict[str, int]]:
        """The counts by the names of devices and kinds, for reports."""
        result: dict[str, dict[str, int]] = {}
        for (interface, kind), count in sorted(self.counts.items()):
            result.setdefault(interface, {})[str(kind)] = count
        return result


def program_of(payload: bytes) -> str:
    """The name of the program whose datagram has this payload."""
    return payload.decode(errors="replace").partition(".")[0]


def is_leak(interface: str, kind: Kind) -> bool:
    """Whether a packet of this kind must not leave by the interface."""
    return interface == TUNNEL and kind not in FOLLOWS_ROUTES


def describe(packet: Packet, start: float) -> str:
    """A packet in one line.

    :param start: the time that is shown as 0, in monotonic seconds
    """
    way = "out" if packet.outgoing else "in"
    return (
        f"{packet.time - start:.3f} {way} {packet.interface} {packet.protocol} {packet.source} {packet.source_port} > "
        f"{packet.destination} {packet.destination_port}, flags {packet.flags:#04x}, {packet.length} bytes"
    )
