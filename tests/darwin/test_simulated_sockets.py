"""Sockets of the simulated Darwin behave as recorded on Apple's kernel: each call, its errno, its value, and the packets sent."""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from bindsock.kernel.darwin import abi
from bindsock.testing.darwin import SimulatedDarwin, SimulatedSocket
from tests.darwin.golden import golden
from tests.darwin.topology import perform, start_ipv6

if TYPE_CHECKING:
    from bindsock.testing.darwin import Packet

_TYPES = {"SOCK_STREAM": abi.SOCK_STREAM, "SOCK_DGRAM": abi.SOCK_DGRAM, "SOCK_RAW": abi.SOCK_RAW}
_FAMILIES = {"AF_INET": abi.AF_INET, "AF_INET6": abi.AF_INET6}

_EPHEMERAL = 49152

_MEANWHILE = {
    "est": ("en0's IPv4 address removed (static default left in place)",),
    "gone": ("en5 detached", "en5 attached again with the same index 4, same addresses and scoped defaults"),
    "down": (
        "KEV_DL_LINK_OFF on en0",
        "en0: IFF_UP cleared",
        "en0: IFF_UP set again (default route not restored)",
        "default route via en0 added again",
    ),
}
"""Events of the whole machine, by group: they happened once, while all sockets of the group were open."""

_BEGUN_AFTER = {
    "udp4 connect with a default route left behind on an interface without address": 1,
    "udp4 bound to that interface: connect, sendto": 1,
    "tcp4 bound to that interface: connect": 1,
    "new udp4 socket: bind to the detached index": 1,
    "new sockets while en0 is not IFF_UP: udp4 bound to en0, connect": 2,
    "same, tcp4": 2,
    "same, udp6": 2,
    "same, tcp6": 2,
    "same, udp4 unbound sendto": 2,
    "same, udp6 unbound sendto": 2,
}
"""The number of these events before a socket that was made later and recorded none of them."""


def build(group: dict[str, Any]) -> SimulatedDarwin:
    """The machine of a group. All groups start in the same state."""
    kernel = SimulatedDarwin()
    for action in golden()["socket_options"][0]["actions"]:
        if not action.startswith("lo0 "):
            perform(kernel, action)
        if action.startswith("create "):
            start_ipv6(kernel, action.split()[1])
    for family, kind in ((abi.AF_INET, abi.SOCK_DGRAM), (abi.AF_INET6, abi.SOCK_DGRAM)):
        kernel.socket(family, kind).bind(("127.0.0.1" if family == abi.AF_INET else "::1", 7777))
    for family in (abi.AF_INET, abi.AF_INET6):
        listener = kernel.socket(family, abi.SOCK_STREAM)
        listener.bind(("127.0.0.1" if family == abi.AF_INET else "::1", 7777))
        listener.listen()
    assert group["name"] in ("basic", *_MEANWHILE)
    return kernel


