"""Resolves names by the effective interface, with a cache that is cleared when the path changes."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from bindsock.dial.race import broken
from bindsock.dial.resolving import AddrInfo, check_host, resolve
from bindsock.model.change import Cause
from bindsock.model.decision import Path, path_of
from bindsock.model.network import FAMILIES, family_of, is_address
from bindsock.netmon.no_interface import no_effective_interface, until_changed
from bindsock.options import known_keywords_only
from bindsock.resolvers.answers import Answer, Lookup, NoResolver, no_such_name
from bindsock.resolvers.dnssd import DnsSdLookup
from bindsock.resolvers.resolved import ResolvedLookup
from bindsock.resolvers.servers import ServerLookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.dial.resolving import SockAddr
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher
    from bindsock.routing.effective import Decider

_LONGEST = 3600.0
"""The longest time for which an answer is cached, in seconds."""
_CACHED = 4096
_TYPES = (
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.SOCK_RAW, 0),
)


class InterfaceResolver:
    """Looks up names by the effective interface; to be given to a factory as ``resolver=``.

    It uses the first of these that exists: Darwin's resolver daemon, systemd-resolved, the given servers.

    :param servers: addresses of name servers, or pairs of address and port, for systems without either daemon. Needs dnspython.
    :param lookups: the ways to try, instead of these three
    """

    @known_keywords_only
    def __init__(self, servers: Sequence[str | tuple[str, int]] = (), *, lookups: Sequence[Lookup] | None = None) -> None:
        if lookups is None:
            lookups = [DnsSdLookup(), ResolvedLookup(), *([ServerLookup(servers)] if servers else [])]
        self._lookups = tuple(lookups)

    def on(self, watcher: Watcher) -> BoundResolver:
        """The resolver for one factory on one event loop."""
        return BoundResolver(watcher, self._lookups)


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer
    until: float


class BoundResolver:
    """A :class:`bindsock.dial.resolving.Resolve` that asks by the effective interface.

    It asks for IPv4 addresses by the effective interface for IPv4, and for IPv6 addresses by that for IPv6. A family without an
    effective interface is left out, since its addresses could not be used.
    """

    def __init__(self, watcher: Watcher, lookups: Sequence[Lookup]) -> None:
        self._watcher = watcher
        self._lookups = lookups
        self._cache: dict[tuple[str, socket.AddressFamily], _Kept] = {}
        self._paths: dict[socket.AddressFamily, Path | None] = {}

    async def __call__(
        self, host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[AddrInfo]:
        """The addresses of a host.

        :raises NoEffectiveInterface: there is no interface to ask by
        :raises NoResolver: this system has no resolver that can ask by an interface
        :raises socket.gaierror: the name does not exist, or no server answered
        :raises ValueError: the host has a null character
        """
        check_host(host)
        if not host or flags & socket.AI_NUMERICHOST or is_address(host) or family not in (0, *FAMILIES):
            return await resolve(host, port, family=family, type=type, proto=proto, flags=flags)
        families = [f for f in FAMILIES if family in (0, f)]
        name = host.rstrip(".").lower()
        addresses: list[IPAddress]
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 section 6.3
            addresses = [ip_address("127.0.0.1" if f == socket.AF_INET else "::1") for f in families]
        else:
            with self._watcher.hold():
                found = await self._look_up(name, families)
            if found is None:
                return await resolve(host, port, family=family, type=type, proto=proto, flags=flags)
            addresses = found
        if not addresses:
            raise no_such_name(host)
        number = _port(port, type)
        return [info for address in addresses for info in _infos(address, number, type, proto)]

    async def _look_up(self, name: str, families: Sequence[socket.AddressFamily]) -> list[IPAddress] | None:
        """The addresses, IPv6 first; ``None`` if the system's resolver must be asked instead."""
        while True:
            decider = self._watcher.refresh()
            decisions = {f: decider.decide(f) for f in families}
            indexes = {f: d.interface.index for f, d in decisions.items() if d.interface is not None}
            if indexes:
                break
            policy = decider.preferences.on_no_interface
            if policy == "unbound":
                return None
            if policy == "error":
                raise no_effective_interface(f"the name {name}", tuple(decisions.values()), self._watcher.kernel, decider.network)
            await until_changed(self._watcher)
        loop = asyncio.get_running_loop()
        asking = [loop.create_task(self._of_family(name, f), name=f"bindsock resolve {name} {f.name}") for f in indexes]
        results = await asyncio.gather(*asking, return_exceptions=True)
        errors = [r for r in results if isinstance(r, BaseException)]
        for error in errors:
            if not isinstance(error, OSError):
                raise error
        if len(errors) == len(results):
            raise errors[0]
        by_family = [list(r.addresses) for r in results if isinstance(r, Answer)]
        return [address for addresses in reversed(by_family) for address in addresses]

    async def _of_family(self, name: str, family: socket.AddressFamily) -> Answer:
        while True:
            path = self._path(family)
            kept = self._cache.get((name, family))
            if kept is not None and kept.until > self._watcher.runtime.time():
                return kept.answer
            if path is None:
                return Answer(())
            answer = await self._unless_path_changes(name, family, path)
            if answer is None:
                continue
            if answer.ttl and self._path(family) == path:
                if len(self._cache) >= _CACHED:
                    self._cache.clear()
                self._cache[name, family] = _Kept(answer, self._watcher.runtime.time() + min(answer.ttl, _LONGEST))
            return answer

    def _path(self, family: socket.AddressFamily) -> Path | None:
        """The present path. If it has changed, the cache is cleared."""
        path = path_of(self._watcher.refresh().decide(family))
        if path != self._paths.get(family):
            self._paths[family] = path
            for key in [key for key in self._cache if key[1] == family]:
                del self._cache[key]
        return path

    async def _unless_path_changes(self, name: str, family: socket.AddressFamily, path: Path) -> Answer | None:
        """Ask; return ``None`` as soon as the query's path is no longer the present one."""
        asking = asyncio.get_running_loop().create_task(
            self._ask(name, family, path.index), name=f"bindsock ask {name} {family.name} {path.interface}"
        )
        interrupter = _Interrupter(asking, path)
        self._watcher.follow(interrupter)
        try:
            await asyncio.wait([asking])
        finally:
            self._watcher.unfollow(interrupter)
            if not asking.done():
                asking.cancel()
            # If this task has been cancelled, nobody else asks how the query ended.
            asking.add_done_callback(_retrieve)
        if interrupter.interrupted and (asking.cancelled() or asking.exception() is not None):
            return None
        return asking.result()

    async def _ask(self, name: str, family: socket.AddressFamily, index: int) -> Answer:
        reasons: list[NoResolver] = []
        for lookup in self._lookups:
            try:
                return await lookup(name, family, index, self._watcher)
            except NoResolver as error:
                reasons.append(error)
        detail = "; ".join(str(r.strerror) for r in reasons)
        raise NoResolver(
            reasons[0].errno if reasons else None,
            f"names cannot be looked up by an interface here ({detail}); give InterfaceResolver(servers=[...])",
        )


