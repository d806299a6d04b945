"""Dials the new connection of a replacement, including its TLS handshake."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bindsock.dial.dialer import PathChanged
from bindsock.netmon.backoff import Backoff
from bindsock.reconnect.connection import Attach, Connection, ConnectionOwner, Dial, Dialled
from bindsock.stream.guard import StreamGuard, follow_stream
from bindsock.stream.plan import Requirement

if TYPE_CHECKING:
    from bindsock.model.network import IPAddress
    from bindsock.netmon.loop import Future, Timer
    from bindsock.netmon.runtime import Runtime
    from bindsock.netmon.watcher import Watcher
    from bindsock.options import ConnectOptions
    from bindsock.reconnect.hooks import Hook

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between a failed dial and the next."""
MAX_CONCURRENT_REDIALS = 32
"""How many replacements one event loop dials at the same time."""


@dataclass(frozen=True, slots=True)
class ReconnectSettings:
    """How to replace a connection."""

    dial: Dial
    attach: Attach
    hook: Hook
    options: ConnectOptions
    """The options of the connection. With ``better_path="keep"``, a working connection is not replaced."""

    @property
    def handshake(self) -> bool:
        """Whether ``attach`` waits for the peer, as TLS does. The path is watched meanwhile."""
        return bool(self.options.ssl)

    def requirement(self, address: IPAddress, *, replaceable: bool) -> Requirement:
        """The requirement of one of the connections.

        :param replaceable: ``False`` until it is ready; it is then ended if its path is lost
        """
        options = self.options
        better_path = (options.better_path or "auto") if replaceable else "keep"
        return Requirement(address, options.interface, better_path, options.dead_after, replaceable)


class ConnectingUser(ConnectionOwner, Protocol):
    """The owner of the new connections."""

    def connected(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        """Take a new connection that is ready.

        :return: a coroutine to run in the same task, without another iteration of the loop in between
        """

    def dial_failed(self) -> None:
        """Handle a failed dial; ``last_error`` is its error."""

    def dial_again(self) -> None:
        """Dial again, because the pause is over."""


class RedialSlots:
    """Limits how many replacements one event loop dials at the same time. The slots are given out in order.

    asyncio's semaphore cannot be used, because it would hold the loop.

    :param runtime: the event loop that shares this object
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._free = MAX_CONCURRENT_REDIALS
        self._waiting: deque[Future] = deque()
        self._given: set[Future] = set()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = self._runtime.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self._given:
                self._given.remove(turn)
                self._release()
            raise
        self._given.remove(turn)

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its task was cancelled
                self._given.add(turn)
                turn.set_result(None)
                return
        self._free += 1


class Connecting:
    """Dials in its own task, with a pause after each failure."""

    def __init__(
        self, watcher: Watcher, loop: asyncio.AbstractEventLoop, settings: ReconnectSettings, user: ConnectingUser
    ) -> None:
        self.last_error: BaseException | None = None
        """The last error of a new connection, or of the attempt to make one."""
        self._watcher = watcher
        self._loop = loop
        self._settings = settings
        self._user = user
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._failing = False
        self._backoff = Backoff(_FIRST_PAUSE, _LAST_PAUSE, random=watcher.runtime.random)

    async def connect(self) -> Connection:
        """Dial until the handshake is done. If the path changes meanwhile, the dial starts over.

        :raises OSError: the dial or the handshake failed
        """
        return await self._settings.dial(self._attach)

    async def _attach(self, dialled: Dialled) -> Connection:
        """Do the handshake.

        :raises PathChanged: it failed because the path was lost
        """
        connection = Connection(self._user, dialled)
        guard = self._guard(connection) if self._settings.handshake else None
        try:
            connection.transport = await self._settings.attach(connection, connection.sock)
            if connection.ended:
                raise connection.error or ConnectionResetError(errno.ECONNRESET, "the peer closed the new connection at once")
        except OSError as error:
            if guard is None or guard.error is None:
                raise
            raise PathChanged(error) from error
        else:
            return connection
        finally:
            if guard is not None:
                guard.close()

    def dial(self, address: IPAddress) -> None:
        """Start to dial.

        :param address: the present address of the peer, for the name of the task
        """
        self._task = start_task(self._loop, self._dial(), f"bindsock dial {address}")

    def failed(self, error: BaseException | None) -> None:
        """Record that a new connection failed, so that the next dial comes after a pause.

        :param error: the error, if it is known
        """
        self._failing = True
        self.last_error = error or self.last_error

    def pause(self) -> None:
        """Schedule the next dial: soon if nothing has failed, otherwise after a pause that grows with each failure."""
        self._timer = self._watcher.runtime.call_later(self._backoff.next() if self._failing else 0.0, self._again)

    def end_pause(self) -> None:
        """End the pause, if there is one, and dial now."""
        if self._timer is not None:
            self._again()

    def stop(self) -> None:
        """Cancel the dial or the pause, and reset the back-off."""
        self._stop_timer()
        self._failing = False
        self._backoff.reset()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def succeeded(self) -> None:
        """Record that the new connection has become the current one."""
        self.stop()
        self.last_error = None

    def _again(self) -> None:
        self._stop_timer()
        self._user.dial_again()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def _dial(self) -> None:
        task = asyncio.current_task()
        try:
            async with self._watcher.runtime.shared(RedialSlots):
                connection = await self.connect()
        except asyncio.CancelledError as error:
            # If stop() has not cancelled this task, the program has, for example by cancelling all tasks.
            failure: BaseException = error
            if self._task is not task:
                raise
        except Exception as error:  # noqa: BLE001 - the program gets any error in the end, as a cause
            failure = error
        else:
            if self._task is not task:
                connection.drop(self._watcher.kernel, "reset", self._watcher.runtime)
                return
            self._task = None
            go_on = self._user.connected(connection)
            if go_on is not None:
                await go_on
            return
        if self._task is task:
            self._task = None
            self.failed(failure)
            self._user.dial_failed()

    def _guard(self, connection: Connection) -> StreamGuard:
        """A guard that ends the connection, and so its handshake, when its path is lost."""
        dialled = connection.dialled
        requirement = self._settings.requirement(dialled.address, replaceable=False)
        return follow_stream(self._watcher, connection.sock, requirement, dialled.path)


def start_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Make a task that starts in a later iteration of the loop, after the caller has stored it.

    ``loop.create_task()`` would run the coroutine at once if the program has set ``asyncio.eager_task_factory``.
    """
    return asyncio.Task(coroutine, loop=loop, name=name)
