"""Opens a datagram endpoint over the effective interface, with the parameters of ``loop.create_datagram_endpoint``.

The order of the calls matters. A socket is bound to its interface before it has a local address or a peer. So the system chooses
the source address and the route of that interface, and no datagram leaves by another one.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from bindsock.datagram.mover import DatagramMover, Endpoint
from bindsock.datagram.plan import NOWHERE, UNBOUND, Placement, Requirement
from bindsock.datagram.socket_spec import SocketSpec
from bindsock.datagram.transport import DatagramTransport
from bindsock.dial import nat64
from bindsock.dial.binding import MOST_DOUBTS, MakeshiftSource, check_route, check_source
from bindsock.dial.chosen import has_chosen_multicast, is_left_alone, own_address, uplink_of
from bindsock.dial.resolving import Resolve, SockAddr, address_of, resolve
from bindsock.dial.unmanaged import families_of, peer_of
from bindsock.errors import NoEffectiveInterface
from bindsock.model.decision import path_on
from bindsock.model.network import FAMILIES, LIMITED_BROADCAST, Network, family_of, is_loopback, unmapped
from bindsock.netmon.no_interface import no_effective_interface, until_changed

if TYPE_CHECKING:
    import asyncio

    from bindsock.dial.nat64 import FindPrefixes
    from bindsock.model.network import Interface, Network
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

__all__ = ["DatagramTransport", "open_datagram"]

_logger = logging.getLogger("bindsock")
D = TypeVar("D", bound="asyncio.DatagramProtocol")

OVERLAP = 2.0
"""Seconds for which an old socket still receives after a better path was taken."""


async def open_datagram(
    watcher: Watcher,
    protocol_factory: Callable[[], D],
    local_addr: tuple[str, int] | None = None,
    remote_addr: tuple[str, int] | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: socket.socket | None = None,
    interface: str | None = None,
    overlap: float = OVERLAP,
    resolve: Resolve = resolve,
    find_nat64: FindPrefixes | None = None,
) -> tuple[DatagramTransport, D]:
    """``loop.create_datagram_endpoint``, over the effective interface.

    An endpoint with a loopback destination or local address is not bound. A ``sock=`` is left alone if the program has chosen its
    interface (see :mod:`bindsock.dial.chosen`); otherwise it is bound now and later only moved in place.

    :param interface: the name of the only interface to use; the watcher's unless given
    :param overlap: seconds for which an old socket still receives after a better path was taken
    :param resolve: resolves names to addresses
    :param find_nat64: asks for the NAT64 prefixes of a network without IPv4
    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the remote address leaves by the interface
    :raises BindFailed: the system refused to bind, or the local address does not belong to an uplink
    :raises ValueError: the arguments contradict each other
    """
    runtime = watcher.runtime
    opening = _Opening(watcher, interface, overlap)
    with watcher.hold():
        if sock is not None:
            modifiers: dict[str, object] = {
                "local_addr": local_addr,
                "remote_addr": remote_addr,
                "family": family,
                "proto": proto,
                "flags": flags,
                "reuse_port": reuse_port,
                "allow_broadcast": allow_broadcast,
            }
            _check_given(sock, modifiers)
            opened = await opening.adopt(sock)
        else:
            pairs = await _address_pairs(local_addr, remote_addr, family, proto, flags, resolve)
            specs = [
                SocketSpec(
                    f if isinstance(f, socket.AddressFamily) else socket.AddressFamily(f),
                    p,
                    local,
                    remote,
                    bool(reuse_port),
                    bool(allow_broadcast),
                )
                for (f, p), (local, remote) in pairs
            ]

            async def translated(decider: Decider) -> list[SocketSpec]:
                """The specs for the peer's addresses behind a translator, if the network has no other way to reach it."""
                if remote_addr is None or local_addr is not None:
                    return []
                infos = [(spec.family, socket.SOCK_DGRAM, spec.proto, "", spec.remote) for spec in specs if spec.remote]
                found = await nat64.translated(remote_addr[0], family, infos, decider, find_nat64)
                return [dataclasses.replace(specs[0], family=socket.AF_INET6, remote=sockaddr) for _, _, _, _, sockaddr in found]

            opened = await opening.open(specs, translated)
        mover, decider, remote = opened
        try:
            protocol = protocol_factory()
            waiter = runtime.create_future()
            transport = DatagramTransport(
                runtime, protocol, mover, watcher.statistics, remote=remote, strict=sock is None, waiter=waiter
            )
        except BaseException:
            mover.close()
            raise
        mover.start(transport, decider)
        try:
            await waiter
        except BaseException:
            transport.abort()
            raise
    return transport, protocol


def _check_given(sock: socket.socket, modifiers: dict[str, object]) -> None:
    if sock.type != socket.SOCK_DGRAM:
        raise ValueError(f"A UDP Socket was expected, got {sock!r}")
    if sock.family not in FAMILIES:
        raise ValueError(f"only IPv4 and IPv6 sockets can be bound to an interface, got {sock!r}")
    problems = ", ".join(f"{name}={value}" for name, value in modifiers.items() if value)
    if problems:
        raise ValueError(f"socket modifier keyword arguments can not be used when sock is specified. ({problems})")


