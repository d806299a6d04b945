"""The dial of :mod:`bindsock.dial.dialer` on trio: the same decisions, sockets and errors, another race."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import trio

from bindsock.dial.dialer import MAX_REDIALS, Dialer
from bindsock.dial.race import Race
from bindsock.dial.resolving import AddrInfo, numeric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bindsock.dial.followed_socket import FollowedSocket
    from bindsock.dial.race import Dialled
    from bindsock.model.change import Cause
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

logger = logging.getLogger("bindsock")


async def resolve(
    host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[AddrInfo]:
    """The system's resolver, in a thread as trio has it, unless the host is numeric.

    :raises OSError: the name cannot be resolved
    """
    info = numeric(host, port, family, type, proto)
    if info is not None:
        return [info]
    infos = await trio.socket.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
    return [cast("AddrInfo", i) for i in infos]


async def dial(dialer: Dialer) -> Dialled:
    """Connect, as :meth:`bindsock.dial.dialer.Dialer.dial` does."""
    watcher = dialer.watcher
    with watcher.hold():
        for redials in range(MAX_REDIALS + 1):
            infos = await dialer.resolved(dialer.host, dialer.port)
            local_addr = dialer.options.local_addr
            local_infos = await dialer.resolved(*local_addr) if local_addr is not None else None
            race = TrioRace(dialer, await dialer.decisions(infos), local_infos)
            with _interrupted_by_change(watcher, race, last=redials == MAX_REDIALS):
                return await race.run()
            watcher.statistics.redialled += 1
            logger.info("the path to %s changed while it was dialled, dialling again", dialer.host)
    raise AssertionError("the last dial is never interrupted")


class TrioRace(Race):
    """Happy eyeballs (RFC 8305 section 5): an attempt begins when the one before has failed, or has taken too long."""

    async def run(self) -> Dialled:
        winner: FollowedSocket | None = None

        async def attempt(info: AddrInfo, failed: trio.Event) -> None:
            nonlocal winner
            try:
                sock = self.make(info)
                self._bind_local(sock)
                await self.connect(_connect, sock, info[4])
            except OSError:
                failed.set()
                return
            if winner is None:
                winner = sock
            nursery.cancel_scope.cancel()

        delay = self._dialer.options.happy_eyeballs_delay
        try:
            async with trio.open_nursery() as nursery:
                for info in _interleaved([info for info, _, _ in self._decisions.values()]):
                    failed = trio.Event()
                    nursery.start_soon(attempt, info, failed)
                    with trio.move_on_after(delay if delay is not None else float("inf")):
                        await failed.wait()
            if winner is None:
                self.raise_errors(OSError("there was no address to connect to"))
                raise AssertionError
            dialled = self.verified(winner)
        except BaseException:
            self.close_all_but(None)
            raise
        self.close_all_but(winner)
        return dialled

    def _bind_local(self, sock: socket.socket) -> None:
        if self._local_infos is None:
            return
        try:
            info = next((i for i in self._local_infos if i[0] == sock.family), None)
            if info is None:
                raise OSError(errno.EAFNOSUPPORT, "the local address is not of the peer's family")
            sock.bind(info[4])
        except OSError as error:
            self._errors.append(error)
            raise


def _interleaved(infos: Sequence[AddrInfo]) -> list[AddrInfo]:
    """The families take turns, in the resolver's order within each (RFC 8305 section 4)."""
    first = [i for i in infos if i[0] == infos[0][0]] if infos else []
    second = [i for i in infos if i[0] != infos[0][0]]
    result = []
    for position in range(max(len(first), len(second))):
        result += first[position : position + 1] + second[position : position + 1]
    return result


async def _connect(sock: socket.socket, address: Any) -> None:
    """``loop.sock_connect`` on trio. trio's own sockets do not take a subclass of ``socket.socket``."""
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    else:
        await trio.lowlevel.checkpoint()
        return
    try:
        await trio.lowlevel.wait_writable(sock)
    except BaseException:
        # It would go on connecting.
        trio.lowlevel.notify_closing(sock)
        sock.close()
        raise
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code != 0:
        raise OSError(code, f"{os.strerror(code)}: {address[0]} port {address[1]}")


@contextmanager
def _interrupted_by_change(watcher: Watcher, race: Race, *, last: bool) -> Iterator[None]:
    """Leave the block early, without an error, when the race's own path changes."""
    if last:
        yield
        return
    interrupter = _Interrupter(race)
    watcher.follow(interrupter)
    try:
        with interrupter.scope:
            yield
    finally:
        watcher.unfollow(interrupter)


class _Interrupter:
    def __init__(self, race: Race) -> None:
        self._race = race
        self.scope = trio.CancelScope()

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        if self._race.path_changed(decider):
            self.scope.cancel()
