"""The live probe: looks up a name and makes a connection by each uplink and family, and measures the time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from bindsock import kernel as kernels
from bindsock.dial.resolving import address_of, resolve
from bindsock.factory import TransportFactory
from bindsock.model.network import family_name, family_of
from bindsock.resolvers import InterfaceResolver, NoResolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindsock.model.preferences import Preferences


@dataclass(frozen=True, slots=True)
class Target:
    """The host to connect to."""

    host: str
    port: int
    seconds: float
    """The time limit of each step: the lookup and the connect."""

    @property
    def numeric_family(self) -> socket.AddressFamily | None:
        """The family of a numeric address; ``None`` for a name."""
        try:
            return family_of(ip_address(self.host))
        except ValueError:
            return None


async def probe(
    uplinks: Sequence[tuple[str, socket.AddressFamily]], target: Target, preferences: Preferences, servers: Sequence[str]
) -> list[dict[str, Any]]:
    """Probe by all uplinks at once.

    :param uplinks: names of interfaces, each with an address family
    :param servers: the name servers to ask by each interface, if the system has no resolver that can do so
    """
    wanted = target.numeric_family
    pairs = [(name, family) for name, family in uplinks if wanted in (None, family)]
    return list(await asyncio.gather(*(_by(name, family, target, preferences, servers) for name, family in pairs)))


async def _by(
    name: str, family: socket.AddressFamily, target: Target, preferences: Preferences, servers: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {"interface": name, "family": family_name(family), "dns": None, "tcp": None}
    async with TransportFactory(preferences, interface=name, kernel=kernels.current(), resolver=_resolver(servers)) as transports:
        address: str | None = target.host
        if target.numeric_family is None:
            found["dns"], address = await _look_up(transports, target, family)
        if address is not None:
            found["tcp"] = await _connect(transports, address, target)
    return found


def _resolver(servers: Sequence[str]) -> InterfaceResolver:
    try:
        return InterfaceResolver(servers)
    except ImportError:  # dnspython is missing, which asking servers needs
        return InterfaceResolver()


async def _look_up(
    transports: TransportFactory, target: Target, family: socket.AddressFamily
) -> tuple[dict[str, Any], str | None]:
    by, start = "the interface", asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(target.seconds):
            try:
                infos = await transports.resolve(target.host, target.port, family=family, type=socket.SOCK_STREAM)
            except NoResolver:
                # No resolver can ask by the interface: this answer may come through the VPN.
                by = "the system's resolver"
                infos = await resolve(target.host, target.port, family=family, type=socket.SOCK_STREAM)
    except TimeoutError:
        return {"by": by, "ms": None, "address": None, "error": f"no answer within {target.seconds:g} s"}, None
    except OSError as error:
        return {"by": by, "ms": None, "address": None, "error": _said(error)}, None
    address = str(address_of(infos[0][4]))
    return {"by": by, "ms": _milliseconds(start), "address": address, "error": None}, address


async def _connect(transports: TransportFactory, address: str, target: Target) -> dict[str, Any]:
    start = asyncio.get_running_loop().time()
    result: dict[str, Any] = {"address": address, "port": target.port, "source": None, "ms": None, "error": None}
    try:
        async with asyncio.timeout(target.seconds):
            sock = await transports.connect(address, target.port)
    except TimeoutError:
        result["error"] = f"no answer within {target.seconds:g} s"
    except OSError as error:
        result["error"] = _said(error)
    else:
        result["ms"] = _milliseconds(start)
        with contextlib.closing(sock):
            result["source"] = str(sock.getsockname()[0])
    return result


def _said(error: OSError) -> str:
    return getattr(error, "message", None) or error.strerror or str(error)


def _milliseconds(start: float) -> float:
    return round((asyncio.get_running_loop().time() - start) * 1000, 1)
