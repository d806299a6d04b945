"""A stream socket that is connected beneath the tunnels, or a clear error.

Theory of operation. The names are resolved; each address gets its own decision; addresses without an interface are left out
before the race begins, and ``on_no_interface`` applies only when none is left. aiohappyeyeballs runs the race over sockets that
are made and bound here, so that uvloop, which connects inside libuv, has happy eyeballs as well. It flattens the errors of
several attempts into one string; therefore each attempt's own error is kept here and raised.

A dial whose path changes while it runs would wait for an answer that cannot come: it is started over, at most
``MAX_REDIALS`` times, inside the same await.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import aiohappyeyeballs

from bindsock.effective import Decider
from bindsock.errors import BindFailed, EgressMismatch, NoRoute
from bindsock.network import Basis, Cause, Decision, Interface, InterfaceKind, IPAddress, Path, path_of
from bindsock.resolving import AddrInfo, Resolve, SockAddr, address_of
from bindsock.transports.multipath import obstacle
from bindsock.transports.sockets import FollowedSocket
from bindsock.undecided import no_effective_interface, until_changed

if TYPE_CHECKING:
    from types import TracebackType

    from bindsock.kernel import Kernel
    from bindsock.watcher import Watcher

logger = logging.getLogger("bindsock")

MAX_REDIALS = 5
_BIND_FAILURES = (errno.ENODEV, errno.ENXIO, errno.ENETUNREACH)
"""What connect() says when the bound interface is gone: SO_BINDTOIFINDEX accepts any index (linux net/core/sock.c)."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket, and on what it rests."""

    sock: FollowedSocket
    address: IPAddress
    decision: Decision
    path: Path | None
    """``None`` where the socket is not bound: a local destination, or ``on_no_interface="unbound"``."""


@dataclass(frozen=True, slots=True)
class Dialer:
    """All that a dial needs to be done, and done again."""

    watcher: Watcher
    resolve: Resolve
    host: str | None
    port: int | str | None
    family: int = 0
    proto: int = 0
    flags: int = 0
    local_addr: tuple[str, int] | None = None
    happy_eyeballs_delay: float | None = None
    interleave: int | None = None
    all_errors: bool = False
    interface: str | None = None
    on_no_interface: Literal["error", "wait", "unbound"] = "error"
    multipath: bool = False
    """Ask for multipath; where there is none, or the peer does not speak it, the connection is plain TCP."""
    complaints: set[str] = field(default_factory=set)
    """Why there was none, so that each reason is logged once."""
    prepare: Callable[[socket.socket], None] | None = None
    """Options to be set on each socket before it connects."""

    async def dial(self) -> Dialled:
        """Connect.

        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises NoRoute: the only attempt failed because no route leaves by its interface
        :raises BindFailed: the only attempt failed at binding the socket
        :raises EgressMismatch: the system chose a tunnel's address although the socket is bound beneath it
        :raises OSError: names or connections failed
        :raises ExceptionGroup: several attempts failed and ``all_errors`` is set
        """
        with self.watcher.hold():
            for redials in range(MAX_REDIALS + 1):
                infos = await self.resolve(
                    self.host, self.port, family=self.family, type=socket.SOCK_STREAM, proto=self.proto, flags=self.flags
                )
                local_infos = None
                if self.local_addr is not None:
                    host, port = self.local_addr
                    local_infos = await self.resolve(
                        host, port, family=self.family, type=socket.SOCK_STREAM, proto=self.proto, flags=self.flags
                    )
                decisions = await self.decisions(infos)
                race = Race(self, decisions, local_infos)
                if redials == MAX_REDIALS:
                    return await race.run()
                async with _InterruptedByChange(self.watcher, race):
                    return await race.run()
                self.watcher.statistics.redialled += 1
                logger.info("the path to %s changed while it was dialled, dialling again", self.host)
        raise AssertionError("the last dial returns or raises")

    async def decisions(self, infos: Sequence[AddrInfo]) -> dict[SockAddr, tuple[AddrInfo, IPAddress, Decision]]:
        """The decision for each address that may be dialled, in the resolver's order."""
        while True:
            decider = self.watcher.decider(interface=self.interface)
            chosen = {}
            refused = []
            for info in infos:
                address = address_of(info[4])
                decision = decider.decide(address)
                if decision.interface is not None or decision.unbound or self.on_no_interface == "unbound":
                    chosen[info[4]] = (info, address, decision)
                else:
                    refused.append(decision)
            if chosen:
                return chosen
            if self.on_no_interface == "error":
                raise no_effective_interface(str(self.host), tuple(refused), self.watcher.kernel, decider.network)
            await until_changed(self.watcher)


def decide_and_bind(kernel: Kernel, decider: Decider, sock: socket.socket, destination: IPAddress | None) -> Decision:
    """Bind a fresh socket as decided for its destination, or for its family's default.

    Whatever fails, the socket is closed: it never sends unbound.

    :raises NoEffectiveInterface: no interface may be used
    :raises NoRoute: no route to the destination leaves by the interface
    :raises BindFailed: the system refused
    """
    decision = decider.decide(destination if destination is not None else socket.AddressFamily(sock.family))
    if decision.interface is None and not decision.unbound and decider.preferences.on_no_interface != "unbound":
        sock.close()
        raise no_effective_interface(str(destination or "the default route"), (decision,), kernel, decider.network)
    bind_or_close(kernel, sock, decision, destination)
    return decision


