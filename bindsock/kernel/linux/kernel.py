"""The Linux backend: rtnetlink, ``SO_BINDTOIFINDEX``, and no call that needs a privilege."""

from __future__ import annotations

import logging
import socket
import weakref
from typing import TYPE_CHECKING, Any

from bindsock.kernel import clocks
from bindsock.kernel.linux import departure as departures
from bindsock.kernel.linux import rejections, route_hint, sockets, statistics
from bindsock.kernel.linux.administration import Administration
from bindsock.kernel.linux.gateways import Gateways
from bindsock.kernel.linux.mptcp.path_manager import PathManager
from bindsock.kernel.linux.netlink import Channel
from bindsock.kernel.linux.rtnetlink import neighbours
from bindsock.kernel.linux.rtnetlink.dump import dump_routes
from bindsock.kernel.linux.rtnetlink.events import PendingEvents, RouteEvents
from bindsock.kernel.linux.rtnetlink.lookups import AnswersOrDefaults, CurrentAnswers
from bindsock.kernel.linux.rtnetlink.reader import Reader
from bindsock.kernel.linux.rtnetlink.rp_filter import is_strict
from bindsock.model.network import FAMILIES, Network, family_of, unmapped
from bindsock.model.rejection import Departure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from bindsock.model.network import Interface, IPAddress, Lookups, Route
    from bindsock.model.rejection import Rejection

__all__ = ["LinuxKernel"]

_logger = logging.getLogger("bindsock")
_CLOCK_BOOTTIME = 7
_CLOCK_MONOTONIC = 1


class _Sources:
    """The open event sources, held weakly."""

    def __init__(self) -> None:
        # Not a WeakSet: it is slower than a system call, and this is used for each connection and each move.
        self._references: list[weakref.ref[RouteEvents]] = []

    def add(self, source: RouteEvents) -> None:
        self._references = [*map(weakref.ref, self.open()), weakref.ref(source)]

    def open(self) -> list[RouteEvents]:
        return [source for reference in self._references if (source := reference()) is not None and source.fileno() != -1]

    def watched(self) -> bool:
        return bool(self.open())


