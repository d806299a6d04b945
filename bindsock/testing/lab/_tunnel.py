"""Client and server of a userspace VPN: they exchange the IP packets of a TUN device in UDP datagrams, unencrypted.

:mod:`._helper` imports it without the package, so it only imports the standard library. Like WireGuard, the server sends to the
address that the client last sent from, and drops inner packets whose source address is not the client's. The client counts its
own outer packets (those to the VPN server's address) that come out of the tunnel, and stops at a limit, since a loop would use up
the processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from typing import Any

_SO_BINDTOIFINDEX = 62
_SO_MARK = 36
_BURST = 64
_LARGEST = 65536


def source_and_destination(packet: bytes) -> tuple[bytes, bytes]:
    """The source and destination of an IP packet, as bytes; empty if it is no IP packet."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return packet[8:24], packet[24:40]
    return b"", b""


class End:
    """One end: forwards packets between a TUN device and a UDP socket until its standard input ends."""

    def __init__(self, tun: int) -> None:
        self.tun = tun
        self.outer: socket.socket | None = None
        self.peer: tuple[str, int] | None = None
        self.counts = {"sent": 0, "received": 0, "refused": 0, "reentered": 0, "foreign": 0}
        self.stopped = False
        self.commands = b""

    def admits_from_tun(self, packet: bytes) -> bool:
        raise NotImplementedError

    def admits_from_outer(self, packet: bytes) -> bool:
        raise NotImplementedError

    def obey(self, command: dict[str, Any]) -> dict[str, Any] | None:
        raise NotImplementedError

    def run(self) -> None:
        os.set_blocking(self.tun, False)
        while True:
            outer = -1 if self.outer is None else self.outer.fileno()
            ready, _, _ = select.select([0, self.tun, *([outer] if outer >= 0 else [])], [], [])
            if 0 in ready and not self.read_commands():
                return
            if self.tun in ready:
                self.read_tun()
            if outer in ready:
                self.read_outer()

    def read_commands(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self.commands = (self.commands + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(json.loads(line))
            except OSError as exc:
                answer = {"error": str(exc)}
            if answer is not None:
                os.write(1, json.dumps(answer).encode() + b"\n")
        return bool(data)

    def read_tun(self) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(self.tun, _LARGEST)
            except OSError:  # no packet is left, or the device is down
                return
            if not self.stopped and self.admits_from_tun(packet):
                self.send(packet)

    def send(self, packet: bytes) -> None:
        if self.outer is None or self.peer is None:
            return
        try:
            self.outer.sendto(packet, self.peer)
            self.counts["sent"] += 1
        except OSError:  # no route, no buffer, or too long: drop it silently, as networks do
            self.counts["refused"] += 1

    def read_outer(self) -> None:
        for _ in range(_BURST):
            if self.outer is None:
                return
            try:
                packet, source = self.outer.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier datagram
                continue
            self.heard_from(source)
            if packet and self.admits_from_outer(packet):
                self.counts["received"] += 1
                with contextlib.suppress(OSError):  # the device is down
                    os.write(self.tun, packet)

    def heard_from(self, source: tuple[str, int]) -> None:
        """Called when a datagram came from the address."""


class Client(End):
    """The host's end."""

    server = b""
    limit = 0

    def obey(self, command: dict[str, Any]) -> dict[str, Any] | None:
        match command["command"]:
            case "start":
                self.peer = (command["server"], command["port"])
                self.server = socket.inet_aton(command["server"])
                self.limit = command["limit"]
                if command["interface"] is not None:
                    self.open_outer(command["interface"], command["mark"])
                return {}
            case "bind":
                self.open_outer(command["interface"], 0)
                return None
            case "counts":
                return {**self.counts, "stopped": self.stopped}
        return {"error": f"unknown command {command}"}

    def open_outer(self, interface: int, mark: int) -> None:
        old, self.outer = self.outer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if old is not None:
            old.close()
        self.outer.setblocking(False)
        if interface:
            self.outer.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, interface)
        if mark:
            self.outer.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        self.send(b"")  # tells the server where the client is now

    def admits_from_tun(self, packet: bytes) -> bool:
        if source_and_destination(packet)[1] == self.server:
            self.counts["reentered"] += 1
            self.stopped = self.counts["reentered"] >= self.limit
        return not self.stopped

    def admits_from_outer(self, packet: bytes) -> bool:
        return True


class Server(End):
    """The VPN server's end."""

    clients: tuple[bytes, ...] = ()

    def obey(self, command: dict[str, Any]) -> dict[str, Any] | None:
        match command["command"]:
            case "start":
                self.clients = tuple(bytes.fromhex(c) for c in command["clients"])
                self.outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self.outer.setblocking(False)
                self.outer.bind((command["address"], command["port"]))
                return {}
            case "counts":
                return {**self.counts, "stopped": False}
        return {"error": f"unknown command {command}"}

    def admits_from_tun(self, packet: bytes) -> bool:
        # Drop this router's multicast reports, so that the client's device only counts the test's packets.
        return source_and_destination(packet)[1][:1] != b"\xff"

    def admits_from_outer(self, packet: bytes) -> bool:
        if source_and_destination(packet)[0] in self.clients:
            return True
        self.counts["foreign"] += 1
        return False

    def heard_from(self, source: tuple[str, int]) -> None:
        self.peer = source


def open_tun(name: str) -> int:
    """Make a TUN device in the current namespace.

    :return: its descriptor; the device is removed when this is closed
    :raises OSError: /dev/net/tun is missing or not accessible
    """
    import fcntl

    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def run(end: str, tun: int) -> None:
    (Client if end == "client" else Server)(tun).run()