_Pair = tuple[tuple[int, int], tuple[SockAddr | None, SockAddr | None]]


async def _address_pairs(
    local_addr: tuple[str, int] | None,
    remote_addr: tuple[str, int] | None,
    family: int,
    proto: int,
    flags: int,
    resolve: Resolve,
) -> list[_Pair]:
    """The (family, protocol) pairs for which both addresses are known, as in asyncio."""
    if family not in (socket.AF_UNSPEC, *FAMILIES):
        raise ValueError(f"only AF_INET and AF_INET6 endpoints can be bound to an interface, not {family!r}")
    if not (local_addr or remote_addr):
        if family == socket.AF_UNSPEC:
            raise ValueError("unexpected address family")
        return [((family, proto), (None, None))]
    remotes = await _resolved(remote_addr, family, proto, flags, resolve) if remote_addr is not None else {}
    if local_addr is None:
        return [(key, (None, remote)) for key, remote in remotes.items()]
    locals_ = await _resolved(local_addr, family, proto, flags, resolve)
    keys = dict.fromkeys((*locals_, *remotes))
    pairs: list[_Pair] = [
        (key, (locals_.get(key), remotes.get(key))) for key in keys if key in locals_ and (remote_addr is None or key in remotes)
    ]
    if not pairs:
        raise ValueError("can not get address information")
    return pairs


async def _resolved(
    address: tuple[str, int], family: int, proto: int, flags: int, resolve: Resolve
) -> dict[tuple[int, int], SockAddr]:
    if not (isinstance(address, tuple) and len(address) == 2):
        raise TypeError("2-tuple is expected")
    infos = await resolve(address[0], address[1], family=family, type=socket.SOCK_DGRAM, proto=proto, flags=flags)
    if not infos:
        raise OSError("getaddrinfo() returned empty list")
    resolved: dict[tuple[int, int], SockAddr] = {}
    for info in infos:
        # asyncio takes the last address of each kind; this takes the first, which the resolver prefers.
        resolved.setdefault((info[0], info[2]), info[4])
    return resolved


_Opened = tuple[DatagramMover, "Decider", SockAddr | None]


