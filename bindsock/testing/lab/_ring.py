"""A ring buffer of captured packets in shared memory: the kernel writes it, the process reads it.

The queue of an ordinary packet socket holds some 200 packets (``net.core.rmem_max``), and only root outside of user namespaces
may enlarge it. A ring can have any size, for any user. Packets get a time stamp when they are captured. The layout is described
in Linux Documentation/networking/packet_mmap.rst and include/uapi/linux/if_packet.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._namespaces import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

_AF_PACKET, _ETH_P_ALL, _SOL_PACKET = 17, 3, 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V2, _TP_STATUS_KERNEL, _TP_STATUS_USER = 1, 0, 1
_PACKET_OUTGOING = 4
_SIOCGIFNAME = 0x8910
_FRAME_BYTES, _BLOCK_BYTES = 512, 65536
_HEADER = struct.Struct("=4xIIH2xII8xHHiHB")  # tpacket2_hdr, and sockaddr_ll up to the type of the packet
_ADDRESS = struct.Struct("=HHiHBB8x")  # sockaddr_ll
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured packet."""

    data: bytes
    """The first 400 bytes or so, from the network header on."""
    stamp: float
    """The time of capture, in seconds since the epoch."""
    interface: str
    """The interface's name; empty if the interface was made and deleted before its name could be read."""
    outgoing: bool


class Ring:
    """Captures all packets of a network namespace until it is closed.

    :param namespace: a descriptor that refers to the namespace
    :param size: how many packets it holds, a multiple of 128; further ones are dropped and counted
    :raises OSError: the process lacks CAP_NET_RAW in the namespace, or there is not enough memory
    """

    def __init__(self, namespace: int, size: int) -> None:
        self._size = size
        self._next = 0
        self._pending = 0
        self.dropped: int = 0
        """How many packets were dropped because the ring was full."""
        with inside(namespace):
            # With protocol 0 nothing is captured before the ring exists.
            self._socket = socket.socket(_AF_PACKET, socket.SOCK_DGRAM)
            self._names = dict(socket.if_nameindex())
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
            request = struct.pack("=IIII", _BLOCK_BYTES, size * _FRAME_BYTES // _BLOCK_BYTES, _FRAME_BYTES, size)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._memory = mmap.mmap(self._socket.fileno(), size * _FRAME_BYTES)
            try:
                self._words = memoryview(self._memory).cast("I")
                self._start()
            except BaseException:
                self._memory.close()
                raise
        except BaseException:
            self._socket.close()
            raise

    def _start(self) -> None:
        # By ctypes, since socket.bind() requires the name of an interface.
        libc = ctypes.CDLL(None, use_errno=True)
        address = _ADDRESS.pack(_AF_PACKET, socket.htons(_ETH_P_ALL), 0, 0, 0, 0)
        if libc.bind(self._socket.fileno(), address, len(address)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"bind of a packet socket: {os.strerror(code)}")

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Stop capturing. Closing twice is harmless."""
        if not self.closed:
            self._words.release()
            self._memory.close()
            self._socket.close()

    def read(self) -> Iterator[Frame]:
        """Take the packets that were captured until now, in order. Later ones are left, since they may arrive faster than this
        reads."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        captured, dropped = struct.unpack("=II", statistics)
        self.dropped += dropped
        self._pending += captured - dropped
        fresh: dict[int, str] = {}
        while self._pending:
            start = self._next * _FRAME_BYTES
            self._wait_until_written(start)
            _, captured, offset, seconds, nanoseconds, _, _, index, _, kind = _HEADER.unpack_from(self._memory, start)
            data = self._memory[start + offset : start + offset + captured]
            self._words[start // 4] = _TP_STATUS_KERNEL
            self._next = (self._next + 1) % self._size
            self._pending -= 1
            if index not in fresh:
                fresh[index] = self._name(index)
            yield Frame(data, seconds + nanoseconds / 1e9, fresh[index], kind == _PACKET_OUTGOING)

    def _wait_until_written(self, start: int) -> None:
        """Wait until the kernel has copied a packet, which it counts before (linux net/packet/af_packet.c, tpacket_rcv)."""
        deadline = None
        while not self._words[start // 4] & _TP_STATUS_USER:
            if deadline is None:
                deadline = time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline:
                raise TimeoutError(f"the kernel has not written a packet {_PATIENCE} s after it counted it")
            time.sleep(0)

    def _name(self, index: int) -> str:
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, struct.pack("=16si20x", b"", index))
        except OSError:
            return self._names.get(index, "")  # the interface is gone
        self._names[index] = answer[:16].rstrip(b"\0").decode()
        return self._names[index]