def _retrieve(asking: asyncio.Future[Answer]) -> None:
    """Prevent the event loop from reporting an exception that nobody has looked at."""
    if not asking.cancelled():
        asking.exception()


class _Interrupter:
    def __init__(self, asking: asyncio.Future[Answer], path: Path) -> None:
        self._asking = asking
        self._path = path
        self.interrupted = False

    def network_changed(self, decider: Decider, cause: Cause) -> None:
        if broken(self._path, decider.path(self._path.family)):
            self.interrupted = True
            self._asking.cancel()


def _port(port: int | str | None, type: int) -> int:
    if port is None or port == "":
        return 0
    try:
        return int(port)
    except ValueError:
        pass
    try:
        return socket.getservbyname(str(port), "udp" if type == socket.SOCK_DGRAM else "tcp")
    except OSError:
        raise socket.gaierror(socket.EAI_SERVICE, f"{port}: unknown service") from None


def _infos(address: IPAddress, port: int, type: int, proto: int) -> list[AddrInfo]:
    sockaddr: SockAddr
    if address.version == 6:
        text, _, scope = str(address).partition("%")
        sockaddr = (text, port, 0, int(scope) if scope.isdecimal() else 0)
    else:
        sockaddr = (str(address), port)
    return [
        (family_of(address), kind, proto or usual, "", sockaddr)
        for kind, usual in _TYPES
        if type in (0, kind) and (not proto or not usual or proto == usual)
    ]