class LinuxKernel:
    """The :class:`bindsock.kernel.Kernel` of Linux.

    It belongs to the network namespace in which it is first used, to one thread, and to one process: do not use it after a fork.
    """

    binding_filters_ingress = True
    """``linux net/ipv4/udp.c``, compute_score."""

    def __init__(self) -> None:
        self._channel = Channel()
        self._reader = Reader(self._channel)
        self._sources = _Sources()
        self._current = CurrentAnswers(AnswersOrDefaults(self._reader), self._sources.watched)
        self._gateways = Gateways()
        self.multipath: PathManager = PathManager()
        self.administration: Administration = Administration(self._channel, self._gateways)
        self._filters_seen: set[int] = set()

    def network(self, *, partial: bool = False) -> Network:
        """Read the machine's network, in about 0.3 ms for any number of routes. Sends nothing.

        Routes are not dumped. The kernel is asked for the route of a packet by each interface, and of an unbound socket. A
        partial reading asks only about what the pending events concern. If they only say that an interface went down, nothing is
        asked: the result is the last reading without that interface's routes and IPv6 addresses.
        """
        self._reader.mark = self.administration.mark
        network = self._read(partial)
        if self.administration.repairer is not None and self.administration.repairer.repair(network):
            network = self._read(False)
        return network

    def _read(self, partial: bool) -> Network:
        sources = [source.pending for source in self._sources.open()]
        pending = sources[0] if len(sources) == 1 else PendingEvents.of_all(sources)
        known = partial and bool(sources) and not pending.lost
        down = frozenset(pending.down)
        same_interfaces = known and not pending.interfaces
        same_rules = known and not pending.rules
        # Whoever asks though nothing was announced suspects what is never announced: a route that went with something else.
        suspicion = known and not (pending.anything or pending.defaults or down or pending.prefixes)
        families: Collection[socket.AddressFamily] = FAMILIES if suspicion or not known else set(pending.defaults)
        before = self._reader.last
        try:
            if down and same_interfaces and same_rules and not families:
                network = self._reader.without(down)
                self._current.take_down(down)
            else:
                network = self._reader.network(
                    same_interfaces=same_interfaces and not down, same_rules=same_rules, families=families
                )
                everything = bool(down) or suspicion or pending.anything or network is not before
                self._current.renew(everything, pending.prefixes)
        except OSError:
            for each in sources:
                each.lost = True
            raise
        for each in sources:
            each.clear()
        if network is not before:
            self._gateways.note(network, later=partial)
        if not partial:
            self._reader.look_ahead()
        return network

    def lookups(self, network: Network) -> Lookups:
        """The kernel's route lookups: 5 µs for each interface. Answers are cached while event sources are open."""
        return self._current.cache

    def routes(self, family: socket.AddressFamily | None = None, table: int | None = None) -> tuple[Route, ...]:
        """Dump the routing tables, for people to read. No decision needs them.

        :param family: one address family, both if ``None``
        :param table: one routing table, all if ``None``
        :raises KernelError: an answer cannot be understood
        :raises OSError: a question is refused
        """
        return dump_routes(self._channel, FAMILIES if family is None else (family,), table)

    def events(self) -> Sequence[RouteEvents]:
        """One source: links, addresses, routes, rules and nexthops of both families."""
        source = RouteEvents(concerns=self._current.concerns)
        self._sources.add(source)
        self._current.forget()
        return [source]

    def suspended(self) -> float:
        """Seconds of sleep: CLOCK_BOOTTIME counts them, CLOCK_MONOTONIC does not."""
        return clocks.asleep(_CLOCK_BOOTTIME, _CLOCK_MONOTONIC)

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        """Bind a fresh socket. If the interface's reverse path filter is strict, a warning is logged once."""
        sockets.bind(sock, interface)
        self._mark(sock, interface)
        self._warn_of_strict_filter(interface)

    def rebind(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        peer: tuple[Any, ...] | None = None,
        port: int | None = None,
        replaceable: bool = False,
    ) -> None:
        """Move a datagram socket in place, in about 10 µs. See :func:`bindsock.kernel.linux.sockets.rebind`."""
        self._mark(sock, interface)
        sockets.rebind(sock, interface, peer, port, replaceable=replaceable)
        self._warn_of_strict_filter(interface)

    def bind_port(self, sock: socket.socket, address: tuple[Any, ...], port: int) -> None:
        """See :func:`bindsock.kernel.linux.sockets.bind_port`."""
        sockets.bind_port(sock, address, port)

    def check_port(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        keeps_address: bool = False,
        replaceable: bool = False,
        sharing: Sequence[socket.socket] = (),
    ) -> None:
        """Bind a second socket to the port for a moment, 10 µs; or leave it to :meth:`rebind` after :meth:`bind_port`, 1 µs."""
        sockets.check_port(sock, interface, keeps_address, replaceable, sharing)

    def unbind(self, sock: socket.socket, *, peer: tuple[Any, ...] | None = None, port: int | None = None) -> None:
        """Unbind a socket from its interface."""
        sockets.unbind(sock, peer, port)

    def bound(self, sock: socket.socket) -> int | None:
        """The index of the interface that the socket is bound to."""
        return sockets.bound(sock)

    def chosen_options(self, sock: socket.socket) -> frozenset[str]:
        """The options by which the program has chosen the socket's interface or routes."""
        return sockets.chosen_options(sock)

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        """Use the kernel's answer if no event has come since, or ask it (10 µs). Policy rules and kill switches are respected."""
        answers = self._current.cache.known.get(destination)
        if answers is not None and interface.index in answers.by_interface:
            sources = self._sources.open()
            for source in sources:
                if source.pending.may_change(destination):
                    break
            else:
                if sources:
                    return True
        return self._reader.has_route(interface, destination)

    def route_hint(self, interface: Interface, destination: IPAddress) -> str:
        """Why there is no route, and the command that adds one."""
        try:
            network = self.network()
            own = self._reader.marked_route(interface, destination)
            gateway = self._gateways.find(self._channel, interface, family_of(unmapped(destination)))
        except OSError:
            network, own, gateway = Network({interface.index: interface}), None, None
        sentence = route_hint.hint(network, interface, destination, gateway.address if gateway is not None else None, own)
        problem = self.administration.repairer.problem if self.administration.repairer is not None else ""
        return f"{sentence}; {problem}" if problem else sentence

    def activity(self, sock: socket.socket) -> object:
        """The byte counters of a TCP or MPTCP socket."""
        return sockets.activity(sock)

    def dropped(self, interface: Interface) -> int | None:
        """The device's transmit drops and errors, 9 µs."""
        try:
            return statistics.dropped(self._channel, interface.index)
        except OSError as error:
            _logger.debug("cannot read the drop counters of %s: %s", interface.name, error)
            return None

    def first_hop_answers(self, interface: Interface, gateway: IPAddress) -> bool | None:
        """Look up the gateway's neighbour entry, 10 µs; unknown before Linux 5.0."""
        try:
            return neighbours.answers(self._channel, interface.index, gateway)
        except OSError as error:
            _logger.debug("cannot look up the neighbour %s on %s: %s", gateway, interface.name, error)
            return None

    def rejection(self, sock: socket.socket) -> Rejection | None:
        """Read the socket's error queue; IPv4 only."""
        try:
            return rejections.rejection(sock)
        except OSError:
            return None

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        """Send a byte with the first packet, 60 µs; unknown if TCP Fast Open is switched off."""
        try:
            return departures.departure(sock, address)
        except OSError as error:
            _logger.debug("cannot tell whether a connect to %s leaves this host: %s", address, error)
            return Departure.UNKNOWN

    def ask_first_hop(self, interface: Interface, gateway: IPAddress) -> None:
        """Send an empty datagram to the gateway's discard port."""
        try:
            with socket.socket(family_of(gateway), socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sockets.bind(sock, interface)
                neighbours.ask(sock, interface.index, gateway)
        except OSError as error:
            _logger.debug("cannot ask the neighbour %s on %s: %s", gateway, interface.name, error)

    def unsent(self, sock: socket.socket) -> int:
        """Datagrams that wait for the device, or for the next hop's link-layer address; 1 µs."""
        return statistics.unsent(sock)

    def abort(self, sock: socket.socket) -> None:
        """connect(AF_UNSPEC): the peer gets a reset if it can still be reached; callers that wait on the socket get
        ECONNRESET."""
        sockets.abort(sock)

    def needs_lingering_close(self, sock: socket.socket) -> bool:
        """True for a bound IPv6 connection that this side ends first. Two or three system calls, 1 µs each."""
        return sockets.needs_lingering_close(sock)

    def has_finished(self, sock: socket.socket) -> bool:
        """Asks poll() and SIOCOUTQ, 1 µs each."""
        return sockets.has_finished(sock)

    def set_user_timeout(self, sock: socket.socket, seconds: float) -> None:
        """TCP_USER_TIMEOUT, and keep-alive probes; a dead connection ends with ETIMEDOUT."""
        sockets.set_user_timeout(sock, seconds)

    def probe(self, sock: socket.socket) -> Callable[[], None]:
        """Keep-alive probes, whose options are restored."""
        return sockets.probe(sock)

    def close(self) -> None:
        """Close the netlink sockets; the next call opens them again."""
        self._channel.close()
        self.multipath.close()

    def _mark(self, sock: socket.socket, interface: Interface) -> None:
        if self.administration.mark:
            sockets.mark(sock, self.administration.mark, interface)

    def _warn_of_strict_filter(self, interface: Interface) -> None:
        if interface.index in self._filters_seen or not interface.usable_addresses(socket.AF_INET):
            return
        self._filters_seen.add(interface.index)
        try:
            strict = is_strict(self._channel, interface.index)
        except OSError as error:
            _logger.debug("cannot read the reverse path filter of %s: %s", interface.name, error)
            return
        if strict:
            _logger.warning(
                "%s has a strict reverse path filter (rp_filter=1): IPv4 answers to sockets bound to it are dropped while the "
                "default route is by another interface; set net.ipv4.conf.all.rp_filter or net.ipv4.conf.%s.rp_filter to 2",
                interface.name,
                interface.name,
            )
