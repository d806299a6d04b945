"""Connects a stream socket over the effective interface. This is the only redial loop.

Theory of operation. The dialer resolves the names and decides for each address. It leaves out addresses without an interface;
``on_no_interface`` applies only if no address is left. Then the addresses race.

If the path changes during a dial, the awaited answer cannot arrive any more. The dialer then starts over, at most
``MAX_REDIALS`` times, inside the same await. A handshake that follows the connect is part of the dial.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from bindsock.dial.attempt import Attempt, Destination, Dialled
from bindsock.dial.binding import MakeshiftSource, set_dead_after
from bindsock.dial.chosen import on_own_uplink
from bindsock.dial.nat64 import FindPrefixes, translated
from bindsock.dial.race import Race, interleaved
from bindsock.dial.resolving import AddrInfo, Resolve, address_of
from bindsock.errors import InterfaceChanged
from bindsock.model.network import unmapped
from bindsock.netmon.no_interface import no_effective_interface, until_changed
from bindsock.options import ConnectOptions

if TYPE_CHECKING:
    from bindsock.dial.lingering_close import LingeringClose
    from bindsock.model.subflows import Endpoints
    from bindsock.netmon.watcher import Watcher

__all__ = ["MAX_REDIALS", "Dialer", "Dialled", "PathChanged"]

T = TypeVar("T")

_logger = logging.getLogger("bindsock")

MAX_REDIALS = 5


class PathChanged(Exception):
    """A step after the connect failed because the path changed. The dialer starts over.

    :param error: the error of that step
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class Dialer:
    """Dials a host, again if the path changes meanwhile."""

    watcher: Watcher
    resolve: Resolve
    host: str | None
    port: int | str | None
    options: ConnectOptions = field(default_factory=ConnectOptions)
    complaints: set[str] = field(default_factory=set)
    """The logged reasons why multipath was not used; each is logged once."""
    lingering_close: LingeringClose | None = None
    """How IPv6 connections are closed."""
    find_nat64: FindPrefixes | None = None
    """Asks for the NAT64 prefixes of a network without IPv4."""

    def prepare(self, sock: socket.socket) -> None:
        """Set the socket options that are needed before the connect."""
        set_dead_after(self.watcher.kernel, sock, self.options.dead_after)

    async def dial(self) -> Dialled:
        """Connect.

        :raises OSError: as :meth:`complete`
        """
        return await self.complete(_no_more_steps)

    async def complete(self, rest: Callable[[Dialled], Awaitable[T]]) -> T:
        """Connect, and complete the connection by further steps such as a TLS handshake.

        :param rest: takes the further steps. If they fail because the path changed, it must close the socket and raise
            :class:`PathChanged`; the dialer then starts over
        :return: the result of ``rest``
        :raises NoEffectiveInterface: no address of the host has an interface that may be used
        :raises NoRoute: the only attempt failed because no route leaves by its interface
        :raises BindFailed: the only attempt failed because the socket could not be bound
        :raises FirewallBlocked: the only attempt was rejected by a firewall
        :raises NoAnswer: the only attempt got no answer in time
        :raises InterfaceChanged: the path changed more often than it is dialled again
        :raises EgressMismatch: the system chose the address of a tunnel although the socket is bound to another interface
        :raises OSError: resolving the name or connecting failed
        :raises ExceptionGroup: several attempts failed and ``all_errors`` is set
        """
        options = self.options
        for redials in range(MAX_REDIALS + 1):
            infos = await self._resolved(self.host, self.port)
            local_infos = await self._resolved(*options.local_addr) if options.local_addr is not None else None
            endpoints = await self._endpoints() if options.multipath else None
            destinations = await self._destinations(infos, local_infos)
            if len(destinations) > 1:
                destinations = self._in_order(destinations)
            attempts = [Attempt(self, destination, local_infos, endpoints) for destination in destinations]
            winner = await self._winner(attempts, interruptible=redials < MAX_REDIALS)
            if winner is not None:
                try:
                    return await rest(winner.verified())
                except PathChanged as change:
                    if redials == MAX_REDIALS:
                        raise change.error from change.error.__cause__
            self.watcher.statistics.redialled += 1
            _logger.info("the path to %s changed during the dial, dialling again", self.host)
        raise AssertionError("the last dial returns or raises")

    async def _winner(self, attempts: list[Attempt], *, interruptible: bool) -> Attempt | None:
        """Connect to one of the addresses.

        :param interruptible: whether the caller dials again if the path changes
        :return: the attempt that succeeded; ``None`` if the path has changed
        :raises InterfaceChanged: the path has changed, and the caller does not dial again
        :raises OSError: all attempts failed
        :raises ExceptionGroup: several attempts failed and ``all_errors`` is set
        """
        failure = None
        try:
            if attempts[0].begin():
                return attempts[0]
        except OSError as error:
            failure = error
        race = Race(self.watcher, attempts, self.options.happy_eyeballs_delay, self.options.connect_timeout)
        race.take_first(failure)
        winner = await race.run(interruptible=interruptible)
        if winner is None and race.interrupted and not interruptible:
            path = attempts[0].destination.path
            raise InterfaceChanged(
                f"the path to {self.host} changed {MAX_REDIALS + 1} times during the dial",
                interface=path.interface if path is not None else None,
                call="connect",
            )
        if winner is None and not race.interrupted:
            if interruptible and any(isinstance(error, MakeshiftSource) for error in race.errors):
                return None
            raise self._failure(race.errors)
        return winner

    async def _endpoints(self) -> Endpoints | OSError | None:
        """The endpoints by which the system adds subflows, or why it does not tell them; ``None`` without multipath TCP."""
        paths = self.watcher.kernel.multipath
        if paths is None:
            return None
        found: list[Endpoints | OSError] = []
        known = self.watcher.runtime.create_future()

        def done(endpoints: Endpoints | OSError) -> None:
            found.append(endpoints)
            if not known.done():
                known.set_result(None)

        paths.endpoints(done)
        if not found:
            await known
        return found[0]

    async def _resolved(self, host: str | None, port: int | str | None) -> Sequence[AddrInfo]:
        """The addresses of a host, resolved according to the options."""
        options = self.options
        infos = await self.resolve(
            host, port, family=options.family, type=socket.SOCK_STREAM, proto=options.proto, flags=options.flags
        )
        if not infos:
            raise OSError(f"getaddrinfo() returned an empty list for {host!r}")
        return infos

    async def _destinations(self, infos: Sequence[AddrInfo], local_infos: Sequence[AddrInfo] | None) -> list[Destination]:
        """The addresses that may be dialled, in the resolver's order, each with its decision.

        :param local_infos: the requested local addresses; the address of an uplink pins the dial to this uplink
        """
        own = {info[0]: unmapped(address_of(info[4])) for info in reversed(local_infos)} if local_infos is not None else {}
        on_no_interface = self.watcher.preferences.on_no_interface
        candidates = infos
        while True:
            newest = self.watcher.refresh()
            decider = newest.with_pin(self.options.interface)
            chosen = []
            refused = []
            for info in candidates:
                address = address_of(info[4])
                by = on_own_uplink(decider, own.get(info[0])) if own else decider
                decision = by.decide(address)
                if decision.interface is not None or decision.unbound or on_no_interface == "unbound":
                    chosen.append(Destination(info, address, decision, by.path(address), newest))
                else:
                    refused.append(decision)
            if chosen:
                return chosen
            by_translator = (
                await translated(self.host, self.options.family, infos, decider, self.find_nat64) if candidates is infos else []
            )
            if by_translator:
                candidates = by_translator
                continue
            if on_no_interface == "error":
                raise no_effective_interface(str(self.host), tuple(refused), self.watcher.kernel, decider.network)
            await until_changed(self.watcher)
            candidates = infos

    def _in_order(self, destinations: list[Destination]) -> list[Destination]:
        """The destinations in the order of ``loop.create_connection``."""
        interleave = self.options.interleave
        if interleave is None and self.options.happy_eyeballs_delay is not None:
            interleave = 1
        return interleaved(destinations, interleave) if interleave else destinations

    def _failure(self, errors: list[OSError]) -> OSError | ExceptionGroup[OSError]:
        """The error for several failed attempts, as ``loop.create_connection`` raises it."""
        if self.options.all_errors:
            return ExceptionGroup("create_connection failed", errors)
        if len({str(e) for e in errors}) == 1:
            return errors[0]
        codes = {e.errno for e in errors}
        code = codes.pop() if len(codes) == 1 else None
        combined = OSError(code, f"Multiple exceptions: {', '.join(map(str, errors))}")
        combined.__cause__ = ExceptionGroup("the attempts", errors)
        return combined


async def _no_more_steps(dialled: Dialled) -> Dialled:
    return dialled
