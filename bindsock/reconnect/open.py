"""Opens connections that are replaced when their path is lost, with one stable transport or one reader and writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bindsock.options import LIMIT, ConnectOptions
from bindsock.reconnect.connecting import Replacing
from bindsock.reconnect.controller import Controller
from bindsock.reconnect.hooks import OnReconnect, ProtocolHook, StreamHook
from bindsock.reconnect.streams import ReplaceableReader, ReplaceableWriter
from bindsock.reconnect.transport import ReplaceableTransport

if TYPE_CHECKING:
    from bindsock.netmon.watcher import Watcher
    from bindsock.reconnect.connection import Attach, Dial

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def create_replaceable(
    watcher: Watcher,
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], P],
    dial: Dial,
    attach: Attach,
    options: ConnectOptions,
) -> tuple[ReplaceableTransport, P]:
    """A stable transport for a protocol with a method ``connection_replaced(transport, unread)``, coroutine method or not.

    :param dial: called for each connection: connects a socket that is bound to the interface that is effective then
    :param attach: makes a transport of it, with TLS or without
    :param options: those of the connection; ``better_path="keep"`` leaves a connection that works where it is
    :raises OSError: the first connection could not be made
    """
    protocol = protocol_factory()
    how = Replacing(dial, attach, ProtocolHook(), options)
    return await Controller(watcher, loop, how).start(protocol), protocol


async def open_replaceable(
    watcher: Watcher,
    loop: asyncio.AbstractEventLoop,
    on_reconnect: OnReconnect,
    dial: Dial,
    attach: Attach,
    options: ConnectOptions,
    *,
    limit: int = LIMIT,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A reader and a writer that stay when the connection is replaced.

    :param on_reconnect: what the program does on each new connection: see :data:`~bindsock.reconnect.hooks.OnReconnect`
    :param limit: the reader's buffer limit, in bytes
    :raises OSError: the first connection could not be made

    The other parameters are those of :func:`create_replaceable`.
    """
    reader = ReplaceableReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    how = Replacing(dial, attach, StreamHook(on_reconnect, reader, limit), options)
    transport = await Controller(watcher, loop, how).start(protocol)
    return reader, ReplaceableWriter(transport, protocol, reader, loop)
