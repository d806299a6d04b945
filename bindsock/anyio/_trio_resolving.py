"""Resolves names to addresses on trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio

from bindsock.dial.resolving import AddrInfo, numeric

if TYPE_CHECKING:
    from collections.abc import Sequence


async def resolve(
    host: str | None, port: int | str | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> Sequence[AddrInfo]:
    """Resolve by the system's resolver, in a thread as trio does, unless the host is numeric.

    :raises OSError: the name cannot be resolved
    """
    info = numeric(host, port, family, type, proto)
    if info is not None:
        return [info]
    infos = await trio.socket.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
    return [cast("AddrInfo", i) for i in infos]