def bind_or_close(kernel: Kernel, sock: socket.socket, decision: Decision, destination: IPAddress | None) -> Interface | None:
    """Bind a fresh socket as decided, after making sure that a route leaves by the interface.

    Whatever fails, the socket is closed: it never sends unbound.

    :return: the interface, ``None`` if the decision is not to bind
    """
    interface = decision.interface
    if interface is None:
        return None
    try:
        kernel.bind(sock, interface)
        if destination is not None and not kernel.has_route(interface, destination):
            raise NoRoute(kernel.cure(interface, destination), interface=interface.name)
    except BaseException:
        sock.close()
        raise
    return interface


def broken(old: Path | None, new: Path | None) -> bool:
    """Whether what was begun on the old path had better begin again on the new one.

    Another address beside the old ones harms nobody; and while there is no new path at all there is nothing to begin on.
    """
    if new is None or old == new:
        return False
    return old is None or old.index != new.index or old.gateway != new.gateway or not old.addresses <= new.addresses


class Race:
    """One race over the addresses of one host."""

    def __init__(
        self,
        dialer: Dialer,
        decisions: dict[SockAddr, tuple[AddrInfo, IPAddress, Decision]],
        local_infos: Sequence[AddrInfo] | None,
    ) -> None:
        self._dialer = dialer
        self._decisions = decisions
        self._local_infos = local_infos
        self._sockets: list[FollowedSocket] = []
        self._errors: list[OSError] = []

    def path_changed(self, decider: Decider) -> bool:
        """Whether any address that is being dialled would be dialled differently now."""
        return any(broken(path_of(decision), decider.path(address)) for _, address, decision in self._decisions.values())

    async def run(self) -> Dialled:
        dialer, loop = self._dialer, asyncio.get_running_loop()
        infos = [info for info, _, _ in self._decisions.values()]
        winner: socket.socket | None = None
        try:
            if len(infos) == 1 and self._local_infos is None:
                return self.verified(winner := await self._alone(loop, infos[0]))
            winner = await aiohappyeyeballs.start_connection(
                infos,
                local_addr_infos=self._local_infos,
                happy_eyeballs_delay=dialer.happy_eyeballs_delay,
                interleave=dialer.interleave,
                loop=cast(asyncio.AbstractEventLoop, _Connector(loop, self)),
                socket_factory=self.make,
            )
            return self.verified(cast(FollowedSocket, winner))
        except EgressMismatch:
            winner = None
            raise
        except (OSError, RuntimeError) as error:
            winner = None
            self.raise_errors(error)
            raise
        finally:
            self.close_all_but(winner)

    async def _alone(self, loop: asyncio.AbstractEventLoop, info: AddrInfo) -> FollowedSocket:
        """A race of one."""
        sock = self.make(info)
        await self.connect(functools.partial(_connect, loop), sock, info[4])
        return sock

    def close_all_but(self, winner: socket.socket | None) -> None:
        """The race is over."""
        for sock in self._sockets:
            if sock is not winner:
                sock.close()
        self._errors.clear()

    def make(self, info: AddrInfo) -> FollowedSocket:
        """A bound socket for one attempt."""
        family, type_, proto, _, sockaddr = info
        _, address, decision = self._decisions[sockaddr]
        try:
            self._check_local_address(decision)
            multipath = self._multipath(family, address, decision)
            sock = FollowedSocket(family, type_, multipath or proto)
            try:
                if multipath is not None:
                    # asyncio does it where the protocol is TCP's (Lib/asyncio/base_events.py, _set_nodelay).
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                if self._dialer.prepare is not None:
                    self._dialer.prepare(sock)
            except BaseException:
                sock.close()
                raise
            bind_or_close(self._dialer.watcher.kernel, sock, decision, address)
        except OSError as error:
            self._errors.append(error)
            raise
        self._sockets.append(sock)
        return sock

    def _multipath(self, family: int, address: IPAddress, decision: Decision) -> int | None:
        """The protocol of a multipath socket, if there is to be one: to a socket that is not bound the system could add subflows
        around the VPN, and to any into it."""
        dialer = self._dialer
        if not dialer.multipath or decision.interface is None:
            return None
        paths = dialer.watcher.kernel.multipath
        protocol = paths.protocol(family) if paths is not None else None
        if paths is None or protocol is None:
            reason: str | None = "this system has no multipath TCP, or it is switched off"
        else:
            try:
                endpoints = paths.endpoints()
            except OSError as error:
                reason = f"the system does not say by which addresses it would add subflows: {error}"
            else:
                pin = decision.interface.name if decision.basis is Basis.PINNED else None
                reason = obstacle(endpoints, dialer.watcher.decider().network, decision.interface, address.version, pin)
        if reason is None:
            return protocol
        if reason not in dialer.complaints:
            dialer.complaints.add(reason)
            logger.warning("connections that are to be multipath ones are plain TCP: %s", reason)
        return None

    def _check_local_address(self, decision: Decision) -> None:
        if self._local_infos is None or decision.interface is None:
            return
        wanted = [address_of(info[4]) for info in self._local_infos]
        own = {a.address for a in decision.interface.addresses}
        if not any(a.is_unspecified or a in own for a in wanted):
            raise BindFailed(
                f"the local address {', '.join(map(str, wanted))} does not belong to {decision.interface.name}, "
                f"the effective interface for {decision.target}",
                errno=errno.EADDRNOTAVAIL,
                interface=decision.interface.name,
                call="bind",
            )

    async def connect(
        self, connect: Callable[[socket.socket, Any], Awaitable[None]], sock: socket.socket, sockaddr: SockAddr
    ) -> None:
        """Connect one of the sockets, and keep the error.

        :param connect: what does it: ``loop.sock_connect`` or the like
        """
        interface = self._decisions[sockaddr][2].interface
        try:
            await connect(sock, sockaddr)
            if not _is_plain(sock) and self._dialer.prepare is not None:
                # It may be plain TCP after all, to which more can be said.
                self._dialer.prepare(sock)
        except OSError as error:
            if interface is not None and error.errno in _BIND_FAILURES:
                error = BindFailed(
                    f"cannot connect to {sockaddr[0]} port {sockaddr[1]}",
                    errno=error.errno,
                    interface=interface.name,
                    call="connect",
                )
            self._errors.append(error)
            raise error from None

    def verified(self, sock: FollowedSocket) -> Dialled:
        """The winner, once its local address is known not to be a tunnel's."""
        try:
            peer = sock.getpeername()
            info_key = next((k for k in self._decisions if k[:2] == peer[:2]), None)
            local = address_of(sock.getsockname())
        except OSError as error:
            raise BindFailed("the connection ended as soon as it was made", errno=error.errno, call="getpeername") from error
        if info_key is None:  # a NAT in the kernel (a transparent proxy) can change what the peer seems to be
            info_key = next(iter(self._decisions))
        _, address, decision = self._decisions[info_key]
        interface = decision.interface
        if interface is None:
            return Dialled(sock, address, decision, None)
        network = self._dialer.watcher.decider(fresh=False).network
        current = network.interfaces.get(interface.index)
        owner = current if current is not None and current.has(local) else network.owner_of(local)
        if owner is not None and owner.index != interface.index:
            if owner.kind is InterfaceKind.TUNNEL and decision.basis is not Basis.PINNED:
                raise EgressMismatch(
                    f"the socket for {address} is bound to {interface.name}, but the system gave it {local} of {owner.name}",
                    interface=interface.name,
                    call="getsockname",
                )
            logger.info("the connection to %s is bound to %s but has the address %s of %s", address, interface, local, owner)
        return Dialled(sock, address, decision, path_of(decision))

    def raise_errors(self, error: OSError | RuntimeError) -> None:
        """Raise the attempts' own errors as ``loop.create_connection`` would."""
        errors = self._errors or [cast(OSError, error)]
        if self._dialer.all_errors:
            raise ExceptionGroup("create_connection failed", list(errors)) from None
        if len({str(e) for e in errors}) == 1:
            raise errors[0]
        codes = {e.errno for e in errors}
        code = codes.pop() if len(codes) == 1 else None
        combined = OSError(code, f"Multiple exceptions: {', '.join(map(str, errors))}")
        combined.__cause__ = ExceptionGroup("the attempts", list(errors))
        raise combined


