"""Runs the program's hook on the new connection of a replacement."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.reconnect.connecting import start_task

if TYPE_CHECKING:
    from bindsock.reconnect.connection import Connection
    from bindsock.reconnect.hooks import Hook
    from bindsock.reconnect.transport import ReplaceableTransport


class ResumingUser(Protocol):
    """Who wants the hook to run."""

    def resumed(self) -> None:
        """The hook is done."""

    def connection_failed(self, error: BaseException) -> None:
        """The hook has raised, since the connection that it was given has ended."""

    def hook_failed(self, error: BaseException) -> None:
        """The hook has raised for a reason of its own."""


class Resuming:
    """Runs one hook at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hook: Hook, user: ResumingUser) -> None:
        self.unread: bytes = b""
        """What came over the old connection and was not delivered. The hook is told."""
        self.first: bytes = b""
        """What the program reads first over the new connection."""
        self._loop = loop
        self._hook = hook
        self._user = user
        self._attempt = 0
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that have not ended."""
        self._host: asyncio.Task[None] | None = None
        self._hosted: Coroutine[Any, Any, None] | None = None

    def begin_hosting(self) -> None:
        """The current task is ready to run a hook itself: one that starts from now on begins without another turn of the loop."""
        self._host = asyncio.current_task()

    def end_hosting(self) -> Coroutine[Any, Any, None] | None:
        """Start the hooks in tasks of their own again.

        :return: what the current task has to run, if a hook has started meanwhile
        """
        self._host = None
        hosted, self._hosted = self._hosted, None
        return hosted

    def start(self, connection: Connection, transport: ReplaceableTransport) -> None:
        """Run the hook."""
        self._attempt += 1
        coroutine = self._run(connection, transport, self._attempt)
        name = f"bindsock hook {connection.dialled.address} {connection.interface}"
        if self._host is not None:
            self._host.set_name(name)
            self._task, self._hosted = self._host, coroutine
        else:
            self._task = start_task(self._loop, coroutine, name)
        self._tasks.add(self._task)
        self._task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Cancel the hook; whatever comes of it is ignored."""
        self._attempt += 1
        if self._task is not None:
            self._task.cancel()

    def take_first(self) -> bytes:
        """What the program reads first, now that the new connection is the current one."""
        first, self.first, self.unread = self.first, b"", b""
        self._task = None
        return first

    async def _run(self, connection: Connection, transport: ReplaceableTransport, attempt: int) -> None:
        # A hook that was stopped may not have ended yet, and the program must not run two at a time.
        while len(self._tasks) > 1 and (before := self._tasks - {self._task, asyncio.current_task()}):
            await asyncio.wait(before)
        if attempt != self._attempt:
            return
        try:
            first = await self._hook.run(connection, transport, self.unread)
        except (Exception, asyncio.CancelledError) as error:
            if attempt != self._attempt:
                return
            if (connection.ended or connection.finished) and isinstance(error, (OSError, EOFError)):
                self._user.connection_failed(error)
            else:
                self._user.hook_failed(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            if attempt == self._attempt:
                self.first = first
                self._user.resumed()
