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
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bindsock.dial.race import Dialled, Race
from bindsock.dial.resolving import AddrInfo, Resolve, SockAddr, address_of
from bindsock.model.change import Cause
from bindsock.model.decision import Decision
from bindsock.model.network import IPAddress
from bindsock.netmon.no_interface import no_effective_interface, until_changed
from bindsock.options import ConnectOptions
from bindsock.routing.effective import Decider

if TYPE_CHECKING:
    from types import TracebackType

    from bindsock.dial.farewell import Farewell
    from bindsock.netmon.watcher import Watcher

logger = logging.getLogger("bindsock")

MAX_REDIALS = 5


@dataclass(frozen=True, slots=True)
class Dialer:
    """All that a dial needs to be done, and done again."""

    watcher: Watcher
    resolve: Resolve
    host: str | None
    port: int | str | None
    options: ConnectOptions = field(default_factory=ConnectOptions)
    complaints: set[str] = field(default_factory=set)
    """Why there was no multipath, so that each reason is logged once."""
    prepare: Callable[[socket.socket], None] | None = None
    """Options to be set on each socket before it connects."""
    farewell: Farewell | None = None
    """How an IPv6 connection is ended when its socket is closed."""

    async def dial(self) -> Dialled:
        """Connect.

        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises NoRoute: the only attempt failed because no route leaves by its interface
        :raises BindFailed: the only attempt failed at binding the socket
        :raises EgressMismatch: the system chose a tunnel's address although the socket is bound beneath it
        :raises OSError: names or connections failed
        :raises ExceptionGroup: several attempts failed and ``all_errors`` is set
        """
        options = self.options
        with self.watcher.hold():
            for redials in range(MAX_REDIALS + 1):
                infos = await self.resolved(self.host, self.port)
                local_infos = await self.resolved(*options.local_addr) if options.local_addr is not None else None
                decisions = await self.decisions(infos)
                race = Race(self, decisions, local_infos)
                if redials == MAX_REDIALS:
                    return await race.run()
                async with _InterruptedByChange(self.watcher, race):
                    return await race.run()
                self.watcher.statistics.redialled += 1
                logger.info("the path to %s changed while it was dialled, dialling again", self.host)
        raise AssertionError("the last dial returns or raises")

    async def resolved(self, host: str | None, port: int | str | None) -> Sequence[AddrInfo]:
        """The addresses of a host, as the options ask for them."""
        options = self.options
        return await self.resolve(
            host, port, family=options.family, type=socket.SOCK_STREAM, proto=options.proto, flags=options.flags
        )

    async def decisions(self, infos: Sequence[AddrInfo]) -> dict[SockAddr, tuple[AddrInfo, IPAddress, Decision]]:
        """The decision for each address that may be dialled, in the resolver's order."""
        on_no_interface = self.watcher.preferences.on_no_interface
        while True:
            decider = self.watcher.refresh().with_pin(self.options.interface)
            chosen = {}
            refused = []
            for info in infos:
                address = address_of(info[4])
                decision = decider.decide(address)
                if decision.interface is not None or decision.unbound or on_no_interface == "unbound":
                    chosen[info[4]] = (info, address, decision)
                else:
                    refused.append(decision)
            if chosen:
                return chosen
            if on_no_interface == "error":
                raise no_effective_interface(str(self.host), tuple(refused), self.watcher.kernel, decider.network)
            await until_changed(self.watcher)


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