class _Opening:
    """Finds the placement of a new endpoint, and waits for one if the preferences say so."""

    def __init__(self, watcher: Watcher, pin: str | None, overlap: float) -> None:
        self._watcher = watcher
        self._kernel = watcher.kernel
        self._pin = pin
        self._overlap = overlap

    async def open(self, specs: list[SocketSpec], otherwise: Callable[[Decider], Awaitable[list[SocketSpec]]]) -> _Opened:
        """Open the first possible endpoint.

        :param otherwise: returns other specs to try if there is no interface for any of the first
        """
        candidates = specs
        doubts = 0
        while True:
            decider = self._watcher.refresh().with_pin(self._pin)
            errors: list[OSError] = []
            for spec in candidates:
                try:
                    return self._make(spec, decider, doubting=doubts < MOST_DOUBTS), decider, spec.remote
                except OSError as error:
                    errors.append(error)
            if any(isinstance(error, MakeshiftSource) for error in errors):
                doubts += 1
                continue
            nowhere = [e for e in errors if isinstance(e, NoEffectiveInterface)]
            if len(nowhere) == len(errors):
                if candidates is specs and (found := await otherwise(decider)):
                    candidates = found
                    continue
                if decider.preferences.on_no_interface == "wait":
                    await until_changed(self._watcher)
                    candidates = specs
                    continue
            raise next((e for e in errors if e not in nowhere), errors[0])

    async def adopt(self, sock: socket.socket) -> _Opened:
        """Take over a socket that the program made."""
        try:
            sock.setblocking(False)
            while True:
                decider = self._watcher.refresh().with_pin(self._pin)
                try:
                    mover = self._adopted(sock, decider)
                except NoEffectiveInterface:
                    if decider.preferences.on_no_interface != "wait":
                        raise
                    await until_changed(self._watcher)
                    continue
                return mover, decider, mover.peer
        except BaseException:
            sock.close()
            raise

    def _make(self, spec: SocketSpec, decider: Decider, *, doubting: bool) -> DatagramMover:
        """
        :param doubting: whether to check the source address that the system has chosen
        """
        sock = spec.make()
        try:
            requirement = self._requirement(sock, spec)
            if requirement is None:
                placement = UNBOUND
            else:
                placement = self._first_placement(requirement, decider)
                if placement.unbound and requirement.address is not None:
                    requirement = None
            interface = decider.network.interfaces[placement.path.index] if placement.path is not None else None
            if interface is not None and requirement is not None:
                check_route(self._kernel, interface, requirement.destination)
            own = placement.path.source if placement.path is not None and spec.address is None else None
            spec.bind_and_connect(sock, self._kernel, interface, own=own)
            mover = self._mover(sock, requirement, placement, spec)
            if doubting:
                mover.in_place.check_source(sock, mover.peer, placement, decider.network)
        except BaseException:
            sock.close()
            raise
        return mover

    def _requirement(self, sock: socket.socket, spec: SocketSpec) -> Requirement | None:
        """The requirement that decides the placement of the endpoint; ``None`` if its datagrams never leave this host."""
        local = spec.address
        if local is not None and local.is_loopback:
            return None
        if spec.remote is not None:
            remote = unmapped(address_of(spec.remote))
            if is_loopback(remote) or not int(remote):
                return None
            if remote == LIMITED_BROADCAST:
                return Requirement((socket.AF_INET,), local)
            return Requirement((remote,), local)
        if local is not None:
            return Requirement((family_of(local),), local)
        return Requirement(families_of(sock))

    def _first_placement(self, requirement: Requirement, decider: Decider) -> Placement:
        placement = requirement.first_placement(decider)
        if uplink_of(decider, requirement.address) is not None and not placement.unbound:
            placement = requirement.placement(decider)
        if placement == NOWHERE:
            what = str(requirement.destination or "the default route")
            raise no_effective_interface(what, requirement.decisions(decider), self._kernel, decider.network)
        return placement

    def _mover(
        self,
        sock: socket.socket,
        requirement: Requirement | None,
        placement: Placement,
        spec: SocketSpec | None,
        *,
        own_socket: bool = False,
    ) -> DatagramMover:
        endpoint = Endpoint(requirement, spec, own_socket, self._pin, self._overlap)
        return DatagramMover(self._watcher, endpoint, sock, placement)

    def _adopted(self, sock: socket.socket, decider: Decider) -> DatagramMover:
        """Bind a socket that the program made, unless it must be left alone."""
        index = self._kernel.bound(sock)
        if index is not None:
            return self._mover(sock, None, _bound_placement(index, sock, decider.network), None)
        if is_left_alone(self._kernel, sock):
            return self._mover(sock, None, UNBOUND, None)
        local = unmapped(address_of(sock.getsockname()))
        peer = peer_of(sock)
        if peer is None:
            if local.is_unspecified and has_chosen_multicast(self._kernel, sock):
                # Multicasts leave as the program has chosen; other datagrams are sent by ways.
                return self._mover(
                    sock, None, UNBOUND, SocketSpec(socket.AddressFamily(sock.family), sock.proto), own_socket=True
                )
            requirement = self._with_address(sock, decider)
        else:
            remote = unmapped(address_of(peer))
            left = remote.is_loopback or local.is_loopback
            left |= remote.is_multicast and has_chosen_multicast(self._kernel, sock)
            requirement = None if left else Requirement((remote,))
        if requirement is None:
            return self._mover(sock, None, UNBOUND, None)
        placement = self._first_placement(requirement, decider)
        spec = SocketSpec(socket.AddressFamily(sock.family), sock.proto) if peer is None else None
        if placement.path is None:
            return self._mover(sock, requirement, placement, spec, own_socket=True)
        interface = decider.network.interfaces[placement.path.index]
        check_route(self._kernel, interface, requirement.destination)
        self._rebind(sock, interface, peer, decider.network)
        local = unmapped(address_of(sock.getsockname()))
        if peer is not None and not interface.has(local):
            # The program had bound it to that address before it connected it. This shows only now, after rebind() reconnected it.
            uplink = uplink_of(decider, local)
            if uplink is None:
                _logger.info("leaving a socket alone that the program has bound to %s", local)
                self._kernel.unbind(sock)
                return self._mover(sock, None, UNBOUND, None)
            requirement = Requirement(requirement.targets, local)
            placement = requirement.placement(decider)
            self._kernel.rebind(sock, uplink, peer=peer)
        return self._mover(sock, requirement, placement, spec, own_socket=True)

    def _rebind(self, sock: socket.socket, interface: Interface, peer: SockAddr | None, network: Network) -> None:
        """Bind the program's socket, again if its source address is makeshift. The program may have chosen that address, too."""
        for _ in range(MOST_DOUBTS):
            self._kernel.rebind(sock, interface, peer=peer)
            if peer is None:
                return
            try:
                local = unmapped(address_of(sock.getsockname()))
                check_source(self._kernel, interface, network, unmapped(address_of(peer)), local)
            except MakeshiftSource:
                continue
            return

    def _with_address(self, sock: socket.socket, decider: Decider) -> Requirement | None:
        """The requirement of a socket without a peer; ``None`` if its local address does not belong to an uplink."""
        own = own_address(sock)
        if own is None:
            return Requirement(families_of(sock))
        return Requirement((family_of(own),), own) if uplink_of(decider, own) is not None else None


def _bound_placement(index: int, sock: socket.socket, network: Network) -> Placement:
    """The placement of a socket that the program has bound to an interface."""
    interface = network.interfaces.get(index)
    return UNBOUND if interface is None else Placement(path_on(interface, socket.AddressFamily(sock.family)))