class _Connector:
    """What aiohappyeyeballs asks of a loop, with each attempt's error kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop, race: Race) -> None:
        self._loop = loop
        self._race = race

    async def sock_connect(self, sock: socket.socket, address: SockAddr) -> None:
        await self._race.connect(functools.partial(_connect, self._loop), sock, address)


def _is_plain(sock: socket.socket) -> bool:
    """Whether it was made for TCP and nothing else."""
    return sock.proto in (0, socket.IPPROTO_TCP)


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: SockAddr) -> None:
    """As ``loop.sock_connect()``, which asks the resolver for addresses of the socket's protocol: it knows none for multipath."""
    try:
        sock.connect(address)
    except (BlockingIOError, InterruptedError):
        pass
    else:
        return
    writable, descriptor = loop.create_future(), sock.fileno()

    def wake() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(descriptor, wake)
    try:
        await writable
    finally:
        loop.remove_writer(descriptor)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, f"Connect call failed {address}")


class _InterruptedByChange:
    """Ends its block early, without an error, when the race's own path changes."""

    def __init__(self, watcher: Watcher, race: Race) -> None:
        self._watcher = watcher
        self._race = race
        self._scope = asyncio.timeout(None)
        self._interrupted = False

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._watcher.follow(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._watcher.unfollow(self)
        try:
            await self._scope.__aexit__(kind, exc, trace)
        except TimeoutError:
            return True
        # It may just have come to its own end.
        return self._interrupted and isinstance(exc, TimeoutError)

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        if not self._interrupted and self._race.path_changed(decider):
            self._interrupted = True
            self._scope.reschedule(asyncio.get_running_loop().time())
