"""A conformance suite for kernel backends: checks that a backend does what :class:`bindsock.kernel.Kernel` promises.

Use it for a backend of your own, or for a kernel that you write for tests. It opens sockets and binds them, and sends nothing.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TypeAlias

from bindsock.errors import BindFailed
from bindsock.kernel import Kernel
from bindsock.model.network import FAMILIES, Interface, InterfaceKind, IPAddress, Network, RouteKind, family_of
from bindsock.options import known_keywords_only

SocketFactory: TypeAlias = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]

_NOBODY = 0x7FFFFFF0
"""An interface index that no interface has."""


@known_keywords_only
def check_kernel(kernel: Kernel, *, make_socket: SocketFactory = socket.socket) -> None:
    """Check that a kernel backend keeps its promises.

    The network must not change meanwhile. It should have an uplink; checks that need one are skipped otherwise.

    :param kernel: the backend
    :param make_socket: makes sockets that the backend can bind
    :raises AssertionError: a promise is broken; the message names it
    """
    suite = _Suite(kernel, make_socket)
    suite.check_reading()
    suite.check_events()
    suite.check_suspended()
    for interface in suite.uplinks():
        suite.check_binding(interface)
        suite.check_rebinding(interface)
        suite.check_routes(interface)
    suite.check_refusals()
    suite.check_questions_about_sockets()
    suite.check_close()


class _Suite:
    def __init__(self, kernel: Kernel, make_socket: SocketFactory) -> None:
        self._kernel = kernel
        self._make_socket = make_socket

    def uplinks(self) -> list[Interface]:
        """The interfaces with a usable address, except the loopback."""
        interfaces = self._kernel.network().interfaces.values()
        return [i for i in interfaces if i.kind is not InterfaceKind.LOOPBACK and i.up and any(a.usable for a in i.addresses)]

    def check_reading(self) -> None:
        first, second = self._kernel.network(), self._kernel.network()
        _check(isinstance(first, Network), f"network() returns a Network, not {first!r}")
        _check(first == second, "two readings of an unchanged network are equal")
        _check(hash(first.reachable) == hash(second.reachable), "Network.reachable is hashable")
        for index, interface in first.interfaces.items():
            _check(index == interface.index, f"{interface} is listed under its own index, not under {index}")
            _check(index > 0, f"{interface} has an index greater than 0")
            _check(bool(interface.name), f"interface {index} has a name")
        names = [interface.name for interface in first.interfaces.values()]
        _check(len(names) == len(set(names)), "no two interfaces have the same name")
        for index, family in first.reachable:
            _check(index in first.interfaces, f"the kernel confirms a default route by interface {index}, which does not exist")
            _check(family in FAMILIES, f"{family!r} is an address family")
        partial = self._kernel.network(partial=True)
        _check(partial.interfaces == first.interfaces, "a partial reading has the interfaces of a complete one")
        _check(partial.reachable == first.reachable, "a partial reading confirms the same default routes as a complete one")

    def check_events(self) -> None:
        sources = list(self._kernel.events())
        try:
            for source in sources:
                _check(source.fileno() >= 0, "an open event source has a descriptor")
                source.drain()
                _check(not source.drain(), "drain() is false when nothing has happened since the last one")
                _check(source.overruns >= 0, "overruns are counted from 0")
        finally:
            for source in sources:
                source.close()
        for source in sources:
            _check(source.fileno() == -1, "a closed event source has the descriptor -1")
            source.close()

    def check_suspended(self) -> None:
        first = self._kernel.suspended()
        _check(first >= 0, "suspended() is not negative")
        _check(abs(self._kernel.suspended() - first) < 0.5, "suspended() grows only while the machine sleeps")

    def check_binding(self, interface: Interface) -> None:
        for family, kind in self._kinds(interface):
            with self._socket(family, kind) as sock:
                _check(self._kernel.bound(sock) is None, "a fresh socket is unbound")
                self._kernel.bind(sock, interface)
                _check(self._kernel.bound(sock) == interface.index, f"bind() binds a {_name(family, kind)} to {interface}")
        closed = self._make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        closed.close()
        _refuses(lambda: self._kernel.bind(closed, interface), f"bind() of a closed socket to {interface} raises BindFailed")

    def check_rebinding(self, interface: Interface) -> None:
        for family, kind in self._kinds(interface):
            if kind is not socket.SOCK_DGRAM:
                continue
            with self._socket(family, kind) as sock:
                self._kernel.rebind(sock, interface)
                _check(self._kernel.bound(sock) == interface.index, f"rebind() binds a {_name(family, kind)} to {interface}")
                descriptor, name = sock.fileno(), sock.getsockname()
                self._kernel.rebind(sock, interface)
                _check(self._kernel.bound(sock) == interface.index, "rebind() to the same interface is harmless")
                _check(sock.fileno() == descriptor, "rebind() keeps the descriptor")
                _check(sock.getsockname()[1] == name[1], "rebind() keeps the port")
                self._kernel.unbind(sock)
                _check(self._kernel.bound(sock) is None, f"unbind() unbinds a socket from {interface}")

    def check_routes(self, interface: Interface) -> None:
        network = self._kernel.network()
        for address in interface.addresses:
            if not address.usable:
                continue
            neighbour = _neighbour(address.address, address.prefix_length)
            if neighbour is None or any(neighbour == a.address for i in network.interfaces.values() for a in i.addresses):
                continue
            answer = self._kernel.has_route(interface, neighbour)
            _check(isinstance(answer, bool), "has_route() is true or false")
            answers = self._kernel.lookups(network)(neighbour)
            _check(answers == self._kernel.lookups(network)(neighbour), "the same lookup has the same answer")
            lookup = answers.by_interface.get(interface.index)
            if lookup is not None and lookup.route.kind is RouteKind.UNICAST and lookup.needs_source is None:
                _check(answer, f"has_route() is true if lookups() finds a route by {interface}")
            hint = self._kernel.route_hint(interface, neighbour)
            _check(isinstance(hint, str) and bool(hint), "route_hint() returns a sentence")

    def check_refusals(self) -> None:
        nobody = Interface("nobody0", _NOBODY)
        for family in FAMILIES:
            with self._socket(family, socket.SOCK_DGRAM) as sock:
                error = _refuses(lambda s=sock: self._kernel.bind(s, nobody), "bind() to a missing interface raises BindFailed")  # type: ignore[misc]
                _check(error.interface == "nobody0", "BindFailed names the interface")
                _check(error.call is not None, "BindFailed names the call")
                _check(error.errno is not None, "BindFailed has an errno")
                _check(self._kernel.bound(sock) is None, "a socket that could not be bound is unbound")

    def check_questions_about_sockets(self) -> None:
        for family in FAMILIES:
            with self._socket(family, socket.SOCK_STREAM) as sock:
                self._kernel.activity(sock)
                _check(self._kernel.unsent(sock) >= 0, "unsent() is not negative")
                _check(not self._kernel.needs_lingering_close(sock), "a socket that is not connected needs no lingering close")
                _check(not self._kernel.has_finished(sock), "a socket that is not connected has not finished")
            _check(self._kernel.unsent(sock) == 0, "unsent() of a closed socket is 0")
            _check(not self._kernel.needs_lingering_close(sock), "a closed socket needs no lingering close")
            _check(not self._kernel.has_finished(sock), "a closed socket has not finished")
        for interface in self._kernel.network().interfaces.values():
            dropped = self._kernel.dropped(interface)
            _check(dropped is None or dropped >= 0, "dropped() is a count, or None if it is unknown")
        _check(self._kernel.dropped(Interface("nobody0", _NOBODY)) in (None, 0), "dropped() of a missing interface is unknown")

    def check_close(self) -> None:
        before = self._kernel.network()
        self._kernel.close()
        self._kernel.close()
        _check(self._kernel.network() == before, "the kernel can be used again after close()")
        self._kernel.close()

    def _kinds(self, interface: Interface) -> Iterator[tuple[socket.AddressFamily, socket.SocketKind]]:
        for family in FAMILIES:
            if interface.usable_addresses(family):
                yield family, socket.SOCK_STREAM
                yield family, socket.SOCK_DGRAM

    @contextlib.contextmanager
    def _socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> Iterator[socket.socket]:
        sock = self._make_socket(family, kind)
        try:
            yield sock
        finally:
            sock.close()


def _neighbour(address: IPAddress, prefix_length: int) -> IPAddress | None:
    """Another address on the same link; ``None`` if there is none."""
    if prefix_length >= address.max_prefixlen - 1:
        return None
    other = type(address)(int(address) ^ 1)
    assert family_of(other) == family_of(address)
    return other


def _name(family: socket.AddressFamily, kind: socket.SocketKind) -> str:
    return f"{family.name} {kind.name} socket"


def _refuses(call: Callable[[], object], promise: str) -> BindFailed:
    try:
        call()
    except BindFailed as error:
        return error
    raise AssertionError(f"broken promise: {promise}")


def _check(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"broken promise: {promise}")
