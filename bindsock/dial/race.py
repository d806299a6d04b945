"""One race over the addresses of one host."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import aiohappyeyeballs

from bindsock.dial.binding import bind_or_close
from bindsock.dial.followed_socket import FollowedSocket
from bindsock.dial.resolving import AddrInfo, SockAddr, address_of
from bindsock.errors import BindFailed, EgressMismatch
from bindsock.model.decision import Basis, Decision, Path, path_of
from bindsock.model.network import Interface, InterfaceKind, IPAddress
from bindsock.routing.effective import Decider
from bindsock.routing.multipath import multipath_obstacle

if TYPE_CHECKING:
    from bindsock.dial.dialer import Dialer

logger = logging.getLogger("bindsock")


_NO_DEVICE = frozenset({errno.ENODEV, errno.ENXIO})
_PERHAPS_NO_DEVICE = frozenset({errno.ENETUNREACH, errno.ENETDOWN})
"""What connect() says when the bound interface is gone: SO_BINDTOIFINDEX accepts any index (linux net/core/sock.c)."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket, and on what it rests."""

    sock: FollowedSocket
    address: IPAddress
    decision: Decision
    path: Path | None
    """``None`` where the socket is not bound: a local destination, or ``on_no_interface="unbound"``."""


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
                happy_eyeballs_delay=dialer.options.happy_eyeballs_delay,
                interleave=dialer.options.interleave,
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
            if self._dialer.farewell is not None and family == socket.AF_INET6:
                sock.say_farewell(self._dialer.farewell)
        except OSError as error:
            self._errors.append(error)
            raise
        self._sockets.append(sock)
        return sock

    def _multipath(self, family: int, address: IPAddress, decision: Decision) -> int | None:
        """The protocol of a multipath socket, if there is to be one: to a socket that is not bound the system could add subflows
        around the VPN, and to any into it."""
        dialer = self._dialer
        if not dialer.options.multipath or decision.interface is None:
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
                reason = multipath_obstacle(endpoints, dialer.watcher.refresh().network, decision.interface, address.version, pin)
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
            if interface is not None and self._is_gone(interface, error):
                error = BindFailed(
                    f"cannot connect to {sockaddr[0]} port {sockaddr[1]}: the interface is gone",
                    errno=error.errno,
                    interface=interface.name,
                    call="connect",
                )
            self._errors.append(error)
            raise error from None

    def _is_gone(self, interface: Interface, error: OSError) -> bool:
        """Whether a connect failed since the interface is no longer there, or is down.

        ``ENETUNREACH`` has two meanings: the socket's own device has no route any more, or a router beyond it said so by ICMP
        (linux net/ipv4/icmp.c, icmp_err_convert). The second is the destination's fault, and the plain error that asyncio raises.
        """
        if error.errno in _NO_DEVICE:
            return True
        if error.errno not in _PERHAPS_NO_DEVICE:
            return False
        now = self._dialer.watcher.refresh().network.interfaces.get(interface.index)
        return now is None or not now.up

    def verified(self, sock: FollowedSocket) -> Dialled:
        """The winner, once its local address is known not to be a tunnel's."""
        try:
            peer = sock.getpeername()
            info_key = next((k for k in self._decisions if k[:2] == peer[:2]), None)
            local = address_of(sock.getsockname())
        except OSError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended as soon as it was made") from error
        if info_key is None:  # a NAT in the kernel (a transparent proxy) can change what the peer seems to be
            info_key = next(iter(self._decisions))
        _, address, decision = self._decisions[info_key]
        interface = decision.interface
        if interface is None:
            return Dialled(sock, address, decision, None)
        network = self._dialer.watcher.latest.network
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
        if self._dialer.options.all_errors:
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
