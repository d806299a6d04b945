"""Runs the program's hook on the new connection of a replacement, in a task."""

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
    """The controller, which is called when the hook has ended."""

    def resumed(self) -> None:
        """Handle the return of the hook."""

    def connection_failed(self, error: BaseException) -> None:
        """Handle an error of the hook that was caused by the end of its connection."""

    def hook_failed(self, error: BaseException) -> None:
        """Handle any other error of the hook."""


class Resuming:
    """Runs one hook at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hook: Hook, user: ResumingUser) -> None:
        self.unread: bytes = b""
        """The data of the old connection that was not delivered. It is passed to the hook."""
        self.first: bytes = b""
        """The data that the program reads first over the new connection."""
        self._loop = loop
        self._hook = hook
        self._user = user
        self._attempt = 0
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """The tasks that have not ended yet."""
        self._host: asyncio.Task[None] | None = None
        self._hosted: Coroutine[Any, Any, None] | None = None

    def begin_hosting(self) -> None:
        """Let the current task run the next hook itself, so that the hook starts without another iteration of the loop."""
        self._host = asyncio.current_task()

    def end_hosting(self) -> Coroutine[Any, Any, None] | None:
        """Start hooks in separate tasks again.

        :return: the coroutine that the current task must run, if a hook has started meanwhile
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
        """Cancel the hook, and ignore its result."""
        self._attempt += 1
        if self._task is not None:
            self._task.cancel()

    def take_first(self) -> bytes:
        """Take the data that the program reads first, because the new connection is the current one now."""
        first, self.first, self.unread = self.first, b"", b""
        self._task = None
        return first

    async def _run(self, connection: Connection, transport: ReplaceableTransport, attempt: int) -> None:
        # A cancelled hook may not have ended yet, and two hooks must not run at the same time.
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
