"""A connected stream whose errors have the reason for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import anyio
from anyio.abc import SocketAttribute, SocketStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from bindsock.dial.lingering_close import LingeringClose
    from bindsock.stream.guard import StreamGuard


class BindsockAttribute(anyio.TypedAttributeSet):
    """Extra attributes of bindsock's streams and sockets."""

    interface: str | None = anyio.typed_attribute()
    """The name of the interface in use; ``None`` if the socket is unbound."""
    viable: bool = anyio.typed_attribute()
    """Whether the stream can still work, including pending events of the kernel. Check it before you reuse a pooled stream."""


class FollowedStream(SocketStream):
    """anyio's stream over a followed socket. If the guard ends it, its error has :class:`InterfaceChanged` as the cause.

    It wraps anyio's own stream.

    :param lingering_close: how to close the connection, for sockets that have no lingering close themselves, such as trio's
    """

    def __init__(self, stream: SocketStream, guard: StreamGuard | None, lingering_close: LingeringClose | None = None) -> None:
        self._stream = stream
        self._lingering_close = lingering_close
        self._closed = False
        self.guard = guard

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self._ended(error)

    async def send(self, item: bytes) -> None:
        if self._closed:  # anyio's own stream does not check this if the data is empty
            raise anyio.ClosedResourceError
        try:
            await self._stream.send(item)
        except anyio.BrokenResourceError as error:
            self._ended(error)

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except OSError as error:
            self._ended(error)

    async def aclose(self) -> None:
        self._closed = True
        if self.guard is not None:
            self.guard.close()
        lingering_close, self._lingering_close = self._lingering_close, None
        lingering = lingering_close.duplicate(self._raw_socket) if lingering_close is not None else None
        try:
            await self._stream.aclose()
        finally:
            if lingering_close is not None and lingering is not None:
                lingering_close.finish(lingering)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        guard = self.guard
        return {
            **self._stream.extra_attributes,
            BindsockAttribute.interface: lambda: guard.interface if guard is not None else None,
            BindsockAttribute.viable: lambda: guard is None or guard.is_viable(),
        }

    @property
    def _raw_socket(self) -> socket.socket:
        return self._stream.extra(SocketAttribute.raw_socket)

    def _ended(self, error: Exception) -> NoReturn:
        reason = self.guard.error if self.guard is not None else None
        if reason is not None:
            raise anyio.BrokenResourceError(str(reason)) from reason
        raise error
