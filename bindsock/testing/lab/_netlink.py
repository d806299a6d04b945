"""Changes a namespace's links, addresses, routes and rules by rtnetlink.

The kernel carries out a request inside ``sendmsg`` (``linux net/netlink/af_netlink.c``, ``netlink_rcv_skb``), so a change and
its errors are complete when the call returns. That takes about 20 µs; starting ``ip`` takes 1.5 ms. An IPv6 address is an
exception: a work queue makes it local, up to 50 ms later on a busy machine (``linux net/ipv6/addrconf.c``,
``addrconf_dad_completed``). Packets for it are dropped until then, so a call that adds one waits until it is local.

The socket belongs to the namespace in which it was made, and can be used from any thread in any namespace. It shares no code with
bindsock's own netlink code, which it is used to test.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from bindsock.model.network import MAIN_TABLE

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from types import TracebackType
    from typing import Self

_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_ERROR = 2
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE = 32, 33
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_NESTED = 0x8000
_LOCAL = 2
_PATIENCE = 20.0
"""How long to wait until an IPv6 address is local, in seconds: far longer than it takes on a busy machine."""
_ADDED = re.compile(r"(-6 )?addr(ess)? add (?P<local>[0-9a-f:]+:[0-9a-f:]*)(/\d+)? dev \S+ nodad\b")

IFF_UP = 0x1
IFF_RUNNING = 0x40
IFF_NOARP = 0x80
IFF_MULTICAST = 0x1000
GONE: Container[int] = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
"""The errors that mean that the thing to delete does not exist."""

_ROUTE_TYPES = {"unicast": 1, "blackhole": 6, "unreachable": 7}
_RULE_ACTIONS = {"lookup": 1, "blackhole": 6}


class Message(NamedTuple):
    """A request: type, flags and body."""

    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """The state of a link."""

    index: int
    flags: int
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    tx_dropped: int


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _link_header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def veth(name: str, peer: str, peer_namespace: int, *, hardware: tuple[bytes, bytes] | None = None) -> Message:
    """Create a veth pair with the other end in the namespace that the descriptor refers to.

    :param hardware: the hardware addresses of this end and of the other one
    """
    own, others = (_attribute(1, address) for address in hardware) if hardware is not None else (b"", b"")
    other = _link_header() + _text(3, peer) + _number(28, peer_namespace) + others
    return _new_link(name, "veth", own, _attribute(1 | _NESTED, other))


def bridge(name: str, hardware: bytes) -> Message:
    """Create a bridge. Its hardware address is given, since it would change with the ports."""
    return _new_link(name, "bridge", _attribute(1, hardware))


def macvlan(name: str, lower: int, hardware: bytes) -> Message:
    """Create a macvlan on the link with an index."""
    return _new_link(name, "macvlan", _number(5, lower) + _attribute(1, hardware))


def _new_link(name: str, kind: str, attributes: bytes = b"", data: bytes = b"") -> Message:
    info = _text(1, kind) + (_attribute(2 | _NESTED, data) if data else b"")
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, _link_header() + _text(3, name) + attributes + _attribute(18 | _NESTED, info))


def link_master(index: int, master: int) -> Message:
    """Make a link a port of a bridge."""
    return Message(_NEWLINK, 0, _link_header(index) + _number(10, master))


def link_flags(index: int, flags: int, change: int) -> Message:
    """Set the flags of a link that are in the mask ``change``."""
    return Message(_NEWLINK, 0, _link_header(index, flags, change))


def link_mtu(index: int, mtu: int) -> Message:
    return Message(_NEWLINK, 0, _link_header(index) + _number(4, mtu))


def delete_link(index: int) -> Message:
    return Message(_DELLINK, 0, _link_header(index))


def address(index: int, with_prefix: str, *, delete: bool = False) -> Message:
    """Add an address, such as ``10.1.0.2/24``, to a link, or delete it. IPv6 addresses are usable at once (no DAD)."""
    plain, _, length = with_prefix.partition("/")
    value = ip_address(plain)
    no_dad = 0x02 if value.version == 6 else 0
    family = socket.AF_INET if value.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, int(length), no_dad, 0, index)
    body += _attribute(2, value.packed) + _attribute(1, value.packed)
    return Message(_DELADDR, 0, body) if delete else Message(_NEWADDR, _CREATE | _REPLACE, body)


def route(
    destination: str,
    *,
    interface: int | None = None,
    gateway: str | None = None,
    metric: int = 0,
    table: int = MAIN_TABLE,
    kind: str = "unicast",
    delete: bool = False,
) -> Message:
    """Add or replace a route, or delete the one that matches.

    :param destination: a prefix; ``0.0.0.0/0`` and ``::/0`` for the default routes
    """
    prefix = ip_network(destination)
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    scope = 253 if prefix.version == 4 and gateway is None and kind == "unicast" else 0
    if delete:
        scope = 255  # RT_SCOPE_NOWHERE matches every scope
    type_ = 0 if delete and kind == "unicast" else _ROUTE_TYPES[kind]
    body = struct.pack("=BBBBBBBBI", family, prefix.prefixlen, 0, 0, 0, 0 if delete else 4, scope, type_, 0)
    body += _number(15, table)
    if prefix.prefixlen:
        body += _attribute(1, prefix.network_address.packed)
    if interface is not None:
        body += _number(4, interface)
    if gateway is not None:
        body += _attribute(5, ip_address(gateway).packed)
    if metric:
        body += _number(6, metric)
    return Message(_DELROUTE, 0, body) if delete else Message(_NEWROUTE, _CREATE | _REPLACE, body)


def rule(
    family: int,
    priority: int,
    *,
    action: str = "lookup",
    table: int = 0,
    not_mark: int | None = None,
    incoming: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    suppress_prefix_length: int | None = None,
    delete: bool = False,
) -> Message:
    """Add or delete a policy rule."""
    to = ip_network(destination) if destination is not None else None
    from_ = ip_network(source) if source is not None else None
    lengths = [prefix.prefixlen if prefix is not None else 0 for prefix in (to, from_)]
    inverted = 0x2 if not_mark is not None else 0
    body = struct.pack("=BBBBBBBBI", family, *lengths, 0, 0, 0, 0, _RULE_ACTIONS[action], inverted)
    body += _number(6, priority)
    for kind, prefix in ((1, to), (2, from_)):
        if prefix is not None:
            body += _attribute(kind, prefix.network_address.packed)
    if incoming is not None:
        body += _text(3, incoming)
    if not_mark is not None:
        body += _number(10, not_mark) + _number(16, 0xFFFFFFFF)
    if table:
        body += _number(15, table)
    if suppress_prefix_length is not None:
        body += _number(14, suppress_prefix_length)
    return Message(_DELRULE, 0, body) if delete else Message(_NEWRULE, _CREATE | _EXCLUSIVE, body)


class Netlink:
    """An rtnetlink socket in the current thread's namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
        self._sequence = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, *messages: Message, ignore: Container[int] = ()) -> None:
        """Send requests to the kernel, one after the other.

        :param ignore: errno values that do not count as failures
        :raises OSError: a request failed; later ones were not sent
        :raises TimeoutError: an IPv6 address is not local after 20 s
        """
        for message in messages:
            for type_, body in self._exchange(message, _ACK):
                if type_ == _ERROR:
                    code = -int(struct.unpack_from("=i", body)[0])
                    if code and code not in ignore:
                        raise OSError(code, f"rtnetlink {message.type}: {os.strerror(code)}")
        for message in messages:
            if message.type == _NEWADDR and message.body[0] == socket.AF_INET6:
                self.wait_until_local(str(ip_address(dict(_attributes(message.body[8:]))[2])))

    def wait_until_local(self, address: str) -> None:
        """Wait until the kernel accepts packets for an IPv6 address.

        :raises TimeoutError: it does not after 20 s
        """
        body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 128, 0, 0, 0, 0, 0, 0, 0) + _attribute(1, ip_address(address).packed)
        deadline = time.monotonic() + _PATIENCE
        while not any(t == _NEWROUTE and answer[7] == _LOCAL for t, answer in self._exchange(Message(_GETROUTE, 0, body), 0)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address} is not local after {_PATIENCE} s")
            time.sleep(0.001)

    def wait_until_added(self, command: str) -> None:
        """Wait until the kernel accepts packets for an IPv6 address, if the arguments of ``ip`` have added one ``nodad``."""
        if match := _ADDED.match(command):
            self.wait_until_local(match["local"])

    def link(self, name: str) -> Link:
        """Read a link.

        :raises OSError: there is no such link (ENODEV)
        """
        for type_, body in self._exchange(Message(_GETLINK, 0, _link_header() + _text(3, name)), 0):
            if type_ == _ERROR:
                code = -int(struct.unpack_from("=i", body)[0])
                raise OSError(code, f"{name}: {os.strerror(code)}")
            index, flags = struct.unpack_from("=iI", body, 4)
            attributes = dict(_attributes(body[16:]))
            rx, tx, rx_bytes, tx_bytes, _, _, _, dropped = struct.unpack_from("=8Q", attributes[23])  # IFLA_STATS64
            return Link(index, flags, rx, tx, rx_bytes, tx_bytes, dropped)
        raise OSError(errno.EPROTO, f"{name}: the kernel did not answer")

    def _exchange(self, message: Message, flags: int) -> list[tuple[int, bytes]]:
        with self._lock:
            self._sequence += 1
            flags |= _REQUEST | message.flags
            header = struct.pack("=IHHII", 16 + len(message.body), message.type, flags, self._sequence, 0)
            self._socket.sendto(header + message.body, (0, 0))
            data = self._socket.recv(65536)
        answers: list[tuple[int, bytes]] = []
        while len(data) >= 16:
            length, type_ = struct.unpack_from("=IH", data)
            answers.append((type_, data[16:length]))
            data = data[(length + 3) & ~3 :]
        return answers


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
