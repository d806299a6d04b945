"""The laboratory: a host with uplinks, a router, a server and a VPN, all in network namespaces of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args, overload

from . import _vpn
from ._child import helper
from ._namespaces import LabUnavailable, available, inside, new_namespace
from ._netlink import IFF_RUNNING, IFF_UP
from ._tap import Packet, Tap
from ._topology import NAMESPACES, Family, Server, UplinkKind, uplinks_of
from ._uplinks import Uplinks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ._vpn import VpnCounters, VpnMode, VpnOuter

P = ParamSpec("P")
T = TypeVar("T")
Namespace = Literal["host", "router", "server", "vpn"]
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Counters:
    """The packet counters of a device."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram that the server received."""

    time: float
    """The time when the server read it, in monotonic seconds."""
    source: str
    source_port: int
    payload: bytes
    """Its first 64 bytes."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A connection that the server has open."""

    kind: str
    """``tcp`` or ``tls``."""
    source: str
    source_port: int


class Lab:
    """A host with uplinks to a router, a server behind the router, and a VPN; with real interfaces, routes and packets.

    ``with Lab() as lab, lab.inside():`` moves the thread into the host's namespace: its new sockets and the kernel's events are
    then the host's. All operations can be called from any thread and in any namespace. Each is complete when it returns; those
    that change the network return the ``time.monotonic()`` from just before the change.

    Nothing is left behind: namespaces and interfaces have no names outside. They and the processes end with the process that made
    the laboratory, even if it crashes.

    :param uplinks: names of the host's uplinks, best first; at most 7
    :param kinds: the kinds of uplinks, by name; the others are ``ethernet``. The first one cannot be ``shared``
    :param reply_delay: seconds that the server waits before each reply, to simulate a long distance
    """

    def __init__(
        self,
        *,
        uplinks: Sequence[str] = ("wifi0", "eth0"),
        kinds: Mapping[str, UplinkKind] | None = None,
        reply_delay: float = 0.0,
    ) -> None:
        if not 1 <= len(uplinks) <= 7:
            raise ValueError("a laboratory has 1 to 7 uplinks")
        self._kinds: Mapping[str, UplinkKind] = kinds or {}
        for name, kind in self._kinds.items():
            if name not in uplinks or kind not in get_args(UplinkKind) or (kind == "shared" and name == uplinks[0]):
                raise ValueError(f"{name} cannot be an uplink of kind {kind} beside {', '.join(uplinks)}")
        self.uplinks: tuple[str, ...] = tuple(uplinks)
        self.server: Server = Server()
        self._reply_delay = reply_delay
        self._namespaces: dict[str, int] = {}
        self._exits = contextlib.ExitStack()
        self._client_context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        """Build the laboratory.

        :raises LabUnavailable: it cannot run here
        """
        obstacle = available()
        if obstacle is not None:
            raise LabUnavailable(obstacle)
        with contextlib.ExitStack() as undo:
            for name in NAMESPACES:
                self._namespaces[name] = new_namespace()
                undo.callback(os.close, self._namespaces[name])
            processes = undo.enter_context(helper())
            self._server = processes.child(self._namespaces["server"], "_server")
            undo.callback(self._server.close)
            families = [socket.AF_INET, *([socket.AF_INET6] if Path("/proc/sys/net/ipv6").exists() else [])]
            self._network = Uplinks(uplinks_of(self.uplinks, self._kinds), self._namespaces, families)
            undo.callback(self._network.close)
            try:
                self._network.build()
            except OSError as exc:
                raise LabUnavailable(f"the kernel refused to build the laboratory: {exc}") from exc
            self._vpn = _vpn.Vpn(self._network, self._namespaces, processes)
            undo.callback(self._vpn.close)
            self._network.changed = self._vpn.follow
            addresses = [self.server.address(f) for f in families]
            self._server.ask(command="listen", addresses=addresses, udp=self.server.udp_port, tcp=self.server.tcp_port)
            self.reply_delay(self._reply_delay)
            for name in self.uplinks:
                self.wait_until_running(name)
            self._exits = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove the namespaces. Closing twice is harmless."""
        self._exits.close()

    def inside(self, namespace: Namespace = "host") -> contextlib.AbstractContextManager[None]:
        """Move the current thread into a namespace until the context is left.

        Sockets made and threads and processes started meanwhile belong to that namespace permanently.
        """
        return inside(self._namespaces[namespace])

    @overload
    def run(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run a function, or a coroutine function by ``asyncio.run``, in the host's namespace.

        :return: the function's result
        """
        with self.inside("host"):
            result = function(*args, **kwargs)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

    def ip(self, *arguments: str, namespace: Namespace = "host") -> str:
        """Run the ``ip`` command in a namespace, for changes that have no operation here, or to show the configuration.

        An IPv6 address that is added ``nodad`` can be reached when this returns.

        :return: the output
        :raises LabUnavailable: the command is not installed
        :raises subprocess.CalledProcessError: the command failed
        """
        command = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if command is None:
            raise LabUnavailable("the ip command (iproute2) is not installed")
        with self.inside(namespace):
            output = subprocess.run([command, *arguments], check=True, capture_output=True, text=True).stdout
        self._network.netlinks[namespace].wait_until_added(" ".join(arguments))
        return output

    def index(self, interface: str, *, namespace: Namespace = "host") -> int:
        """The index of an interface.

        :raises OSError: there is no such interface
        """
        return self._network.netlinks[namespace].link(interface).index

    def address(self, interface: str, family: Family = socket.AF_INET) -> str:
        """The host's present or last address on an uplink or on ``tun0``."""
        return _vpn.CLIENT[family] if interface == _vpn.TUN else self._network.by_name[interface].host(family)

    def gateway(self, interface: str, family: Family = socket.AF_INET) -> str:
        """The gateway of an uplink."""
        return self._network.by_name[interface].gateway(family)

    def interface_of(self, source: str) -> str | None:
        """The host's interface that has an address, or had it before it was renumbered; it tells by which one a packet left."""
        names: dict[str, str] = dict.fromkeys(_vpn.CLIENT.values(), _vpn.TUN)
        for uplink in self._network.by_name.values():
            names |= {uplink.host(f, site): uplink.name for f in (socket.AF_INET, socket.AF_INET6) for site in ("a", "b")}
        return names.get(source)

    def counters(self, interface: str, *, namespace: Namespace = "host") -> Counters:
        """The packet counters of a device. The router has interfaces with the names of the host's, and ``server`` and ``vpn``.

        :raises OSError: there is no such interface
        """
        link = self._network.netlinks[namespace].link(interface)
        return Counters(link.rx_packets, link.tx_packets, link.rx_bytes, link.tx_bytes, link.tx_dropped)

    def tap(
        self,
        *,
        namespace: Namespace = "host",
        outgoing: bool | None = True,
        interface: str | None = None,
        protocol: str | None = None,
        address: str | None = None,
        port: int | None = None,
    ) -> Tap:
        """Capture packets.

        :param outgoing: only packets that leave the namespace, or (if false) only packets that arrive; ``None`` for both
        :param address: the source or destination address
        :param port: the source or destination port
        """

        def wanted(packet: Packet) -> bool:
            return (
                outgoing in (None, packet.outgoing)
                and interface in (None, packet.interface)
                and protocol in (None, packet.protocol)
                and (address is None or address in (packet.source, packet.destination))
                and (port is None or port in (packet.source_port, packet.destination_port))
            )

        return Tap(self._namespaces[namespace], wanted)

    def wait_until_running(self, interface: str, running: bool = True) -> None:
        """Wait until the kernel reports that the interface has carrier, up to a second late (``linux net/core/link_watch.c``).

        Also wait for the router's end of an uplink: the kernel reports each end on its own, and a bridge forwards nothing before.

        :raises TimeoutError: it did not report it in time
        """
        both = IFF_UP | IFF_RUNNING
        deadline = time.monotonic() + _PATIENCE
        ends = ["host", "router"] if running and interface in self._network.by_name else ["host"]
        while any((self._network.netlinks[end].link(interface).flags & both == both) != running for end in ends):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{interface} is not {'running' if running else 'without carrier'} after {_PATIENCE} s")
            time.sleep(0.002)

    def reply_delay(self, seconds: float) -> None:
        """Set how long the server waits before each reply."""
        self._server.ask(command="delay", seconds=seconds)

    def datagrams(self) -> list[Datagram]:
        """The datagrams that the server received since the last call."""
        return [Datagram(t, s, p, bytes.fromhex(d)) for t, s, p, d in self._server.ask(command="datagrams")["datagrams"]]

    def streams(self) -> list[Stream]:
        """The connections that the server has open."""
        return [Stream(*s) for s in self._server.ask(command="streams")["streams"]]

    def abort_streams(self) -> None:
        """Let the server reset all its connections."""
        self._server.ask(command="abort")

    def client_ssl_context(self) -> ssl.SSLContext:
        """A context that trusts the server. The first call opens the server's TLS port.

        :raises LabUnavailable: trustme is not installed
        """
        if self._client_context is None:
            try:
                import trustme
            except ImportError as exc:
                raise LabUnavailable("TLS in the laboratory needs trustme (pip install trustme)") from exc
            authority = trustme.CA()
            certificate = authority.issue_cert(self.server.name, self.server.ipv4, self.server.ipv6)
            addresses = [self.server.address(f) for f in self._network.families]
            pem = certificate.private_key_and_cert_chain_pem.bytes().decode()
            self._server.ask(command="tls", addresses=addresses, port=self.server.tls_port, certificate=pem)
            self._client_context = ssl.create_default_context()
            authority.configure_trust(self._client_context)
        return self._client_context

    def down(self, interface: str) -> float:
        """Set an uplink down. The kernel removes its routes and IPv6 addresses."""
        return self._network.down(interface)

    def up(self, interface: str) -> float:
        """Set an uplink up, with its addresses and default routes."""
        return self._network.up(interface)

    def carrier(self, interface: str, on: bool) -> float:
        """Pull the cable of an uplink, or plug it in."""
        return self._network.carrier(interface, on)

    def remove_addresses(self, interface: str) -> float:
        """Remove an uplink's addresses and default routes; the link stays up."""
        return self._network.remove_addresses(interface)

    def add_addresses(self, interface: str) -> float:
        """Add an uplink's addresses and default routes again."""
        return self._network.add_addresses(interface)

    def renumber(self, interface: str, site: Literal["a", "b"]) -> float:
        """Move an uplink to the other of its two networks: other prefix, address and gateway, same interface."""
        return self._network.renumber(interface, site)

    def default(self, interface: str) -> float:
        """Make the default route of an uplink the best one. There is a default route at all times."""
        return self._network.default(interface)

    def metric(self, interface: str, metric: int) -> float:
        """Change the metric of an uplink's default routes. The initial metrics are 600, 700, and so on."""
        return self._network.metric(interface, metric)

    def delete(self, interface: str) -> float:
        """Delete the interface of an uplink."""
        return self._network.delete(interface)

    def create(self, interface: str) -> float:
        """Create a deleted interface of an uplink again. It gets a new index."""
        return self._network.create(interface)

    def blackhole(self, interface: str, on: bool) -> float:
        """Let the router silently drop packets from and to an uplink. The gateway itself still answers."""
        return self._network.blackhole(interface, on)

    def vpn_up(self, mode: VpnMode = "metric", *, outer: VpnOuter = "host-route", loop_limit: int = 2000) -> float:
        """Start the VPN: ``tun0`` in the host.

        :param mode: how it takes the default route: ``metric``, ``replace``, ``halves``, ``policy``, ``policy-kill``, or
            ``split``, which leaves the default route alone
        :param outer: how its own socket reaches the VPN server: ``host-route``, ``bound``, ``unbound`` (it loops), ``fwmark``;
            with ``own`` the caller provides the client
        :param loop_limit: the client gives up after it has found this many of its own packets in the tunnel
        :return: the time just before it took the default route, in monotonic seconds
        :raises LabUnavailable: /dev/net/tun cannot be opened
        """
        return self._vpn.up(mode, outer, loop_limit)

    def vpn_down(self, *, crash: bool = False) -> float:
        """Stop the VPN.

        :param crash: kill it: the device is removed, but rules stay and deleted default routes are not restored
        """
        return self._vpn.down(crash=crash)

    def vpn_counters(self) -> VpnCounters:
        """The VPN client's counters."""
        return self._vpn.counters()

    def vpn_foreign(self) -> int:
        """How many inner packets the VPN server dropped because their source address is not the VPN's.

        Sockets send such packets if they keep an uplink's address while their route leads into the tunnel.
        """
        return self._vpn.foreign()

    @property
    def vpn_tun(self) -> int | None:
        """The descriptor of ``tun0`` (bare IP packets) while the VPN is up with ``outer="own"``. The laboratory closes it."""
        return self._vpn.tun

    @property
    def vpn_server(self) -> tuple[str, int]:
        """The address and port of the VPN server, for the caller's own client (``outer="own"``): bare IP packets in datagrams."""
        return _vpn.SERVER_ADDRESS, _vpn.PORT
