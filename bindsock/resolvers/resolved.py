"""systemd-resolved over Varlink. It knows each link's name servers, and a query can name an interface index.

Request and answer are one JSON object and a zero byte (https://varlink.org/Wire-Protocol); the Varlink interface is
``io.systemd.Resolve``. D-Bus has the same call, but needs a bus and a library.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from bindsock.options import known_keywords_only
from bindsock.resolvers.answers import Answer, NoResolver, no_such_name, try_again

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.watcher import Watcher

SOCKET = "/run/systemd/resolve/io.systemd.Resolve"
_PREFIX = "io.systemd.Resolve."
_NXDOMAIN = 3
_LIMIT = 1 << 20
_FAMILIES = {2: (socket.AF_INET, 4), 10: (socket.AF_INET6, 16)}
"""The numbers are Linux's; tests of this module run on other systems, too."""


class ResolvedLookup:
    """Looks up names by systemd-resolved.

    :param path: its Varlink socket
    :param timeout: seconds for one query
    """

    @known_keywords_only
    def __init__(self, path: str = SOCKET, *, timeout: float = 15.0) -> None:
        self._path = path
        self._timeout = timeout

    async def __call__(self, name: str, family: socket.AddressFamily, index: int, watcher: Watcher) -> Answer:
        number = next(n for n, (f, _) in _FAMILIES.items() if f == family)
        question = {"name": name.rstrip("."), "family": number, "ifindex": index, "flags": 0}
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._call("ResolveHostname", question)
        except TimeoutError:
            raise try_again(name, f"systemd-resolved did not answer within {self._timeout:g} s") from None
        error = reply.get("error")
        if error is not None:
            return _refused(name, str(error), reply.get("parameters"))
        try:
            return Answer(_addresses(reply["parameters"]["addresses"], family))
        except (KeyError, TypeError, ValueError) as malformed:
            raise try_again(name, f"systemd-resolved's answer cannot be understood: {malformed!r}") from malformed

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=_LIMIT)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES, errno.ENOTDIR):
                raise NoResolver(error.errno, f"cannot connect to systemd-resolved: {self._path}: {error.strerror}") from error
            raise
        try:
            writer.write(json.dumps({"method": _PREFIX + method, "parameters": parameters}).encode() + b"\0")
            message = await reader.readuntil(b"\0")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise try_again(str(parameters["name"]), "systemd-resolved closed the connection") from error
        finally:
            writer.close()
        try:
            reply = json.loads(message[:-1])
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise try_again(str(parameters["name"]), "systemd-resolved's answer is not a JSON object")
        return reply


def _refused(name: str, error: str, parameters: object) -> Answer:
    """The meaning of an error reply (systemd ``src/resolve/resolved-varlink.c``, reply_query_state)."""
    kind = error.removeprefix(_PREFIX)
    if kind == "NoSuchResourceRecord":
        return Answer(())
    if kind == "DNSError" and isinstance(parameters, dict) and parameters.get("rcode") == _NXDOMAIN:
        raise no_such_name(name)
    if kind == "NoNameServers":
        raise NoResolver(errno.ENETUNREACH, f"systemd-resolved knows no name server for {name} on this interface")
    detail = f" {json.dumps(parameters)}" if parameters else ""
    raise try_again(name, f"systemd-resolved answered with {error}{detail}")


def _addresses(found: list[dict[str, Any]], wanted: socket.AddressFamily) -> tuple[IPAddress, ...]:
    addresses: dict[IPAddress, None] = {}
    for entry in found:
        family, length = _FAMILIES[entry["family"]]
        packed = bytes(entry["address"])
        if len(packed) != length:
            raise ValueError(f"an address of {len(packed)} bytes")
        if family == wanted:
            address = IPv4Address(packed) if length == 4 else IPv6Address(packed)
            if address.is_link_local and length == 16 and entry.get("ifindex"):
                address = IPv6Address(f"{address}%{int(entry['ifindex'])}")
            addresses[address] = None
    return tuple(addresses)
