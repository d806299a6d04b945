"""A kernel with simulated networks, for tests such as "Wi-Fi, then cellular, then nothing, then a sleep".

It runs all of bindsock on any system and without privileges: the sockets are real and use loopback, only the network that the
kernel reports is simulated. For tests with real interfaces use :mod:`bindsock.testing.lab`.
"""

from __future__ import annotations

import errno
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from bindsock.errors import BindFailed
from bindsock.kernel import Administration, PathManager
from bindsock.kernel.chosen import multicast_options
from bindsock.kernel.sockets import bind_by_number
from bindsock.model.network import (
    Interface,
    IPAddress,
    Lookups,
    Network,
    Route,
)
from bindsock.model.rejection import Departure, Rejection
from bindsock.model.tables import TableAnswers, routes_of


class SimulatedKernel:
    """A :class:`bindsock.kernel.Kernel` whose network the test controls.

    .. code-block:: python

        kernel = SimulatedKernel(network("wifi0 wifi 192.0.2.5/24", "default via 192.0.2.1 dev wifi0"))
        kernel.change(network("wifi0 wifi down"))

    :param network: the initial network; :func:`bindsock.testing.network` makes one
    """

    binding_filters_ingress = True
    finished: bool = False
    """The result of :meth:`has_finished`."""
    ports_taken: frozenset[str] = frozenset()
    """Names of interfaces on which another socket has the port of each socket that is to move there."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._sources: weakref.WeakSet[SimulatedEvents] = weakref.WeakSet()
        self._bound: weakref.WeakKeyDictionary[socket.socket, int] = weakref.WeakKeyDictionary()
        self._suspended = 0.0
        self._activity = 0
        self.readings: int = 0
        """How often the network was read."""
        self.binds: list[tuple[str, str]] = []
        """The calls that changed sockets: ("bind", "rebind", "unbind" or "abort", interface),
        ("set_user_timeout", seconds), or ("probe", "" or "ended")."""
        self.refuse: set[str] = set()
        """Names of interfaces to which binding fails with EPERM."""
        self.multipath: PathManager | None = None
        """For tests with multipath connections: a :class:`SimulatedPathManager`."""
        self.administration: Administration | None = None
        """For tests with policy rules, firewalls and marks."""
        self.hops: dict[str, bool] = {}
        """Whether an interface's gateway answers, by the interface's name; unknown if the name is missing."""
        self.asked_hops: list[str] = []
        """The interfaces for which :meth:`ask_first_hop` was called."""
        self.rejections: weakref.WeakKeyDictionary[socket.socket, Rejection] = weakref.WeakKeyDictionary()
        """The results of :meth:`rejection`."""
        self.silent = False
        """While true, changes send no event."""

    def change(self, network: Network) -> None:
        """Change the network, and send an event."""
        self._network = network
        if not self.silent:
            self.signal()

    def signal(self) -> None:
        """Send an event, whether something changed or not."""
        for source in list(self._sources):
            source.signal()

    def overrun(self) -> None:
        """Let the event sources lose events."""
        for source in list(self._sources):
            source.overruns += 1
            source.signal()

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep. No event is sent."""
        self._suspended += seconds

    @property
    def sources(self) -> list[SimulatedEvents]:
        """The open event sources."""
        return [source for source in self._sources if source.fileno() != -1]

    @property
    def open_sources(self) -> int:
        """How many event sources are open."""
        return len(self.sources)

    def network(self, *, partial: bool = False) -> Network:
        self.readings += 1
        return self._network

    def events(self) -> Sequence[SimulatedEvents]:
        source = SimulatedEvents()
        self._sources.add(source)
        return [source]

    def suspended(self) -> float:
        return self._suspended

    def bind(self, sock: socket.socket, interface: Interface) -> None:
        self._place("bind", sock, interface)

    def rebind(
        self,
        sock: socket.socket,
        interface: Interface,
        *,
        peer: tuple[object, ...] | None = None,
        port: int | None = None,
        replaceable: bool = False,
    ) -> None:
        self._place("rebind", sock, interface)

    def bind_port(self, sock: socket.socket, address: tuple[object, ...], port: int) -> None:
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
        if interface.name in self.ports_taken:
            raise BindFailed("another socket has the local port", errno=errno.EADDRINUSE, interface=interface.name, call="bind")

    def unbind(self, sock: socket.socket, *, peer: tuple[object, ...] | None = None, port: int | None = None) -> None:
        self.binds.append(("unbind", ""))
        self._bound.pop(sock, None)

    def bound(self, sock: socket.socket) -> int | None:
        # A transport's socket is another object with the same descriptor.
        descriptor = sock.fileno()
        return next((i for own, i in self._bound.items() if own is sock or own.fileno() == descriptor != -1), None)

    def abort(self, sock: socket.socket) -> None:
        self.binds.append(("abort", ""))
        sock.shutdown(socket.SHUT_RDWR)

    def needs_lingering_close(self, sock: socket.socket) -> bool:
        return False

    def has_finished(self, sock: socket.socket) -> bool:
        return self.finished

    def set_user_timeout(self, sock: socket.socket, seconds: float) -> None:
        self.binds.append(("set_user_timeout", str(seconds)))

    def probe(self, sock: socket.socket) -> Callable[[], None]:
        self.binds.append(("probe", ""))
        return lambda: self.binds.append(("probe", "ended"))

    def chosen_options(self, sock: socket.socket) -> frozenset[str]:
        return frozenset(multicast_options(sock))

    def has_route(self, interface: Interface, destination: IPAddress) -> bool:
        found = TableAnswers(self._network)(destination).by_interface.get(interface.index)
        return found is not None and found.usable

    def routes(self, family: socket.AddressFamily | None = None, table: int | None = None) -> tuple[Route, ...]:
        return routes_of(self._network, family, table)

    def lookups(self, network: Network) -> Lookups:
        return TableAnswers(network)

    def route_hint(self, interface: Interface, destination: IPAddress) -> str:
        return f"give {interface.name} a route to {destination}"

    def activity(self, sock: socket.socket) -> object:
        return self._activity

    def dropped(self, interface: Interface) -> int | None:
        return None

    def first_hop_answers(self, interface: Interface, gateway: IPAddress) -> bool | None:
        return self.hops.get(interface.name)

    def ask_first_hop(self, interface: Interface, gateway: IPAddress) -> None:
        self.asked_hops.append(interface.name)

    def rejection(self, sock: socket.socket) -> Rejection | None:
        return self.rejections.pop(sock, None)

    def departure(self, sock: socket.socket, address: Any) -> Departure:
        return Departure.LEFT

    def unsent(self, sock: socket.socket) -> int:
        return 0

    def close(self) -> None:
        """Do nothing, since no descriptors are kept."""

    def transfer(self) -> None:
        """Let :meth:`activity` report that data moved."""
        self._activity += 1

    def _place(self, call: str, sock: socket.socket, interface: Interface) -> None:
        if sock.fileno() == -1:
            raise BindFailed("the socket is closed", errno=errno.EBADF, interface=interface.name, call=call)
        if interface.name in self.refuse:
            raise BindFailed("refused by the test", errno=errno.EPERM, interface=interface.name, call=call)
        if interface.index not in self._network.interfaces:
            raise BindFailed("there is no such interface", errno=errno.ENODEV, interface=interface.name, call=call)
        self.binds.append((call, interface.name))
        self._bound[sock] = interface.index


class SimulatedEvents:
    """An event source that the test makes readable."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.overruns: int = 0
        self.urgent = True

    def signal(self) -> None:
        if self.fileno() != -1:
            try:
                self._writer.send(b"!")
            except BlockingIOError:
                self.overruns += 1

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> bool:
        try:
            return bool(self._reader.recv(65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


__all__ = ["SimulatedEvents", "SimulatedKernel"]
