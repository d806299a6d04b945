"""Resolves names to addresses. Numeric hosts never use the executor: a thread costs ten times as much as the connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol, TypeAlias

from bindsock.model.network import IPAddress, family_of

SockAddr: TypeAlias = tuple[Any, ...]
AddrInfo: TypeAlias = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


_PROTOCOLS: dict[int, int] = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}
_PORT = (int, str, type(None))
_ip_address = lru_cache(maxsize=1024)(ip_address)
"""A cache, because programs dial the same few addresses again and again."""


class Resolve(Protocol):
    """A resolver, such as :func:`resolve`. ``loop.getaddrinfo`` has the same signature."""

    def __call__(
        self, host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Awaitable[Sequence[AddrInfo]]: ...


async def resolve(
    host: str | bytes | None,
    port: int | str | None,
    *,
    family: int = 0,
    type: int = 0,
    proto: int = 0,
    flags: int = 0,
) -> list[AddrInfo]:
    """The addresses of a host, by the system's resolver unless the host is numeric.

    :raises OSError: the name cannot be resolved (``socket.gaierror``), or it has no address
    :raises ValueError: the host has a null character
    """
    if isinstance(host, bytes):
        host = host.decode("idna")
    info = numeric(host, port, family, type, proto)
    if info is not None:
        return [info]
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
    if not infos:
        raise OSError(f"getaddrinfo() returned an empty list for {host!r}")
    return list(infos)


def check_host(host: str | bytes | bytearray | None) -> None:
    """Check that a host has no null character. ``getaddrinfo()`` would resolve what stands before it.

    :raises ValueError: it has one
    """
    if host and ("\0" in host if isinstance(host, str) else 0 in host):
        raise ValueError(f"the host has an embedded null character: {host!r}")


def numeric(host: str | None, port: int | str | None, family: int, type: int, proto: int) -> AddrInfo | None:
    """The address info of a numeric host and port; ``None`` if a resolver must be asked.

    :raises ValueError: the host has a null character
    """
    if not host or not isinstance(port, _PORT):
        return None
    if "%" in host:  # not cached, because another interface may have this name the next time
        return _parsed(host, port, family, type, proto)
    return _cached(host, port, family, type, proto)


def _parsed(host: str, port: int | str | None, family: int, type: int, proto: int) -> AddrInfo | None:
    check_host(host)
    try:
        number = int(port or 0)
        address = _ip_address(host)
    except ValueError:
        return None
    own = family_of(address)
    if family not in (socket.AF_UNSPEC, own) or not type:
        return None
    kind = socket.SocketKind(type)
    proto = proto or _PROTOCOLS.get(kind, 0)
    sockaddr: SockAddr
    if isinstance(address, IPv6Address):
        sockaddr = (str(address).partition("%")[0], number, 0, _scope(address))
    else:
        sockaddr = (host, number)
    return own, kind, proto, "", sockaddr


_cached = lru_cache(maxsize=1024)(_parsed)


async def numeric_address(sock: socket.socket, address: SockAddr, resolve: Resolve) -> SockAddr:
    """The socket address with a numeric host, resolved as asyncio's ``sock_connect`` does.

    :param resolve: called if the host is a name
    :raises OSError: the name cannot be resolved (``socket.gaierror``)
    """
    try:
        address_of(address)
    except ValueError:
        infos = await resolve(address[0], address[1], family=sock.family, type=sock.type, proto=sock.proto)
        return infos[0][4]
    return address


def address_of(sockaddr: SockAddr) -> IPAddress:
    """The IP address of an AF_INET or AF_INET6 socket address, with its scope id if it has one.

    :raises ValueError: the host is not numeric
    """
    host = sockaddr[0]
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in host:
        return IPv6Address(f"{host}%{sockaddr[3]}")
    return _ip_address(host)


def _scope(address: IPv6Address) -> int:
    scope = address.scope_id
    if not scope:
        return 0
    return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
