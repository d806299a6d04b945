"""A packet tap: it records which packets left, when, and by which interface, independently of the sockets."""

from __future__ import annotations

import functools
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ._ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_RING_PACKETS = 32768
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet that an interface sent or received."""

    time: float
    """The time when the kernel handed the packet to the device, in monotonic seconds."""
    interface: str
    outgoing: bool
    protocol: str
    """``udp``, ``tcp``, ``icmp``, ``icmp6`` or the number."""
    source: str
    destination: str
    source_port: int
    """0 if the protocol has no ports, and for all fragments but the first."""
    destination_port: int
    length: int
    """The length in bytes, with the IP header."""
    payload: bytes
    """The first 350 bytes or so of the UDP or TCP payload."""
    flags: int = 0
    """TCP's flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16."""
    sequence: int = 0
    """TCP's sequence number of the first byte."""
    acknowledgement: int = 0
    """TCP's acknowledgement number: the byte that the sender expects next."""
    payload_length: int = 0
    """The length of the whole UDP or TCP payload."""


def parse(data: bytes, moment: float, interface: str, outgoing: bool) -> Packet | None:
    """Parse the headers of a packet; ``None`` if it is no IP packet."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        start, number, length = (data[0] & 15) * 4, data[9], int.from_bytes(data[2:4], "big")
        source, destination = data[12:16], data[16:20]
        first = not int.from_bytes(data[6:8], "big") & 0x1FFF
    elif len(data) >= 40 and data[0] >> 4 == 6:
        start, number, length = 40, data[6], 40 + int.from_bytes(data[4:6], "big")
        source, destination = data[8:24], data[24:40]
        first = True
    else:
        return None
    ports, payload, payload_length, flags, sequence, acknowledgement = (0, 0), b"", 0, 0, 0, 0
    if number in (6, 17) and first and len(data) >= start + 8:
        ports = struct.unpack_from("!HH", data, start)
        header = 8 if number == 17 else (data[start + 12] >> 4) * 4 if len(data) > start + 12 else 0
        payload, payload_length = data[start + header : length], max(0, length - start - header)
        if number == 6 and len(data) > start + 13:
            flags = data[start + 13]
            sequence, acknowledgement = struct.unpack_from("!II", data, start + 4)
    protocol = _PROTOCOLS.get(number, str(number))
    addresses = _text(source), _text(destination)
    return Packet(
        moment,
        interface,
        outgoing,
        protocol,
        *addresses,
        *ports,
        length,
        payload,
        flags,
        sequence,
        acknowledgement,
        payload_length,
    )


@functools.lru_cache(1024)
def _text(address: bytes) -> str:
    return str(ip_address(address))


class Tap:
    """Captures the packets of a namespace during a ``with`` block.

    :param namespace: a descriptor that refers to the namespace
    :param wanted: whether to keep a packet
    """

    def __init__(self, namespace: int, wanted: Callable[[Packet], bool]) -> None:
        self._wanted = wanted
        self._packets: list[Packet] = []
        self._asked = time.monotonic()
        self._ring = Ring(namespace, _RING_PACKETS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def packets(self) -> list[Packet]:
        """All packets so far, in order."""
        self._drain()
        return list(self._packets)

    @property
    def dropped(self) -> int:
        """How many packets of any kind the kernel dropped. Unless it is 0, :attr:`packets` is incomplete."""
        return self._ring.dropped

    def take(self) -> list[Packet]:
        """The packets since the last call, in order. They are removed: :attr:`packets` only has later ones."""
        self._drain()
        taken, self._packets = self._packets, []
        return taken

    def close(self) -> None:
        """Read the remaining packets, and stop capturing."""
        try:
            self._drain()
        finally:
            self._ring.close()

    def _drain(self) -> None:
        if self._ring.closed:
            return
        earliest, self._asked = self._asked, time.monotonic()
        since_epoch = time.time() - self._asked
        for frame in self._ring.read():
            # The clock for time stamps can be stepped: limit the times to between the last read and now.
            moment = min(max(frame.stamp - since_epoch, earliest), time.monotonic())
            packet = parse(frame.data, moment, frame.interface, frame.outgoing)
            if packet is not None and self._wanted(packet):
                self._packets.append(packet)
