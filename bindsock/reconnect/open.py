"""Opens connections that are replaced when their path is lost, behind one stable transport or one reader and writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bindsock.options import LIMIT, ConnectOptions
from bindsock.reconnect.connecting import ReconnectSettings
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
    """Connect a stable transport for a protocol with a method ``connection_replaced(transport, unread)``, coroutine or not.

    :param dial: called for each connection: connects a socket over the interface that is effective at that time
    :param attach: makes a transport for the socket, with TLS or without
    :param options: the options of the connection; with ``better_path="keep"``, a working connection is not replaced
    :raises OSError: the first connection could not be made
    """
    protocol = protocol_factory()
    settings = ReconnectSettings(dial, attach, ProtocolHook(), options)
    return await Controller(watcher, loop, settings).start(protocol), protocol


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
    """Connect a reader and a writer that stay the same when the connection is replaced.

    The other parameters are those of :func:`create_replaceable`.

    :param on_reconnect: the program's hook for each new connection: see :data:`~bindsock.reconnect.hooks.OnReconnect`
    :param limit: the buffer limit of the reader, in bytes
    :raises OSError: the first connection could not be made
    """
    reader = ReplaceableReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    settings = ReconnectSettings(dial, attach, StreamHook(on_reconnect, reader, limit), options)
    transport = await Controller(watcher, loop, settings).start(protocol)
    return reader, ReplaceableWriter(transport, protocol, reader, loop)
