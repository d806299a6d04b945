"""Darwin (macOS and iOS): sysctl, private ioctls by number, routing and kernel-event sockets. No privilege, no thread."""

from __future__ import annotations

import logging
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from bindsock.kernel import clocks
from bindsock.kernel.chosen import multicast_options
from bindsock.kernel.darwin import routes, sockets
from bindsock.kernel.darwin.events import open_kernel_events, open_route_events
from bindsock.kernel.darwin.interfaces import read_interfaces
from bindsock.kernel.darwin.syscalls import LiveSyscalls
from bindsock.kernel.sockets import bind_by_number
from bindsock.model.network import RouteKind
from bindsock.model.rejection import Departure
from bindsock.model.tables import TableAnswers, routes_of, tabulated

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from bindsock.kernel import EventSource
    from bindsock.kernel.darwin.syscalls import Syscalls
    from bindsock.model.network import Interface, IPAddress, Lookups, Network, Route
    from bindsock.model.rejection import Rejection

__all__ = ["DarwinKernel"]

_logger = logging.getLogger("bindsock")


class DarwinKernel:
    """The :class:`bindsock.kernel.Kernel` of macOS and iOS.

    :param syscalls: the system calls; those of the running system by default
    """

    multipath = None
    """Darwin reserves multipath sockets for Network.framework, by an entitlement (``xnu bsd/netinet/mptcp_usrreq.c``)."""
    administration = None
    """Darwin has no policy rules: its routes are scoped by interface."""
    binding_filters_ingress = False
    """``xnu bsd/netinet/in_pcb.c``, in_pcblookup_hash ignores the interface that a socket is bound to."""

    def __init__(self, syscalls: Syscalls | None = None) -> None:
        self._syscalls = syscalls if syscalls is not None else LiveSyscalls()
        self._complaints: set[str] = set()

    def network(self, *, partial: bool = False) -> Network:
        """Read the network: two sysctls, and six ioctls or so for each interface. A partial reading is not quicker."""
        interfaces, peers = read_interfaces(self._syscalls)
        found = routes.read_routes(self._syscalls, list(interfaces))
        # A link to devices nearby is never an uplink, even if it has an unscoped default route.
        kept = tuple(route for route in found if not (route.is_default and route.interface in peers))
        return tabulated(interfaces, kept)

    def lookups(self, network: Network) -> Lookups:
        """Lookups in the reading's own routing table."""
        return TableAnswers(network)

    def routes(self, family: socket.AddressFamily | None = None, table: int | None = None) -> tuple[Route, ...]:
        """The reading's own routing table."""
        return routes_of(self.network(), family, table)

    def events(self) -> Sequence[EventSource]:
        """PF_ROUTE and kernel events; only one of them if a sandbox denies the other, which is logged once."""
        sources: list[EventSource] = []
        refused: list[OSError] = []
        for name, opens in (("PF_ROUTE", open_route_events), ("kernel events", open_kernel_events)):
            try:
                sources.append(opens(self._syscalls))
            except OSError as error:
                refused.append(error)
                if name not in self._complaints:
                    self._complaints.add(name)
                    _logger.warning("cannot listen to %s, some changes will be noticed later: %s", name, error)
        if not sources:
            raise refused[0]
        return sources

    def suspended(self) -> float:
        """Seconds of sleep: CLOCK_MONOTONIC_RAW counts them, CLOCK_UPTIME_RAW does not."""
        uptime = getattr(time, "CLOCK_UPTIME_RAW", None)
        if uptime is None:
            # Not on a Mac: the system calls are simulated or recorded and have no such clock.
            return 0.0
        return clocks.asleep(time.CLOCK_MONOTONIC_RAW, uptime)

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        """IP_BOUND_IF or IPV6_BOUND_IF, and SO_NOADDRERR on a stream."""
        sockets.bind(sock, interface)

    def rebind(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        peer: tuple[Any, ...] | None = None,
        port: int | None = None,
        replaceable: bool = False,
    ) -> None:
        """Move a datagram socket in place; it keeps its port. See :func:`bindsock.kernel.darwin.sockets.rebind`."""
        sockets.rebind(sock, interface, peer)

    def bind_port(self, sock: socket.socket, address: tuple[Any, ...], port: int) -> None:
        """Ask for the port by its number."""
        bind_by_number(sock, address, port)

    def check_port(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        keeps_address: bool = False,
        replaceable: bool = False,
        sharing: Sequence[socket.socket] = (),
    ) -> None:
        """Nothing to check: ports are given out regardless of interfaces (``bsd/netinet/in_pcb.c``, in_pcblookup_local)."""

    def unbind(self, sock: socket.socket, *, peer: tuple[Any, ...] | None = None, port: int | None = None) -> None:
        """Unbind a socket from its interface."""
        sockets.unbind(sock)

    def bound(self, sock: socket.socket) -> int | None:
        """The index of the interface that the socket is bound to."""
        return sockets.bound(sock)

    def chosen_options(self, sock: socket.socket) -> frozenset[str]:
        """The options by which the program has chosen the interface of the socket's multicasts."""
        return frozenset(multicast_options(sock))

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Ask the kernel for the route of a socket bound to the interface; if it refuses, look into the routing table."""
        try:
            return routes.has_route(self._syscalls, interface.index, destination)
        except OSError as error:
            _logger.debug("cannot ask the kernel for the route to %s: %s", destination, error)
        return any(
            route.interface == interface.index and route.kind is RouteKind.UNICAST and destination in route.destination
            for route in self.network().routes
            if route.destination.version == destination.version
        )

    def route_hint(self, interface: Interface, destination: IPAddress) -> str:
        """The command or setting that gives the interface a default route."""
        family = "" if isinstance(destination, IPv4Address) else "-inet6 "
        return (
            f"{interface.name} has no default route of its own: set its router in System Settings (Network), or run: "
            f"sudo route -n add {family}-ifscope {interface.name} default GATEWAY"
        )

    def activity(self, sock: socket.socket) -> object:
        """The byte counters of a TCP socket."""
        return sockets.activity(sock)

    def abort(self, sock: socket.socket) -> None:
        """Shut the socket down. A reader is woken with an end of file: Darwin cannot reset a connection and keep its descriptor
        open."""
        sockets.abort(sock)

    def needs_lingering_close(self, sock: socket.socket) -> bool:
        """Always false: not tested on Darwin, so it is not known to be needed."""
        return False

    def has_finished(self, sock: socket.socket) -> bool:
        """Unknown: nothing has been measured on a Mac."""
        return False

    def set_user_timeout(self, sock: socket.socket, seconds: float) -> None:
        """TCP_RXT_CONNDROPTIME, and keep-alive probes; a dead connection ends with ETIMEDOUT."""
        sockets.set_user_timeout(sock, seconds)

    def probe(self, sock: socket.socket) -> Callable[[], None]:
        """Keep-alive probes, whose options are restored."""
        return sockets.probe(sock)

    def close(self) -> None:
        """Close the socket for ioctls; the next call opens another one."""
        if isinstance(self._syscalls, LiveSyscalls):
            self._syscalls.close()

    def dropped(self, interface: Interface) -> int | None:
        """Unknown: no counter of xnu is known to tell."""
        return None

    def first_hop_answers(self, interface: Interface, gateway: IPAddress) -> bool | None:
        """Unknown: nothing has been measured on a Mac."""
        return None

    def ask_first_hop(self, interface: Interface, gateway: IPAddress) -> None:
        """Does nothing, since :meth:`first_hop_answers` could not see an answer."""

    def rejection(self, sock: socket.socket) -> Rejection | None:
        """Unknown: Darwin has no error queue."""
        return None

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        """Unknown: nothing has been measured on a Mac."""
        return Departure.UNKNOWN

    def unsent(self, sock: socket.socket) -> int:
        """Unknown: no system call is known to tell."""
        return 0