class Player:
    """Replays one recorded socket on the model and compares the results."""

    def __init__(self, kernel: SimulatedDarwin, case: dict[str, Any]) -> None:
        self.kernel = kernel
        self.name = case["name"]
        self.calls = list(case["calls"])
        self.family, self.type, self.protocol = case["family"], _TYPES[case["type"]], case["protocol"]
        self.sock: SimulatedSocket | None = None
        self.ports: dict[int, int] = {}
        self.seen = 0
        self.delivered = 0

    def play_until(self, meanwhile: tuple[str, ...]) -> None:
        """Replay the calls up to an event of the whole machine, without the event."""
        if self.sock is None:
            self.seen = len(self.kernel.sent)
            self.delivered = self.kernel.delivered
            if self.family in _FAMILIES:
                self.sock = self.kernel.socket(_FAMILIES[self.family], self.type, self.protocol)
        while self.calls:
            call = self.calls.pop(0)
            if call["call"] == "environment":
                if call["what"] in meanwhile:
                    return
                self.happen(call["what"])
            elif self.sock is None:
                self.compare_system_socket(call)
            else:
                self.compare(self.sock, call)

    def happen(self, what: str) -> None:
        if what.startswith("SYN-ACK"):
            assert self.sock is not None
            self.sock.answer()
        elif match := re.fullmatch(r"SYN to (\S+):\d+ arrives on \S+", what):
            assert self.sock is not None
            self.sock.syn(match[1], "8.8.8.8", 40001)
        else:
            assert what == "the loopback receiver got 1 datagram(s)"
            assert self.kernel.delivered == self.delivered + 1
            self.delivered += 1

    def compare_system_socket(self, call: dict[str, Any]) -> None:
        """Compare a call on a routing or event socket, which cannot be bound to an interface."""
        sock = self.kernel.route_socket() if self.family == "PF_ROUTE" else self.kernel.event_socket()
        try:
            if call["call"] == "setsockopt":
                with pytest.raises(OSError, match="Darwin") as raised:
                    sock.setsockopt(call["level"], call["option"], 3)
                assert raised.value.errno == call["errno"]
        finally:
            sock.close()

    def compare(self, sock: SimulatedSocket, call: dict[str, Any]) -> None:
        where = f"{self.name}: {call}"
        number, result = self.outcome(sock, call)
        assert number == call.get("errno", 0), where
        if not number and "value" in call and call["call"] == "getsockopt":
            assert result.hex() == call["value"], where
        if not number and call["call"] in ("getsockname", "getpeername"):
            assert self.comparable(result) == self.comparable(_address(call["address"]), recorded=True), where
        if "egress" in call:
            assert self.left(sock) == {self.packet(packet) for packet in call["egress"]}, where

    def outcome(self, sock: SimulatedSocket, call: dict[str, Any]) -> tuple[int | None, Any]:
        """The errno and the result of a call."""
        try:
            return 0, self.perform(sock, call)
        except OSError as error:
            return error.errno, None

    def perform(self, sock: SimulatedSocket, call: dict[str, Any]) -> Any:
        match call["call"]:
            case "setsockopt":
                value = None if call["value"] is None else bytes.fromhex(call["value"])
                return sock.setsockopt(call["level"], call["option"], value)
            case "getsockopt":
                return sock.getsockopt(call["level"], call["option"], call["size"])
            case "bind" | "connect" as name:
                return getattr(sock, name)(_address(call["address"]))
            case "send":
                return sock.send(bytes.fromhex(call["data"]))
            case "sendto":
                return sock.sendto(bytes.fromhex(call["data"]), _address(call["address"]))
            case "sendmsg":
                control = _control(bytes.fromhex(call["control"]))
                return sock.sendmsg([bytes.fromhex(call["data"])], [control], 0, _address(call["address"]))
            case "recv":
                return sock.recv(100)
            case "shutdown":
                return sock.shutdown(call["how"])
            case "wait":
                return sock.retransmit() if call["seconds"] >= 1 else None
            case "getsockname" | "getpeername" | "listen" | "close" as name:
                return getattr(sock, name)()
        raise AssertionError(call)

    def left(self, sock: SimulatedSocket) -> set[tuple[object, ...]]:
        """The different packets that the socket has sent since the last call. Retransmissions do not count."""
        own: list[Packet] = [p for p in self.kernel.sent[self.seen :] if p.source_port == sock.port]
        self.seen = len(self.kernel.sent)
        return {
            (p.interface, p.protocol, p.source, p.destination, p.source_port, p.destination_port, p.flags, p.payload) for p in own
        }

    def packet(self, recorded: dict[str, Any]) -> tuple[object, ...]:
        assert self.sock is not None
        return (
            recorded["interface"],
            recorded["proto"],
            ip_address(recorded["src"]),
            ip_address(recorded["dst"]),
            self.port(recorded["sport"]),
            recorded["dport"],
            recorded.get("flags", ""),
            bytes.fromhex(recorded["payload"]),
        )

    def comparable(self, address: tuple[Any, ...], *, recorded: bool = False) -> tuple[object, ...]:
        return (ip_address(address[0]), self.port(address[1]) if recorded else address[1], *address[2:])

    def port(self, recorded: int) -> int:
        """The model's port for a recorded port: ephemeral ports differ, but each socket keeps its own."""
        if recorded < _EPHEMERAL or self.sock is None:
            return recorded
        return self.ports.setdefault(recorded, self.sock.port)


def _address(raw: str) -> tuple[Any, ...]:
    data = bytes.fromhex(raw)
    port = int.from_bytes(data[2:4], "big")
    if data[1] == abi.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[4:8]), port
    if data[1] == abi.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, data[8:24]), port, 0, int.from_bytes(data[24:28], "little")
    return ()


def _control(raw: bytes) -> tuple[int, int, bytes]:
    length, level, kind = struct.unpack_from("<Iii", raw)
    return level, kind, raw[12:length]


def _happen_to_all(kernel: SimulatedDarwin, what: str) -> None:
    if what.startswith("en0's IPv4 address removed"):
        kernel.remove_address("en0", "192.168.1.23")
    elif what == "en5 detached":
        kernel.remove_interface("en5")
    elif what.startswith("en5 attached again"):
        for action in golden()["socket_options"][2]["actions"][-4:]:
            perform(kernel, action)
            if action.startswith("create "):
                start_ipv6(kernel, "en5")
    elif what == "KEV_DL_LINK_OFF on en0":
        kernel.set_link("en0", False)
    elif what == "en0: IFF_UP cleared":
        kernel.set_up("en0", False)
    elif what.startswith("en0: IFF_UP set again"):
        kernel.set_up("en0", True)
    else:
        assert what == "default route via en0 added again"
        kernel.add_route("0.0.0.0/0", "en0", "192.168.1.1")


@pytest.mark.parametrize("group", golden()["socket_options"], ids=lambda group: group["name"])
def test_a_group_of_sockets_behaves_as_recorded(group: dict[str, Any]) -> None:
    kernel = build(group)
    meanwhile = _MEANWHILE.get(group["name"], ())
    players = [Player(kernel, case) for case in group["cases"]]
    for happened in range(len(meanwhile) + 1):
        for player in players:
            if happened >= _BEGUN_AFTER.get(player.name, 0):
                player.play_until(meanwhile)
        if happened < len(meanwhile):
            _happen_to_all(kernel, meanwhile[happened])
    assert [player.name for player in players if player.calls] == []
