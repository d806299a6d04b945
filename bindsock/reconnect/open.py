"""Connections that outlive their path: made here, with one stable transport or one reader and writer for all their lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar

from bindsock.reconnect.controller import Controller, Replacing
from bindsock.reconnect.hooks import OnReconnect, ProtocolHook, StreamHook
from bindsock.reconnect.streams import ReplaceableReader, ReplaceableWriter
from bindsock.reconnect.transport import ReplaceableTransport

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.reconnect.connection import Attach, Dial
    from bindsock.stream.viability import BetterPath

P = TypeVar("P", bound=asyncio.BaseProtocol)


class ReplaceOptions(TypedDict, total=False):
    """What the functions below have in common."""

    interface: str | None
    better_path: BetterPath
    drain_timeout: float
    reconnect_timeout: float | None
    dead_after: float | None
    handshake: bool


def is_replaceable(protocol: asyncio.BaseProtocol) -> bool:
    """Whether a protocol has the method by which it goes on over another connection."""
    return callable(getattr(protocol, "connection_replaced", None))


async def create_replaceable(
    watcher: Watcher,
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], P],
    dial: Dial,
    attach: Attach,
    *,
    interface: str | None = None,
    better_path: BetterPath = "auto",
    drain_timeout: float = 1.0,
    reconnect_timeout: float | None = 30.0,
    dead_after: float | None = None,
    handshake: bool = True,
) -> tuple[ReplaceableTransport, P]:
    """A stable transport for a protocol with a method ``connection_replaced(transport, unread)``, coroutine method or not.

    :param dial: called for each connection: connects a socket that is bound to whatever interface is effective then
    :param attach: makes a transport of it, with TLS or without
    :param interface: the name of the interface to which the dial is pinned
    :param better_path: ``"keep"`` leaves a connection that works where it is
    :param drain_timeout: seconds for which what is on its way over a connection that is left is waited for
    :param reconnect_timeout: seconds after which a replacement is given up
    :param dead_after: seconds of silence that a multipath connection may keep
    :param handshake: whether ``attach`` waits for the peer, as TLS does
    :raises OSError: the first connection could not be made
    """
    protocol = protocol_factory()
    how = Replacing(dial, attach, ProtocolHook(), interface, better_path, drain_timeout, reconnect_timeout, dead_after, handshake)
    return await Controller(watcher, loop, how).start(protocol), protocol


async def open_replaceable(
    watcher: Watcher,
    loop: asyncio.AbstractEventLoop,
    on_reconnect: OnReconnect,
    dial: Dial,
    attach: Attach,
    *,
    limit: int = 2**16,
    interface: str | None = None,
    better_path: BetterPath = "auto",
    drain_timeout: float = 1.0,
    reconnect_timeout: float | None = 30.0,
    dead_after: float | None = None,
    handshake: bool = True,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A reader and a writer that stay when the connection is replaced.

    :param on_reconnect: what the application says on each new connection: see :data:`~bindsock.reconnect.hooks.OnReconnect`
    :param limit: the reader's buffer limit, in bytes
    :raises OSError: the first connection could not be made

    The rest is as :func:`create_replaceable` has it.
    """
    reader = ReplaceableReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    hook = StreamHook(on_reconnect, reader, limit)
    how = Replacing(dial, attach, hook, interface, better_path, drain_timeout, reconnect_timeout, dead_after, handshake)
    transport = await Controller(watcher, loop, how).start(protocol)
    return reader, ReplaceableWriter(transport, protocol, reader, loop)
