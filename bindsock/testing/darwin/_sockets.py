"""Sockets of the simulated kernel: the effects of binding to an interface, and its errors.

Each rule was recorded from xnu; tests/darwin compares them with the recordings.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from bindsock.kernel.darwin import abi
from bindsock.testing.darwin._errors import darwin_error
from bindsock.testing.darwin._packet import Packet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.model.network import IPAddress
    from bindsock.testing.darwin._kernel import SimulatedDarwin
    from bindsock.testing.darwin._state import SimulatedInterface, SimulatedRoute

_IP_MULTICAST_IF = (abi.IPPROTO_IP, 9)
_IP_MULTICAST_IFINDEX = (abi.IPPROTO_IP, 66)
_IPV6_MULTICAST_IF = (abi.IPPROTO_IPV6, 9)
_IPV6_V6ONLY = (abi.IPPROTO_IPV6, 27)
_SO_ERROR = (abi.SOL_SOCKET, 0x1007)
_SO_BROADCAST = (abi.SOL_SOCKET, 0x20)
_SO_NOADDRERR = (abi.SOL_SOCKET, abi.SO_NOADDRERR)
_BOUND = {4: (abi.IPPROTO_IP, abi.IP_BOUND_IF), 6: (abi.IPPROTO_IPV6, abi.IPV6_BOUND_IF)}
_OUT = ((abi.IPPROTO_IP, abi.IP_OUT_IF), (abi.IPPROTO_IPV6, abi.IPV6_OUT_IF))
_IP_PKTINFO = (abi.IPPROTO_IP, 26)
_IPV6_PKTINFO = (abi.IPPROTO_IPV6, 46)
_IPPROTO_ICMPV6 = 58

Sockaddr = tuple[Any, ...]


class _Way(NamedTuple):
    """How a packet leaves."""

    interface: SimulatedInterface
    source: IPAddress
    local: bool = False


@dataclass(slots=True)
class _Options:
    """The values that ``setsockopt()`` sets."""

    bound: int = 0
    only_v6: bool = False
    fails_without_address: bool = False
    broadcasts: bool = False
    multicast: int = 0


@dataclass(slots=True)
class _Address:
    """The local address and the peer."""

    local: IPAddress | None = None
    port: int = 0
    peer: tuple[IPAddress, int, int] | None = None
    mapped: bool = False
    """Whether it has an IPv4-mapped address, and so takes no IPv6 options any more (xnu bsd/netinet6/udp6_usrreq.c)."""


@dataclass(slots=True)
class _Stream:
    """The TCP state."""

    connecting: bool = False
    listening: bool = False
    gone: bool = False
    """Whether the connection was reset or dropped."""
    shut: int = 0
    error: int = 0


class SimulatedSocket:
    """A socket with the methods of :class:`socket.socket`, and Darwin's option numbers and errors. It never blocks."""

    def __init__(self, kernel: SimulatedDarwin, family: int, kind: int, protocol: int) -> None:
        self.kernel = kernel
        self.family = family
        self.type = kind
        self.proto = protocol
        self.version = 4 if family == abi.AF_INET else 6
        self.established: bool = False
        self.unsent: bytes = b""
        """The data that has not been acknowledged."""
        self._options = _Options()
        self._address = _Address()
        self._tcp = _Stream()
        self._closed = False
        self._left_by = 0
        self._cached: tuple[IPAddress, int, SimulatedRoute] | None = None
        """The last route used, with its destination and the generation of the routing table."""
        self._received: deque[tuple[bytes, Sockaddr]] = deque()

    @property
    def port(self) -> int:
        """The local port; 0 if there is none yet."""
        return self._address.port

    def listens_on(self, ip: IPAddress, port: int) -> bool:
        """Whether it accepts connections to the address."""
        return self._tcp.listening and self._address.port == port and self._address.local in (None, ip)

    def setsockopt(self, level: int, option: int, value: int | bytes | None, size: int = 0) -> None:
        """Set an option. A value of ``None`` with a size stands for a null pointer."""
        self._check_open()
        if self._tcp.shut == 3:
            raise darwin_error(abi.EINVAL)
        key = (level, option)
        raw = struct.pack("<i", value) if isinstance(value, int) else value
        if key == _BOUND[self.version] and self.proto != _IPPROTO_ICMPV6:
            self._bind_to_interface(_integer(raw))
        elif key == _SO_NOADDRERR:
            self._options.fails_without_address = bool(_integer(raw))
        elif key == _SO_BROADCAST:
            self._options.broadcasts = bool(_integer(raw))
        elif key == _IPV6_V6ONLY and self.version == 6:
            self._options.only_v6 = bool(_integer(raw))
        elif (key == _IPV6_MULTICAST_IF and self.version == 6) or (key == _IP_MULTICAST_IFINDEX and self.version == 4):
            self._options.multicast = _integer(raw)
        elif key == _IP_MULTICAST_IF and self.version == 4:
            owner = self.kernel.state.owner(IPv4Address(raw or bytes(4)))
            self._options.multicast = owner.index if owner is not None else 0
        else:
            raise self._unknown(key)

    def getsockopt(self, level: int, option: int, size: int = -1) -> Any:
        """Read an option: a number, or bytes if a size is given."""
        self._check_open()
        key = (level, option)
        if key == _BOUND[self.version] and self.proto != _IPPROTO_ICMPV6:
            value = self._options.bound
        elif key in _OUT:
            value = self._left_by
        elif key == _SO_ERROR:
            value, self._tcp.error = self._tcp.error, 0
        elif key == _SO_NOADDRERR:
            value = 2 * self._options.fails_without_address
        elif key in (_IP_MULTICAST_IFINDEX, _IPV6_MULTICAST_IF):
            value = self._options.multicast
        elif key == _IPV6_V6ONLY and self.version == 6:
            value = self._options.only_v6
        else:
            raise self._unknown(key)
        return int(value) if size < 0 else struct.pack("<i", value)[:size]

    def _unknown(self, key: tuple[int, int]) -> OSError:
        """The error for an unknown option. xnu dispatches by the socket's family, not by the level, so this depends on the
        family."""
        own = abi.IPPROTO_IP if self.version == 4 else abi.IPPROTO_IPV6
        known_nowhere = key[0] == abi.SOL_SOCKET or (key[0] == own and self.version == 4)
        return darwin_error(abi.ENOPROTOOPT if known_nowhere else abi.EINVAL)

    def _bind_to_interface(self, index: int) -> None:
        if self._address.mapped:
            raise darwin_error(abi.EINVAL)
        if index and index not in self.kernel.state.interfaces:
            raise darwin_error(abi.ENXIO)
        self._options.bound = index
        self._cached = None

    def bind(self, address: Sockaddr) -> None:
        """Bind to a local address and port."""
        self._check_open()
        ip, port, _ = self._parsed(address)
        if int(ip) and self.kernel.state.owner(ip) is None:
            raise darwin_error(abi.EADDRNOTAVAIL)
        self._address.mapped = self.version == 6 and ip.version == 4
        self._address.local = ip if int(ip) else None
        self._address.port = port or self.kernel.free_port()

    def connect(self, address: Sockaddr) -> None:
        """Connect. A connected datagram socket is disconnected first: it loses its address and keeps its port. An empty tuple
        stands for an address of family ``AF_UNSPEC``, which only disconnects."""
        self._check_open()
        if self.type == abi.SOCK_STREAM:
            self._connect_stream(address)
            return
        if self._address.peer is not None:
            self._address.peer = self._address.local = None
            self._address.mapped = False
        if not address:
            raise darwin_error(abi.EAFNOSUPPORT if self.version == 4 else abi.EINVAL)
        ip, port, scope = self._parsed(address)
        way = self._way(ip, scope, connecting=True)
        self._address.port = self._address.port or self.kernel.free_port()
        self._address.local = self._address.local or way.source
        self._address.mapped = self.version == 6 and ip.version == 4
        self._address.peer = (ip, port, scope)

    def getsockname(self) -> Sockaddr:
        """The local address and port."""
        self._check_open()
        any_address = IPv4Address(0) if self.version == 4 else IPv6Address(0)
        return self._formatted(self._address.local or any_address, self._address.port, 0)

    def getpeername(self) -> Sockaddr:
        """The peer's address and port."""
        self._check_open()
        if self._tcp.gone:
            raise darwin_error(abi.EINVAL)
        if self._address.peer is None or self._tcp.connecting:
            raise darwin_error(abi.ENOTCONN)
        return self._formatted(*self._address.peer)

    def shutdown(self, how: int) -> None:
        """Shut down reading (0), writing (1) or both (2)."""
        self._check_open()
        self._tcp.shut |= how + 1

    def listen(self, backlog: int = 128) -> None:
        """Accept connections."""
        self._check_open()
        self._tcp.listening = True

    def close(self) -> None:
        """Close the socket."""
        self._closed = True
        if self in self.kernel.sockets:
            self.kernel.sockets.remove(self)

    def fileno(self) -> int:
        """-1 once closed. There is no real descriptor, so an event loop cannot wait for this socket."""
        return -1 if self._closed else 1000 + self.kernel.sockets.index(self)

    def send(self, data: bytes) -> int:
        """Send to the peer."""
        self._check_open()
        if self.type == abi.SOCK_STREAM:
            return self._send_stream(data)
        if self._address.peer is None:
            raise darwin_error(abi.ENOTCONN)
        return self._send(data, *self._address.peer)

    def sendto(self, data: bytes, address: Sockaddr) -> int:
        """Send to an address."""
        return self.sendmsg([data], (), 0, address)

    def sendmsg(
        self,
        buffers: Sequence[bytes],
        ancdata: Sequence[tuple[int, int, bytes]] = (),
        flags: int = 0,
        address: Sockaddr | None = None,
    ) -> int:
        """Send to an address. IP_PKTINFO and IPV6_PKTINFO give the interface and source of this datagram."""
        self._check_open()
        if address is None:
            return self.send(b"".join(buffers))
        if self._address.peer is not None:
            raise darwin_error(abi.EISCONN)
        index, source = 0, None
        for level, kind, data in ancdata:
            if (level, kind) == _IP_PKTINFO:
                index, source = int.from_bytes(data[:4], "little"), ip_address(data[4:8])
            elif (level, kind) == _IPV6_PKTINFO:
                index, source = int.from_bytes(data[16:20], "little"), ip_address(data[:16])
        if index and index not in self.kernel.state.interfaces:
            raise darwin_error(abi.ENXIO)
        wanted = source if source is not None and int(source) else None
        return self._send(b"".join(buffers), *self._parsed(address), index=index, source=wanted)

    def _send(self, data: bytes, ip: IPAddress, port: int, scope: int, *, index: int = 0, source: IPAddress | None = None) -> int:
        way = self._way(ip, scope, index=index, wanted=source)
        self._address.port = self._address.port or self.kernel.free_port()
        if not way.local and not way.interface.up:
            raise darwin_error(abi.ENETDOWN)
        self._left_by = way.interface.index
        if way.local:
            self._deliver(data, ip, port, way.source)
        else:
            packet = Packet(way.interface.name, "udp", way.source, ip, self._address.port, port, payload=data)
            self.kernel.transmit(packet)
        return len(data)

    def _deliver(self, data: bytes, ip: IPAddress, port: int, source: IPAddress) -> None:
        for sock in self.kernel.sockets:
            if sock.type == abi.SOCK_DGRAM and sock._address.port == port and sock._address.local in (None, ip):
                self.kernel.delivered += 1
                sock._received.append((data, (str(source), self._address.port)))
                return

    def recv(self, size: int) -> bytes:
        """Receive data that has arrived."""
        self._check_open()
        if self._tcp.gone:
            return b""
        if not self._received:
            raise darwin_error(abi.EAGAIN)
        return self._received.popleft()[0][:size]

    def _connect_stream(self, address: Sockaddr) -> None:
        if self.established:
            raise darwin_error(abi.EISCONN)
        ip, port, scope = self._parsed(address)
        self._address.port = self._address.port or self.kernel.free_port()
        state = self.kernel.state
        way = self._way(ip, scope, connecting=True)
        self._address.local = self._address.local or way.source
        self._address.mapped = self.version == 6 and ip.version == 4
        if way.local:
            if ip.version == 4 and self._options.bound not in (0, way.interface.index):
                # The source, 127.0.0.1, is not the bound interface's.
                raise darwin_error(abi.EADDRNOTAVAIL)
            self._connect_locally(ip, port)
        elif state.owner(self._address.local) is None:
            raise darwin_error(abi.EADDRNOTAVAIL)
        elif not way.interface.up:
            raise darwin_error(abi.ENETDOWN)
        else:
            self._address.peer = (ip, port, scope)
            self._tcp.connecting = True
            self._segment(way.interface, "S")
        raise darwin_error(abi.EINPROGRESS)

    def _connect_locally(self, ip: IPAddress, port: int) -> None:
        listening = any(s.listens_on(ip, port) for s in self.kernel.sockets)
        self._address.peer = (ip, port, 0)
        self.established, self._tcp.gone = listening, not listening

    def answer(self) -> None:
        """Receive the peer's SYN-ACK."""
        way = self._stream_way()
        if self._tcp.connecting and way is not None:
            self._tcp.connecting, self.established = False, True
            self._segment(way, "A")

    def syn(self, destination: str, source: str, port: int) -> None:
        """Receive a SYN at a listener. It is accepted from any interface, but only answered by the bound one."""
        here, there = ip_address(destination), ip_address(source)
        owner = self.kernel.state.owner(here)
        route = self.kernel.state.lookup(there, self._options.bound or (owner.index if owner is not None else 0))
        if route is not None and owner is not None and self._options.bound in (0, owner.index):
            self.kernel.transmit(Packet(route.interface.name, "tcp", here, there, self._address.port, port, "SA"))

    def _send_stream(self, data: bytes) -> int:
        if self._tcp.gone:
            raise darwin_error(abi.EPIPE)
        if not self.established or self._address.local is None:
            raise darwin_error(abi.ENOTCONN)
        if self._options.fails_without_address and self.kernel.state.owner(self._address.local) is None:
            self._tcp.gone, self.established = True, False
            self._tcp.error = abi.EADDRNOTAVAIL
            raise darwin_error(abi.EADDRNOTAVAIL)
        waiting, self.unsent = self.unsent, self.unsent + data
        way = self._stream_way()
        if way is not None and not waiting:
            self._segment(way, "AP", data)
        return len(data)

    def retransmit(self) -> None:
        """Retransmit unacknowledged data, if there is a route now."""
        way = self._stream_way()
        if way is not None and self.established and self.unsent:
            self._segment(way, "AP", self.unsent)
        elif way is not None and self._tcp.connecting:
            self._segment(way, "S")

    def _stream_way(self) -> SimulatedInterface | None:
        """The interface by which segments leave; without one they are dropped silently."""
        if self._address.peer is None or self._address.local is None:
            return None
        owner = self.kernel.state.owner(self._address.local)
        if owner is None or self._options.bound not in (0, owner.index):
            return None
        route = self.kernel.state.lookup(self._address.peer[0], owner.index)
        return route.interface if route is not None and route.interface.up else None

    def _segment(self, interface: SimulatedInterface, flags: str, payload: bytes = b"") -> None:
        assert self._address.peer is not None
        assert self._address.local is not None
        ip, port, _ = self._address.peer
        self._left_by = interface.index
        self.kernel.transmit(Packet(interface.name, "tcp", self._address.local, ip, self._address.port, port, flags, payload))

    def _way(
        self, ip: IPAddress, scope: int, *, connecting: bool = False, index: int = 0, wanted: IPAddress | None = None
    ) -> _Way:
        if ip.version == 4:
            return self._way_4(ip, connecting=connecting, index=index, wanted=wanted)
        if ip.is_multicast or ip.is_link_local:
            return self._way_on_link(ip, scope)
        return self._way_6(ip, connecting=connecting, index=index)

    def _way_4(self, ip: IPAddress, *, connecting: bool, index: int, wanted: IPAddress | None) -> _Way:
        state = self.kernel.state
        if ip == IPv4Address("255.255.255.255") and not self._options.broadcasts:
            raise darwin_error(abi.EACCES)
        owner = None if self._address.local is None else state.owner(self._address.local)
        scope = (
            index
            or (self._options.multicast if ip.is_multicast else 0)
            or self._options.bound
            or (owner.index if owner is not None else 0)
        )
        own = state.owner(ip)
        route = state.lookup(ip, scope) if index or ip.is_multicast else self._lookup(ip, scope)
        if (route is not None and route.local) or (own is not None and scope in (0, own.index)):
            return _Way(own or state.named("lo0"), self._address.local or ip, local=True)
        if not connecting and self._address.local is not None and (owner is None or scope != owner.index):
            raise darwin_error(abi.EADDRNOTAVAIL)
        if route is None:
            raise darwin_error(abi.EHOSTUNREACH if self._address.peer is not None else abi.ENETUNREACH)
        if wanted is not None and (owner := state.owner(wanted)) is not route.interface:
            raise darwin_error(abi.EADDRNOTAVAIL)
        source = wanted or (self._address.local if not connecting else None) or route.source
        if source is None or (route.interface.source(4) is None and not connecting):
            raise darwin_error(abi.EADDRNOTAVAIL)
        return _Way(route.interface, source)

    def _way_6(self, ip: IPAddress, *, connecting: bool, index: int) -> _Way:
        state = self.kernel.state
        owner = None if self._address.local is None else state.owner(self._address.local)
        scope = index or self._options.bound or (owner.index if owner is not None else 0)
        route = self._lookup(ip, scope)
        if route is None:
            raise darwin_error(abi.EHOSTUNREACH)
        if route.local:
            return _Way(state.named("lo0"), self._address.local or ip, local=True)
        if self._address.local is not None and not connecting and (owner is None or scope != owner.index):
            raise darwin_error(abi.EHOSTUNREACH)
        # The source is of the given interface, but the cached route may use another one: IPV6_PKTINFO is best avoided.
        chooser = state.interfaces[index] if index else route.interface
        source = (self._address.local if not connecting else None) or chooser.source(6)
        if source is None:
            raise darwin_error(abi.EHOSTUNREACH)
        return _Way(route.interface, source)

    def _way_on_link(self, ip: IPAddress, scope: int) -> _Way:
        """The way to a link-local destination or a group. Binding gives no default scope for these."""
        index = (self._options.multicast if ip.is_multicast else 0) or scope
        interface = self.kernel.state.interfaces.get(index)
        source = interface.source(6, link_local=True) if interface is not None else None
        if interface is None or source is None or (not ip.is_multicast and self._options.bound not in (0, index)):
            raise darwin_error(abi.EHOSTUNREACH)
        return _Way(interface, source)

    def _lookup(self, ip: IPAddress, scope: int) -> SimulatedRoute | None:
        """The cached route, if it is to the same destination and no route has changed; else a new lookup."""
        generation = self.kernel.state.generation
        if self._cached is not None and self._cached[:2] == (ip, generation):
            return self._cached[2]
        route = self.kernel.state.lookup(ip, scope)
        self._cached = None if route is None else (ip, generation, route)
        return route

    def _parsed(self, address: Sockaddr) -> tuple[IPAddress, int, int]:
        ip = ip_address(str(address[0]).split("%", 1)[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None and not self._options.only_v6:
            return ip.ipv4_mapped, address[1], 0
        if ip.version != self.version:
            raise darwin_error(abi.EAFNOSUPPORT)
        return ip, address[1], address[3] if len(address) > 3 else 0

    def _formatted(self, ip: IPAddress, port: int, scope: int) -> Sockaddr:
        if self.version == 4:
            return str(ip), port
        return f"::ffff:{ip}" if ip.version == 4 else str(ip), port, 0, scope

    def _check_open(self) -> None:
        if self._closed:
            raise darwin_error(abi.EBADF)


def _integer(raw: bytes | None) -> int:
    if raw is None:
        raise darwin_error(abi.EFAULT)
    if len(raw) < 4:
        raise darwin_error(abi.EINVAL)
    return int.from_bytes(raw[:4], "little", signed=True)
